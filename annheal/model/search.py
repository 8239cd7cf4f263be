"""Searches between coordinator and shard node, in columns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from annheal.model.filter import Filter
from annheal.model.measures.shard_queries import Numbers
from annheal.model.records import IDS_ONLY, Float32Matrix, Projection, RecordSet, take_records
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

    With a `fallback`, the name of another model, records without a vector of `model` are answered
    by that: each query is its vector of `model` followed by that of `fallback`, and an answer has
    up to `fallback_k` hits by it beside the `k` hits by `model`.
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
    fallback: str = ""
    fallback_k: int = 0

    @property
    def hits_max(self) -> int:
        """Hits of one query, at most."""
        return self.k + (self.fallback_k if self.fallback else 0)


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

    `by_fallback` (sum(counts),) bool: which hits are by the fallback model; a query's others come
    first, and each of the two kinds is ordered by itself. None: no fallback was asked for.
    `joined_by` says how the two were made one list since, by their scores; empty: they were not.
    """

    counts: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    records: RecordSet
    explain: tuple[SegmentExplain, ...] = ()
    sequences: dict[int, int] = field(default_factory=dict)
    missing_shards: tuple[ShardId, ...] = ()
    below_objective: bool = False
    by_fallback: npt.NDArray[np.bool_] | None = None
    joined_by: str = ""

    def of_fallback(self, fallback: bool) -> SearchAnswer:
        """Return the hits by the fallback model, or the others."""
        assert self.by_fallback is not None
        chosen = np.flatnonzero(self.by_fallback == fallback)
        queries = np.repeat(np.arange(len(self.counts)), self.counts)[chosen]
        return replace(
            self,
            counts=np.bincount(queries, minlength=len(self.counts)).astype(np.int32),
            scores=self.scores[chosen],
            records=take_records([self.records], chosen),
            by_fallback=None,
        )


def with_fallback(answer: SearchAnswer, fallback: SearchAnswer) -> SearchAnswer:
    """Return one answer with the hits of both, each query's hits by the fallback model behind."""
    queries = np.concatenate(
        [np.repeat(np.arange(len(one.counts)), one.counts) for one in (answer, fallback)]
    )
    order = np.argsort(queries, kind="stable")
    by_fallback = np.arange(len(order)) >= len(answer.scores)
    return replace(
        answer,
        counts=answer.counts + fallback.counts,
        scores=np.concatenate([answer.scores, fallback.scores])[order],
        records=take_records([answer.records, fallback.records], order),
        explain=(*answer.explain, *fallback.explain),
        missing_shards=tuple(sorted({*answer.missing_shards, *fallback.missing_shards})),
        below_objective=answer.below_objective or fallback.below_objective,
        by_fallback=by_fallback[order],
    )
