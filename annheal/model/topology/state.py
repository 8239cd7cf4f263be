"""Shards and segments as the node that serves them reports them."""

from __future__ import annotations

from dataclasses import dataclass, field

from annheal.model.measures.recall import RECALL_UNKNOWN


@dataclass(frozen=True, slots=True)
class ModelCoverage:
    """How far the live rows of a segment have vectors of a model.

    `rows` have one, `lacking` have none; `skipped` were given none by a backfill. `index_kind` is
    empty where no row has one. `size_bytes` is 0 for the segment's own model. `waits`: it is flat,
    and no compactor has tried to build a graph of it yet.
    """

    model: str
    rows: int
    lacking: int
    index_kind: str = ""
    size_bytes: int = 0
    skipped: int = 0
    waits: bool = False


@dataclass(frozen=True, slots=True)
class SegmentState:
    """The state of one segment that a node serves.

    Attributes:
        recall: recall of live queries in the band where it is lowest; -1: not measured.
        ef: the ef of searches in that band; 0: no graph.
        rebuild: recall is below the objective at the largest ef allowed.
        stuck: so it is although the segment was rebuilt for that reason.
        visited: walk cost of live queries without a filter; 0: not measured.
        visited_baseline: walk cost when the segment was built; 0: not known.
        built_for: reason of the task that built it; empty for a flushed segment.
        without_kernels: it has a graph, and the node has not loaded the compiled kernels that
            filtered walks of it need.
        models: the models of the collection; empty where it has one.
    """

    shard: int
    segment_id: str
    tier: str
    model: str
    index_kind: str
    rows: int
    dead_rows: int
    size_bytes: int
    generation: int
    created_at_s: float
    min_sequence: int
    max_sequence: int
    recall: float = RECALL_UNKNOWN
    ef: int = 0
    rebuild: bool = False
    stuck: bool = False
    visited: float = 0.0
    visited_baseline: float = 0.0
    built_for: str = ""
    without_kernels: bool = False
    models: tuple[ModelCoverage, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardState:
    """The state of one shard that a node serves."""

    collection_id: str
    shard: int
    node_id: str
    phase: str
    epoch: int
    live_rows: int
    dead_rows: int
    unindexed_rows: int
    applied_sequence: int
    wal_slots: int
    memory_bytes: int
    segments: tuple[SegmentState, ...] = field(default_factory=tuple)
    error: str = ""
