"""Sources read by one of the models of their collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.incremental import BaseChoice
from annheal.compactor.fetch import Source
from annheal.index import build_flat
from annheal.model.collection import ModelSpec
from annheal.model.records import lacking
from annheal.model.topology.manifest import IndexKind
from annheal.segment import BuildInfo, DeleteVector, Segment
from annheal.segment.parts.segment import PartSegment
from annheal.segment.write import without_nan

Rows = npt.NDArray[np.int64]


def has_model(segment: Segment, model: ModelSpec) -> bool:
    """Return whether a row of the segment may have a vector of `model`."""
    return model.name in segment.parts or model == segment.meta.model


def read_as(segment: Segment, model: ModelSpec) -> Segment:
    """Return the same rows with the vectors of `model` as their own.

    The segment itself if it is of that model. Otherwise vectors are copied into memory, and there
    is no graph to extend.
    """
    if segment.meta.model == model:
        return segment
    rows = np.arange(segment.rows)
    vectors = segment.vectors_of(model.name, rows, dimension=model.dimension)
    return Segment(
        entry=replace(segment.entry, model=model.name, index_kind=IndexKind.FLAT),
        meta=replace(
            segment.meta, model=model, index_kind=IndexKind.FLAT, build=BuildInfo(), graph_rows=0
        ),
        index=build_flat(without_nan(vectors), metric=model.metric),
        columns=segment.columns,
        lookup=segment.lookup,
        indexed=segment.indexed,
        lacking_rows=np.flatnonzero(lacking(vectors)),
    )


def output_places(
    sources: Sequence[Source], read: Sequence[Source], chosen: BaseChoice
) -> list[Rows]:
    """Return, for each of `sources`, the row of the output of each of its rows; -1: of none.

    `read` are the same sources in the same order, as `chosen` has them in another.
    """
    places = [np.full(source.segment.rows, -1, dtype=np.int64) for source in sources]
    positions = np.empty(len(chosen.order.positions), dtype=np.int64)
    positions[chosen.order.positions] = np.arange(len(positions))
    start = 0
    for source, rows in zip(chosen.sources, chosen.kept, strict=True):
        places[index_of(read, source)][rows] = positions[start : start + len(rows)]
        start += len(rows)
    return places


def index_of(sources: Sequence[Source], wanted: Source) -> int:
    """Return the position of the very object `wanted`."""
    return next(number for number, source in enumerate(sources) if source is wanted)


def read_by_model(
    sources: Sequence[Source], kept: Sequence[Rows], places: Sequence[Rows], model: ModelSpec
) -> tuple[list[Source], list[Rows], list[Rows]]:
    """Return the sources as read by `model`, their rows among `kept` that have a vector of it, and
    the row of the output of each of their rows.

    A source in which no kept row has one is left out.
    """
    read: list[Source] = []
    read_kept: list[Rows] = []
    read_places: list[Rows] = []
    for source, rows, place in zip(sources, kept, places, strict=True):
        segment = source.segment
        part = segment.parts.get(model.name)
        if part is not None:
            is_kept = np.isin(part.base_rows, rows)
            found, own_place = np.flatnonzero(is_kept), place[part.base_rows]
            segment = part
        elif segment.meta.model == model:
            found, own_place = np.setdiff1d(rows, segment.lacking_rows), place
        else:
            continue
        if len(found):
            deletes = source.deletes if part is None else _deletes_of(part, source.deletes)
            read.append(Source(segment, deletes))
            read_kept.append(found)
            read_places.append(own_place)
    return read, read_kept, read_places


def skipped_of(sources: Sequence[Source], model: ModelSpec) -> dict[str, int]:
    """Return how many rows backfills could not give a vector of `model`, by reason."""
    found: Counter[str] = Counter()
    for source in sources:
        part = source.segment.parts.get(model.name)
        if part is not None:
            found.update(part.skipped)
    return dict(found)


def _deletes_of(part: PartSegment, deletes: DeleteVector) -> DeleteVector:
    dead = np.flatnonzero(deletes.is_dead(part.base_rows))
    return DeleteVector.empty(part.rows).with_dead(dead)
