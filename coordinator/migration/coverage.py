"""How many records have vectors of a model, by segment, from what shard owners report. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from annheal.model.collection import Collection
from annheal.model.topology.manifest import Tier
from annheal.model.topology.migration.state import CoverageTotals
from annheal.model.topology.shard import ShardPhase
from annheal.model.topology.state import SegmentState, ShardState


@dataclass(frozen=True, slots=True)
class ModelRows:
    """Live rows of a segment that have a vector of a model, and that lack one.

    `skipped` rows of those that lack one were given none by a backfill.
    """

    having: int
    lacking: int
    skipped: int = 0


RowsOf: TypeAlias = Callable[[Collection, SegmentState, str], ModelRows]
"""Returns the rows of a segment with and without a vector of a model, by name."""


@dataclass(frozen=True, slots=True)
class SegmentCoverage:
    """One segment and its rows by model. `growing`: its rows are in memory, no task reads them."""

    shard: int
    state: SegmentState
    rows: Mapping[str, ModelRows]

    @property
    def growing(self) -> bool:
        """Whether its rows have not been flushed."""
        return self.state.tier == Tier.GROWING

    @property
    def key(self) -> tuple[int, str]:
        """Shard and segment id."""
        return self.shard, self.state.segment_id


@dataclass(frozen=True, slots=True)
class Coverage:
    """The segments of a collection's shards that reported, and how many shards did not."""

    segments: tuple[SegmentCoverage, ...]
    shards_unreported: int

    def lacking(self, model: str) -> int:
        """Live rows without a vector of `model`."""
        return sum(one.rows[model].lacking for one in self.segments)

    def having(self, model: str) -> int:
        """Live rows with a vector of `model`."""
        return sum(one.rows[model].having for one in self.segments)

    def totals(self, *, old: str, new: str, left: int, at_s: float) -> CoverageTotals:
        """Return the sums for the state of a migration; `left` segments wait for a backfill."""
        return CoverageTotals(
            at_s=at_s,
            rows=self.lacking(new) + self.having(new),
            rows_lacking=self.lacking(new),
            rows_lacking_old=self.lacking(old),
            segments=len(self.segments),
            segments_left=left,
            shards_unreported=self.shards_unreported,
        )


def model_rows(collection: Collection, segment: SegmentState, model: str) -> ModelRows:
    """Return the live rows of a segment with and without a vector of a model, as it is reported.

    Of a segment of which the owner reports no models, all rows have vectors of its own one.
    """
    found = next((one for one in segment.models if one.model == model), None)
    if found is not None:
        return ModelRows(found.rows, found.lacking, found.skipped)
    live = max(segment.rows - segment.dead_rows, 0)
    own = segment.model or collection.models[0].name
    return ModelRows(live, 0) if own == model else ModelRows(0, live)


def coverage_of(
    collection: Collection, states: Iterable[ShardState], *, models: Iterable[str], rows_of: RowsOf
) -> Coverage:
    """Return the coverage of `models` in the shards of `collection` that serve."""
    serving = [
        state
        for state in states
        if state.collection_id == collection.id and state.phase == ShardPhase.SERVING
    ]
    names = tuple(models)
    segments = tuple(
        SegmentCoverage(
            state.shard, segment, {name: rows_of(collection, segment, name) for name in names}
        )
        for state in sorted(serving, key=lambda state: state.shard)
        for segment in state.segments
    )
    return Coverage(segments, collection.shard_count - len(serving))
