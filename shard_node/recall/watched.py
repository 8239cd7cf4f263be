"""What measuring recall, and remembering it, need of a shard, and what is kept of a measurement."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from annheal.model.collection import Collection, CollectionSettings
from annheal.model.measures.recall import (
    RecallEstimate,
    Rung,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
)
from annheal.model.measures.recall_tail import TailEstimate, TailObjective
from annheal.model.topology.shard import ShardId
from annheal.shard_node.recall.ef_control import Answering, EfController, EfState
from annheal.shard_node.rows.view import ShardView

_log = logging.getLogger(__name__)


class WatchedShard(Protocol):
    """A shard whose recall is measured and kept; `OwnedShard` is one."""

    @property
    def collection(self) -> Collection:
        """Its collection, with the settings of now."""
        ...

    @property
    def serving_view(self) -> ShardView:
        """Its rows as of now, as searched by the model that serves."""
        ...

    @property
    def epoch(self) -> int:
        """The epoch of this node's ownership."""
        ...


def way_of_answering(
    held: Mapping[ShardId, WatchedShard | None], collection_id: str, controller: EfController
) -> Hashable:
    """Return what the answers to a collection's queries follow from, besides the queries."""
    shards = [one for shard, one in sorted(held.items()) if shard.collection_id == collection_id]
    return tuple(
        (
            one.collection.settings,
            one.serving_view.segment_ids,
            controller.answering(one.serving_view.segment_ids),
        )
        for one in shards
        if one is not None
    )


@dataclass(frozen=True, slots=True)
class Goal:
    """What the collection promises: recall@`k` of at least `objective`, and `tail`."""

    objective: float
    k: int
    tail: TailObjective | None = None

    @classmethod
    def of(cls, settings: CollectionSettings) -> Goal:
        """Return what the settings of a collection promise."""
        return cls(settings.recall_objective, settings.recall_k, settings.tail_objective)

    def is_missed(self, estimate: RecallEstimate) -> bool:
        """Return whether an estimate is below one of the objectives."""
        tail = estimate.tail_for(self.tail)
        return estimate.recall < self.objective or (
            tail is not None and tail.share < tail.objective.share
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What a shard was like when its last measurement began, and what followed from it.

    `serials` are those of the queries measured, `answers` how the controller had its segments
    answered. `settled`: nothing is below `goal`. `next_after`: after so many new queries of a band
    recall is measured again without waiting for the interval. `is_cut`: it was given up, as the
    queries changed meanwhile.
    """

    started_s: float
    sequence: int
    segment_ids: frozenset[str]
    sample_version: int
    goal: Goal
    settled: bool = False
    next_after: Mapping[SelectivityBand, int] = field(default_factory=dict)
    is_cut: bool = False
    serials: frozenset[int] = frozenset()
    answers: frozenset[Answering] = frozenset()


@dataclass(frozen=True, slots=True)
class Judged:
    """The latest estimates of a shard, and the serials of the queries that they were made from.

    No serials: a former process made them. `changed`: its segments, or how they are answered, are
    not those of then.
    """

    bands: tuple[ShardBandRecall, ...]
    serials: frozenset[int] = frozenset()
    changed: bool = False


def report_state(shard: ShardId, found: SegmentRecall, before: EfState, after: EfState) -> None:
    """Log a changed state: a segment below its objective must be visible (INV-7)."""
    facts = (
        f"segment {found.segment_id} of {shard}, {found.band.value}: recall@{found.estimate.k}"
        f" {found.estimate.recall:.4f} [{found.estimate.low:.4f}, {found.estimate.high:.4f}] of"
        f" {found.estimate.queries} live queries{_tail_words(found.estimate.tail)}"
    )
    if after.stuck and not before.stuck:
        _log.error(
            "%s is below the objective at ef %d, although the segment was rebuilt for it; nothing"
            " more is tried; perhaps the queries are unlike the rows (INV-7)",
            facts,
            found.ef,
        )
    elif after.rebuild and not before.rebuild:
        _log.warning("%s is below the objective at ef %d; it will be rebuilt", facts, found.ef)
    elif after.scale != before.scale:
        _log.info("%s; ef is now %d", facts, found.ef)
    if _answers_without_graph(after) and not _answers_without_graph(before):
        _log.warning(
            "%s is below the objective at ef %d; codes or exact comparison answer where"
            " recall_budget allows it, other answers carry below_objective",
            facts,
            found.ef,
        )


def _tail_words(tail: TailEstimate | None) -> str:
    if tail is None:
        return ""
    return (
        f", {tail.share:.4f} [{tail.low:.4f}, {tail.high:.4f}] of them with at least"
        f" {tail.objective.recall:g} (promised: {tail.objective.share:g})"
    )


def _answers_without_graph(state: EfState) -> bool:
    return state.shortfall is not None and state.shortfall.rung is not Rung.GRAPH
