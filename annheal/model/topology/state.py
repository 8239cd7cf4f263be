"""Shards and segments as the node that serves them reports them."""

from __future__ import annotations

from dataclasses import dataclass, field

from annheal.model.measures.recall import RECALL_UNKNOWN


@dataclass(frozen=True, slots=True)
class SegmentState:
    """One segment as a node serves it.

    `recall` is what live queries measured, in the band that is worst off (-1: not measured), `ef`
    what that band is searched with (0: no graph). `rebuild`: recall is below the objective, and a
    wider search is not allowed or does not help. `stuck`: so it is, and a rebuild did not help.
    `visited` is how many rows a live query without a filter compares (0: not measured), and
    `visited_baseline` how many it did when the segment was built (0: not known). `built_for` is why
    it was built, empty for a flushed segment.
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


@dataclass(frozen=True, slots=True)
class ShardState:
    """One shard as a node serves it."""

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
