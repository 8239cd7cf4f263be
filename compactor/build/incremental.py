"""The base of an incremental merge: the source whose graph is kept and extended."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.base_plan import BaseCandidate, plan_base
from annheal.compactor.build.order import RowOrder, order_rows
from annheal.compactor.fetch import Source
from annheal.index import VectorIndex, is_base
from annheal.model.collection import CollectionSettings, IndexSettings, VectorStorage
from annheal.segment import GraphHistory, GraphKind, RecallPoint, Segment

BANDS_CHANGED_MAX = 0.25
"""Share of the rows removed or added up to which the base's recall under filters is taken over.

Measuring it takes half as long as the merge, and until then recall at a given ef hardly changes.
Meanwhile the recall of live queries corrects ef.
"""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Base:
    """The source whose graph is kept and extended.

    Attributes:
        segment: the source.
        kept: the rows of its graph, int64, that stay in it. Their vectors are the first ones of the
            output, where a copy stands for a row of the graph that is dead.
        settings: the settings that its graph was built with.
        reference: the recall curve after the last build from nothing.
        reference_rows: rows of the segment at that build.
        storage: the storage that the collection asks for.
    """

    segment: Segment
    kept: npt.NDArray[np.int64]
    settings: IndexSettings
    reference: tuple[RecallPoint, ...]
    reference_rows: int
    storage: VectorStorage

    @property
    def id(self) -> str:
        """The id of the segment."""
        return self.segment.id

    @property
    def index(self) -> VectorIndex:
        """The index of the segment, which has a graph."""
        return self.segment.index

    def history(self, rows: int) -> GraphHistory:
        """Return the graph's history after this merge; `rows` are those of the output's graph."""
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
        """Return the base's recall points under filters if they hold for a graph of `rows` rows.

        They do up to `BANDS_CHANGED_MAX` changed rows and with the same storage; else no points.
        """
        if self._changed_rows(rows) > BANDS_CHANGED_MAX * rows:
            return ()
        if self.segment.storage is not self.storage:
            return ()
        return tuple(point for point in self.segment.recall_curve if point.band)

    def _changed_rows(self, rows: int) -> int:
        removed, added = self.index.graph_size - len(self.kept), rows - len(self.kept)
        return self.segment.meta.build.graph.changed_rows + removed + added


@dataclass(frozen=True, slots=True)
class BaseChoice:
    """The base, None for a rebuild, and the sources with their live rows; the base is the first.

    `order` is the order of these rows in the output.
    """

    base: Base | None
    sources: Sequence[Source]
    kept: Sequence[npt.NDArray[np.int64]]
    order: RowOrder


def choose_base(
    sources: Sequence[Source],
    kept: Sequence[npt.NDArray[np.int64]],
    labels: Sequence[npt.NDArray[np.int64]],
    *,
    hold_out: Callable[[int], npt.NDArray[np.int64]],
    allowed: Sequence[IndexSettings],
    collection_settings: CollectionSettings,
    rebuild_why: str,
) -> BaseChoice:
    """Return the base, as `plan_base` chooses it, of a merge of the rows `kept` of each source.

    `kept` are row numbers, int64, `labels` those of their vectors (`vector_labels`). `hold_out`
    says which of so many rows with different vectors are held out: random rows of all sources, so
    that the queries resemble all of the output and not only its new rows. Those of the base are
    removed from its graph like dead rows, and added again after the measurement. `rebuild_why`
    forces a rebuild unless it is empty.
    """
    distinct = [len(np.unique(of_source)) for of_source in labels]
    rows = len(np.unique(np.concatenate(labels)))
    not_held_out = 1 - len(hold_out(rows)) / rows
    candidates = [
        _candidate_of(source, kept_rows=int(live * not_held_out))
        for source, live in zip(sources, distinct, strict=True)
    ]
    plan = plan_base(
        candidates,
        rows=rows,
        rebuild_why=rebuild_why,
        allowed=allowed,
        recall_k=collection_settings.recall_k,
    )
    if plan.base is None:
        _log.info("the graph of %d rows is rebuilt: %s", rows, plan.why)
        order = order_rows(sources, kept, labels, hold_out=hold_out)
        return BaseChoice(None, sources, kept, order)
    first = plan.base
    numbers = [first, *(n for n in range(len(sources)) if n != first)]
    sources = [sources[n] for n in numbers]
    kept = [kept[n] for n in numbers]
    order = order_rows(sources, kept, [labels[n] for n in numbers], hold_out=hold_out)
    segment, settings = sources[0].segment, candidates[first].settings
    assert settings is not None
    in_graph = order.positions[: order.graph_size - len(hold_out(order.graph_size))]
    base = Base(
        segment=segment,
        kept=segment.index.originals(kept[0][in_graph[in_graph < len(kept[0])]]),
        settings=settings,
        reference=tuple(candidates[first].reference),
        reference_rows=segment.meta.build.graph.reference_rows or segment.index.graph_size,
        storage=collection_settings.storage,
    )
    return BaseChoice(base, sources, kept, order)


def _candidate_of(source: Source, *, kept_rows: int) -> BaseCandidate:
    build = source.segment.meta.build
    curve = tuple(point for point in build.recall_curve if not point.band)
    return BaseCandidate(
        rows=source.segment.index.graph_size,
        kept_rows=kept_rows,
        settings=build.settings if is_base(source.segment.index) else None,
        merges=build.graph.merges,
        reference=build.graph.reference or curve,
    )
