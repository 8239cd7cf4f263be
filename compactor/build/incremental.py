"""The source whose graph a merge goes on with: its rows in front, and what is known of it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.merge_plan import MergeSource, plan_merge
from annheal.compactor.fetch import Source
from annheal.index import VectorIndex, is_base
from annheal.model.collection import CollectionSettings, IndexSettings, VectorStorage
from annheal.segment import GraphHistory, GraphKind, RecallPoint, Segment

BANDS_CHANGED_MAX = 0.25
"""Share of rows removed or added up to which recall under filters is not measured again.

It takes as long as half of a merge, and recall at a given beam hardly moves until then; what is
measured on live queries corrects the beam meanwhile.
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """A source with a graph to go on with; `kept` are the rows of it that come first, in order.

    `storage` is that of the output.
    """

    segment: Segment
    kept: npt.NDArray[np.int64]
    settings: IndexSettings
    reference: tuple[RecallPoint, ...]
    reference_rows: int
    storage: VectorStorage

    @property
    def id(self) -> str:
        """The id of the source."""
        return self.segment.id

    @property
    def index(self) -> VectorIndex:
        """The index with the graph."""
        return self.segment.index

    def history(self, rows: int) -> GraphHistory:
        """Return what to remember of the graph when the output has `rows` rows."""
        before = self.segment.meta.build.graph
        changed = self._changed_rows(rows) if self.bands(rows) else 0
        return GraphHistory(
            kind=GraphKind.INCREMENTAL,
            merges=before.merges + 1,
            changed_rows=changed,
            reference_rows=self.reference_rows,
            reference=self.reference,
        )

    def bands(self, rows: int) -> tuple[RecallPoint, ...]:
        """Return the points under filters that still hold for `rows` rows, none when none do."""
        if self._changed_rows(rows) > BANDS_CHANGED_MAX * rows:
            return ()
        if self.segment.storage is not self.storage:
            return ()
        return tuple(point for point in self.segment.recall_curve if point.band)

    def _changed_rows(self, rows: int) -> int:
        removed, added = self.segment.rows - len(self.kept), rows - len(self.kept)
        return self.segment.meta.build.graph.changed_rows + removed + added


@dataclass(frozen=True, slots=True)
class Chosen:
    """The sources with their live rows, that of the base first; None builds anew, in any order."""

    base: Base | None
    sources: Sequence[Source]
    kept: Sequence[npt.NDArray[np.int64]]


def choose_base(
    sources: Sequence[Source],
    kept: Sequence[npt.NDArray[np.int64]],
    held_out: npt.NDArray[np.int64],
    *,
    allowed: Sequence[IndexSettings],
    goal: CollectionSettings,
    anew: bool,
) -> Chosen:
    """Return the base of a merge of the rows `kept` of each source, as `plan_merge` decides.

    `held_out` are positions among all kept rows. They are random ones of all sources, so that they
    ask for what the output holds and not only for what is new in it. Those of the base are
    removed from its graph like dead rows, and added again after the measurement.
    """
    rows = sum(map(len, kept))
    lasting = 1 - len(held_out) / rows
    described = [
        _described(source, kept_rows=int(len(live) * lasting))
        for source, live in zip(sources, kept, strict=True)
    ]
    plan = plan_merge(described, rows=rows, anew=anew, settings=allowed, recall_k=goal.recall_k)
    if plan.base is None:
        _log.info("%d rows get a new graph: %s", rows, plan.why)
        return Chosen(None, sources, kept)
    first = plan.base
    order = [first, *(n for n in range(len(sources)) if n != first)]
    live = kept[first]
    segment, settings = sources[first].segment, described[first].settings
    assert settings is not None
    base = Base(
        segment=segment,
        kept=np.delete(live, held_out[held_out < len(live)]),
        settings=settings,
        reference=tuple(described[first].reference),
        reference_rows=segment.meta.build.graph.reference_rows or segment.rows,
        storage=goal.storage,
    )
    return Chosen(base, [sources[n] for n in order], [kept[n] for n in order])


def _described(source: Source, *, kept_rows: int) -> MergeSource:
    build = source.segment.meta.build
    curve = tuple(point for point in build.recall_curve if not point.band)
    return MergeSource(
        rows=source.segment.rows,
        kept_rows=kept_rows,
        settings=build.settings if is_base(source.segment.index) else None,
        merges=build.graph.merges,
        reference=build.graph.reference or curve,
    )
