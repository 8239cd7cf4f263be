"""The size of records in an answer in bytes, computed before any of them is copied.

Scans are cut and larger answers refused by this size (docs/limits.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.model.limits import (
    ANSWER_BYTES_MAX,
    ID_BYTES_MAX,
    KEYWORD_BYTES_MAX,
    KEYWORD_LIST_LENGTH_MAX,
    PAYLOAD_BYTES_MAX,
)
from annheal.model.records import Projection
from annheal.model.values.answer_size import RECORD_BYTES, check_answer_size
from annheal.segment.texts import offsets_of, text_bytes
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import SegmentView

Rows = npt.NDArray[np.int64]
Source = SegmentView | GrowingView
Taken = tuple[Source, Rows]
"""A source and some of its row numbers."""

VALUE_BYTES: Final = 8
"""Bytes of a number; also the most that is added to the bytes of a text."""

types: Any = pa.types
_NO_ROWS: Rows = np.empty(0, dtype=np.int64)


def record_bytes(source: Source, rows: Rows, projection: Projection) -> npt.NDArray[np.int64]:
    """Return an upper estimate of the bytes of each of `rows` (n,) int64, (n,) int64."""
    found = np.full(len(rows), RECORD_BYTES, dtype=np.int64)
    if projection.vector:
        found += 4 * _floats(source, projection)
    if isinstance(source, SegmentView):
        segment, rows = source.segment.stored(rows)
        source = SegmentView(segment, source.deletes)
    found += _id_bytes(source, rows)
    if projection.version:
        found += VALUE_BYTES
    if projection.payload:
        found += _payload_bytes(source, rows)
    for column in _columns(source, projection):
        found += _attribute_bytes(column, rows)
    return found


def check_answer(
    taken: Sequence[Taken],
    projection: Projection,
    *,
    field: str,
    fix: str,
    bytes_max: int = ANSWER_BYTES_MAX,
) -> None:
    """Raise `InvalidArgument` when the records are more than `bytes_max` bytes.

    The error names `field`, the field at fault, and `fix`, what to change. Records are measured one
    by one only if the limits of their parts do not show already that they fit.
    """
    most = sum(len(rows) * _record_bytes_max(source, projection) for source, rows in taken)
    if most > bytes_max:
        total = sum(int(record_bytes(source, rows, projection).sum()) for source, rows in taken)
        check_answer_size(total, field=field, fix=fix, bytes_max=bytes_max)


def _record_bytes_max(source: Source, projection: Projection) -> int:
    """Return the most bytes that one record can take, from the limits of its parts."""
    found = RECORD_BYTES + ID_BYTES_MAX
    if projection.vector:
        found += 4 * _floats(source, projection)
    if projection.version:
        found += VALUE_BYTES
    if projection.payload:
        found += PAYLOAD_BYTES_MAX
    keyword = KEYWORD_BYTES_MAX + VALUE_BYTES
    for column in _columns(source, projection):
        if types.is_list(column.type):
            found += VALUE_BYTES + KEYWORD_LIST_LENGTH_MAX * keyword
        else:
            found += keyword if _is_text(column.type) else VALUE_BYTES
    return found


def _id_bytes(source: Source, rows: Rows) -> npt.NDArray[np.int64]:
    if isinstance(source, SegmentView):
        return text_bytes(source.segment.ids, rows)
    ids = source.ids
    return np.fromiter((len(ids[row].encode()) for row in rows.tolist()), np.int64, len(rows))


def _payload_bytes(source: Source, rows: Rows) -> npt.NDArray[np.int64]:
    if isinstance(source, SegmentView):
        return text_bytes(source.segment.payloads, rows)
    lengths = [np.diff(offsets_of(part.payloads)) for part in source.parts]
    return np.concatenate(lengths).astype(np.int64)[rows]


def _floats(source: Source, projection: Projection) -> int:
    """Return the floats of the vectors of one record."""
    if projection.models:
        return sum(projection.dimensions)
    vectors = source.segment.vectors if isinstance(source, SegmentView) else source.vectors
    return int(vectors.shape[1])


def _columns(source: Source, projection: Projection) -> list[Any]:
    if projection.attributes == ():
        return []
    if isinstance(source, SegmentView):
        segment, _ = source.segment.stored(_NO_ROWS)
        stored = segment.attributes
    else:
        stored = source.attributes()
    names = stored.schema.names
    wanted = names if projection.attributes is None else projection.attributes
    return [stored.column(names.index(name)) for name in wanted if name in names]


def _attribute_bytes(column: Any, rows: Rows) -> npt.NDArray[np.int64]:
    if types.is_dictionary(column.type):
        codes = column.indices.take(pa.array(rows)).fill_null(0)
        if not len(column.dictionary):
            return np.full(len(rows), VALUE_BYTES, dtype=np.int64)
        return text_bytes(column.dictionary, np.asarray(codes, dtype=np.int64)) + VALUE_BYTES
    if types.is_list(column.type):
        ends = offsets_of(column)
        first, last = ends[rows].astype(np.int64), ends[rows + 1].astype(np.int64)
        texts = offsets_of(column.values).astype(np.int64)
        return texts[last] - texts[first] + (last - first + 1) * VALUE_BYTES
    if _is_text(column.type):
        return text_bytes(column, rows) + VALUE_BYTES
    return np.full(len(rows), VALUE_BYTES, dtype=np.int64)


def _is_text(kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_dictionary(kind))
