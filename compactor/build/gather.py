"""Copies the live rows of the sources in the order of the output."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.compactor.build.slices import slices
from annheal.compactor.fetch import Source
from annheal.model.collection import ModelSpec, Schema
from annheal.model.records import ARROW_TYPES, Float32Matrix, arrow_schema
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.segment import SegmentRows
from annheal.segment.rows import decoded
from annheal.shards.routing import hash_ids

_COPY_ROWS = 10_000
"""Rows of one copy, in which numpy holds the interpreter lock: 2 ms at 384 floats."""

_log = logging.getLogger(__name__)


def gather_rows(
    sources: Sequence[Source],
    kept: Sequence[npt.NDArray[np.int64]],
    order: npt.NDArray[np.int64],
    *,
    model: ModelSpec,
    schema: Schema,
    yield_point: YieldPoint = no_yield_point,
) -> SegmentRows:
    """Return the rows `kept` of each source in the given order.

    `kept` are row numbers of each source, int64; `order` has every position among all kept rows,
    source after source. A column of `schema` that a source does not have is null in its rows.
    """
    taken = [pa.array(rows, type=pa.int64()) for rows in kept]
    payloads = pa.concat_arrays(
        [s.segment.payloads.take(rows) for s, rows in zip(sources, taken, strict=True)]
    )
    ids = pa.concat_arrays(
        [s.segment.ids.take(rows) for s, rows in zip(sources, taken, strict=True)]
    )
    sequences = np.concatenate(
        [s.segment.sequences[rows] for s, rows in zip(sources, kept, strict=True)]
    )
    moved = pa.array(order, type=pa.int64())
    return SegmentRows(
        ids=ids.take(moved),
        sequences=sequences[order],
        vectors=gather_vectors(
            sources, kept, order, dimension=model.dimension, yield_point=yield_point
        ),
        attributes=_gather_attributes(sources, taken, schema).take(moved)
        if schema
        else pa.RecordBatch.from_arrays([], names=[]),
        payloads=payloads.take(moved),
    )


def gather_vectors(
    sources: Sequence[Source],
    kept: Sequence[npt.NDArray[np.int64]],
    order: npt.NDArray[np.int64],
    *,
    dimension: int,
    yield_point: YieldPoint,
) -> Float32Matrix:
    """Return the vectors of the rows `kept` in the given order; NaN for rows that lack one.

    Each is copied directly to its place in the output, so that memory holds them once.
    """
    vectors = np.empty((len(order), dimension), dtype=np.float32)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    start = 0
    for source, rows in zip(sources, kept, strict=True):
        stored, absent = source.segment.vectors, source.segment.lacking_rows
        for part in slices(len(rows), _COPY_ROWS, yield_point):
            chunk = rows[part]
            found = stored[chunk]
            if len(absent):
                found = np.where(np.isin(chunk, absent)[:, None], np.float32(np.nan), found)
            vectors[place[start : start + len(chunk)]] = found
            start += len(chunk)
    return vectors


def _gather_attributes(
    sources: Sequence[Source], taken: Sequence[Any], schema: Schema
) -> pa.RecordBatch:
    """Return the columns of `schema`; one that a source does not have is null in its rows."""
    parts = [
        decoded(source.segment.attributes.take(rows))
        for source, rows in zip(sources, taken, strict=True)
        if source.segment.attributes.num_columns
    ]
    columns: list[pa.Array[Any]] = []
    for field in schema:
        wanted = ARROW_TYPES[field.type]
        pieces: list[pa.Array[Any]] = []
        remaining = iter(parts)
        for source, rows in zip(sources, taken, strict=True):
            part = next(remaining) if source.segment.attributes.num_columns else None
            if part is None or field.name not in part.schema.names:
                pieces.append(
                    pa.array([None], type=wanted).take(np.zeros(len(rows), dtype=np.int64))
                )
            else:
                pieces.append(part.column(field.name))
        columns.append(pa.concat_arrays(pieces))
    return pa.RecordBatch.from_arrays(columns, schema=arrow_schema(schema))


def newest_only(
    sources: Sequence[Source], kept: Sequence[npt.NDArray[np.int64]]
) -> list[npt.NDArray[np.int64]]:
    """Return `kept` without the rows whose id has a row with a higher sequence (INV-3, INV-6).

    One version of a manifest has no such rows. This checks it, at the cost of one sort of hashes,
    because an output with two rows of one id would stay wrong for ever. Rows that are left out are
    logged as an error.
    """
    hashes = np.concatenate(
        [
            hash_ids(source.segment.ids.take(pa.array(rows, type=pa.int64())))
            for source, rows in zip(sources, kept, strict=True)
        ]
    )
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) == len(hashes):
        return list(kept)
    suspects = np.flatnonzero(np.isin(hashes, values[counts > 1]))
    starts = np.cumsum([0, *map(len, kept)])
    newest: dict[str, tuple[int, int]] = {}
    dropped: set[int] = set()
    for position in suspects.tolist():
        number = int(np.searchsorted(starts, position, side="right")) - 1
        row = kept[number][position - starts[number]]
        segment = sources[number].segment
        record_id = segment.ids_at(np.array([row]))[0]
        sequence = int(segment.sequences[row])
        older = newest.get(record_id)
        if older is None or sequence > older[0]:
            newest[record_id] = (sequence, position)
            if older is not None:
                dropped.add(older[1])
        else:
            dropped.add(position)
    if dropped:
        _log.error("%d live rows are left out: newer rows have the same ids", len(dropped))
    gone = np.array(sorted(dropped), dtype=np.int64)
    return [
        np.delete(rows, gone[(gone >= start) & (gone < start + len(rows))] - start)
        for rows, start in zip(kept, starts.tolist()[:-1], strict=True)
    ]
