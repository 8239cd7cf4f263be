"""Recall of answers over several shards, by band, by filter and by what clients set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from annheal.model.filter import Filter
from annheal.model.measures.recall import (
    RECALL_UNKNOWN,
    CollectionRecall,
    RecallEstimate,
    SelectivityBand,
    band_of,
)
from annheal.model.measures.recall_tail import TailObjective
from annheal.recall.merging import Mask, MergedQueries, filter_number, merge_queries, tag_number


@dataclass(frozen=True, slots=True, eq=False)
class AnswerRecall:
    """The queries that all shards of a collection measured, with the recall of their answers.

    `bands` (m,) are those of the queries: of the rows of all shards that match. `tail` is the
    collection's objective about single queries.
    """

    queries: MergedQueries
    bands: tuple[SelectivityBand, ...]
    tail: TailObjective | None

    @classmethod
    def of(
        cls,
        reports: Sequence[CollectionRecall],
        *,
        shard_count: int,
        tail: TailObjective | None = None,
    ) -> AnswerRecall | None:
        """Return what the reports say of answers; None if one shard has all records."""
        if shard_count <= 1:
            return None
        parts = [part for report in reports for part in report.queries]
        queries = merge_queries(parts, shard_count=shard_count)
        bands = tuple(
            band_of(matches, live_rows, filtered=bool(filter))
            for matches, live_rows, filter in zip(
                queries.matches.tolist(),
                queries.live_rows.tolist(),
                queries.filters.tolist(),
                strict=True,
            )
        )
        return cls(queries, bands, tail)

    def band(self, band: SelectivityBand, plans: Mapping[str, int]) -> RecallEstimate | None:
        """Return the recall of queries with the collection's settings; None without any."""
        return self.queries.estimate(self._in_band(band), plans, tail=self.tail)

    def served_band(self, band: SelectivityBand) -> RecallEstimate | None:
        """Return the same of the answers that were given."""
        return self.queries.served_estimate(self._in_band(band))

    def own(self, objective: float | None, plans: Mapping[str, int]) -> RecallEstimate | None:
        """Return the recall of queries whose clients set `objective`; None: only an ef."""
        return self.queries.estimate(self._with_objective(objective), plans)

    def served_own(self, objective: float | None) -> RecallEstimate | None:
        """Return the same of the answers that were given."""
        return self.queries.served_estimate(self._with_objective(objective))

    def tag(self, tag: str) -> RecallEstimate | None:
        """Return the recall of queries with a tag and the collection's settings."""
        return self.queries.estimate(self._with_tag(tag), {}, tail=self.tail)

    def served_tag(self, tag: str) -> RecallEstimate | None:
        """Return the same of the answers that were given."""
        return self.queries.served_estimate(self._with_tag(tag))

    def filter(self, filter: Filter) -> tuple[float, int]:
        """Return mean recall under `filter`, `RECALL_UNKNOWN` without a query, and the queries."""
        usual = self.queries.in_band & ~self.queries.own
        chosen = usual & (self.queries.filters == np.uint64(filter_number(filter)))
        recalls = self.queries.recalls[chosen & ~np.isnan(self.queries.recalls)]
        return (float(recalls.mean()) if len(recalls) else RECALL_UNKNOWN), len(recalls)

    def _in_band(self, band: SelectivityBand) -> Mask:
        inside = np.fromiter((one is band for one in self.bands), np.bool_, len(self.bands))
        return inside & self.queries.in_band & ~self.queries.own

    def _with_tag(self, tag: str) -> Mask:
        chosen: Mask = ~self.queries.own & (self.queries.tags == np.uint64(tag_number(tag)))
        return chosen

    def _with_objective(self, objective: float | None) -> Mask:
        objectives = self.queries.objectives
        same = np.isnan(objectives) if objective is None else objectives == objective
        chosen: Mask = self.queries.own & same
        return chosen
