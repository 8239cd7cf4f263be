"""Searches between coordinator and shard node, in columns."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from annheal.model.filter import Filter
from annheal.model.measures.shard_queries import Numbers
from annheal.model.records import IDS_ONLY, Float32Matrix, Projection, RecordSet
from annheal.model.topology.shard import ShardId


class Consistency(StrEnum):
    """How fresh a read must be; see DESIGN section 4."""

    EVENTUAL = "eventual"
    SESSION = "session"
    STRONG = "strong"


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """What a group of queries has in common; equal options can be searched together.

    `ef` None means: the node chooses it per segment to meet `recall_objective`. `tag` is what the
    client calls this kind of query; empty: nothing.
    """

    k: int
    filter: Filter | None = None
    exact: bool = False
    ef: int | None = None
    recall_objective: float | None = None
    projection: Projection = IDS_ONLY
    explain: bool = False
    model: str = ""
    tag: str = ""


@dataclass(frozen=True, slots=True)
class SearchRequest:
    """Queries (n, d) float32 for some shards of one collection, all on the node addressed.

    `min_sequences[shard number]`: the shard must have applied that sequence (session reads).
    `timeout_s` is what is left of the caller's time. `numbers` (n,) uint64 are random, and the same
    for all nodes that search for a query, so that they sample the same queries; None where one
    shard has all records.
    """

    collection_id: str
    shards: tuple[int, ...]
    queries: Float32Matrix
    options: SearchOptions
    consistency: Consistency = Consistency.EVENTUAL
    min_sequences: dict[int, int] = field(default_factory=dict)
    timeout_s: float = 60.0
    numbers: Numbers | None = None


@dataclass(frozen=True, slots=True)
class SegmentExplain:
    """How one segment answered a batch: `plan` is exact, selector or graph; counts are its sums.

    `without_kernels`: filtered walks were not to choose from, as their kernels are not loaded yet.
    """

    shard: int
    segment_id: str
    plan: str
    rows: int
    live_rows: int
    matches: int
    ef: int
    visited: int
    duration_s: float
    without_kernels: bool = False


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """Hits of n queries, flat: query i has `counts[i]` hits, best first.

    scores: (sum(counts),) float32, higher = better. `records` has as many rows as scores.
    `sequences[shard]` is the last sequence visible to this answer. `below_objective`: part of it
    comes from a graph that was measured below the recall objective (INV-7).
    """

    counts: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    records: RecordSet
    explain: tuple[SegmentExplain, ...] = ()
    sequences: dict[int, int] = field(default_factory=dict)
    missing_shards: tuple[ShardId, ...] = ()
    below_objective: bool = False
