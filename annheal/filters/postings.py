"""What a field index stores: the rows of every value, in the order of the values.

A value of many rows has a bitmap; the rows of all others lie in one array, ordered by value and
row. So a range of values is some bitmaps and one slice of that array, and the whole takes at most
4 bytes for each value of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from annheal.filters.columns import Mask, present_mask, primitives
from annheal.filters.words import WORD_BITS, Rows, Words, words_from_rows, words_of
from annheal.model.collection import AttributeType

_ROW_BITS: Final = 32
_NARROW_CODES_MAX: Final = 1 << 16

INDEXED_TYPES: Final = frozenset(AttributeType) - {AttributeType.BOOL}
"""Bools, and which rows have a value at all, are bitmaps in Arrow's own columns already."""


@dataclass(frozen=True, slots=True)
class Postings:
    """The index of one field over n rows. NaN has no place in it: no filter selects it.

    Attributes:
        rows: int32, the rows of the sparse values, by (value, row).
        dense_keys: (b,) int32, for each value with a bitmap, ascending by value: a row that has
            it; for a keyword_list the code of the text.
        dense_counts: (b,) int32, rows of each.
        dense_words: (b, ceil(n / 64)) uint64, the bitmaps.
        starts: (texts + 1,) uint32, for a keyword_list: the rows of the text of code c are
            `rows[starts[c] : starts[c + 1]]`; none for a text with a bitmap. Else empty.
        texts: for a keyword_list its distinct texts in the order of their UTF-8. Else empty.
    """

    rows: Rows
    dense_keys: npt.NDArray[np.int32]
    dense_counts: npt.NDArray[np.int32]
    dense_words: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.uint32]
    texts: pa.LargeStringArray


def scalar_values(column: Any) -> npt.NDArray[Any]:
    """Return what a column is ordered by: codes of a keyword, numbers, microseconds.

    (n,) of the column's own type, not copied; what lies under a null is arbitrary. A keyword has
    to be encoded by `annheal.filters.texts.sorted_dictionary`.
    """
    if pa.types.is_dictionary(column.type):
        return primitives(column.indices, np.dtype(np.int32))
    if pa.types.is_float64(column.type):
        return primitives(column, np.dtype(np.float64))
    return primitives(column, np.dtype(np.int64))


def build_postings(column: Any, type: AttributeType) -> Postings:
    """Return the index of a column of `rows.arrow`; `type` is one of `INDEXED_TYPES`."""
    if type is AttributeType.KEYWORD_LIST:
        return _of_lists(column)
    values = scalar_values(column)
    kept = _kept(column, values)
    rows = np.flatnonzero(kept).astype(np.int32) if kept is not None else None
    if rows is not None:
        values = values[rows]
    order = _stable_order(values)
    ordered = values[order]
    rows = order.astype(np.int32) if rows is None else rows[order]
    firsts = _first_of_runs(ordered)
    sparse, dense = _split(rows, firsts, row_count=len(column))
    return Postings(
        rows=sparse,
        dense_keys=rows[firsts[dense]],
        dense_counts=_run_lengths(firsts, len(rows))[dense],
        dense_words=_bitmaps(rows, firsts, dense, row_count=len(column)),
        starts=np.empty(0, dtype=np.uint32),
        texts=pa.array([], type=pa.large_string()),
    )


def _of_lists(column: Any) -> Postings:
    elements = column.flatten()
    if pa.types.is_dictionary(elements.type):
        elements = elements.dictionary_decode()
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    parents = np.repeat(np.arange(len(column), dtype=np.int32), lengths)
    if elements.null_count:
        present = present_mask(elements)
        elements, parents = elements.drop_null(), parents[present]
    encoded = elements.dictionary_encode()
    by_text = pc.array_sort_indices(encoded.dictionary)
    ranks = np.empty(len(by_text), dtype=np.int32)
    ranks[by_text.to_numpy()] = np.arange(len(by_text), dtype=np.int32)
    codes = ranks[encoded.indices.to_numpy()]
    order = _stable_order(codes)
    codes, rows = codes[order], parents[order]
    # A list may hold a text twice.
    repeated = np.zeros(len(codes), dtype=np.bool_)
    repeated[1:] = (codes[1:] == codes[:-1]) & (rows[1:] == rows[:-1])
    codes, rows = codes[~repeated], rows[~repeated]
    firsts = _first_of_runs(codes)
    sparse, dense = _split(rows, firsts, row_count=len(column))
    counts = _run_lengths(firsts, len(rows))
    held = counts.astype(np.int64)
    held[dense] = 0
    starts = np.zeros(len(held) + 1, dtype=np.uint32)
    starts[1:] = np.cumsum(held)
    return Postings(
        rows=sparse,
        dense_keys=dense.astype(np.int32),
        dense_counts=counts[dense],
        dense_words=_bitmaps(rows, firsts, dense, row_count=len(column)),
        starts=starts,
        texts=encoded.dictionary.take(by_text).cast(pa.large_string()),
    )


def _kept(column: Any, values: npt.NDArray[Any]) -> Mask | None:
    """Return which rows have a value that can be compared, or None when all have."""
    kept = present_mask(column) if column.null_count else None
    if values.dtype.kind == "f" and np.isnan(values).any():
        numbers: Mask = ~np.isnan(values)
        return numbers if kept is None else kept & numbers
    return kept


def _stable_order(values: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    narrow = values.dtype == np.int32 and len(values) and int(values.max()) < _NARROW_CODES_MAX
    # NumPy sorts 16-bit numbers by radix.
    return np.argsort(values.astype(np.uint16) if narrow else values, kind="stable")


def _first_of_runs(ordered: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where each run of equal values begins."""
    starts = np.ones(len(ordered), dtype=np.bool_)
    starts[1:] = ordered[1:] != ordered[:-1]
    return np.flatnonzero(starts).astype(np.int64, copy=False)


def _run_lengths(firsts: npt.NDArray[np.int64], end: int) -> npt.NDArray[np.int32]:
    return np.diff(firsts, append=end).astype(np.int32)


def _split(
    rows: Rows, firsts: npt.NDArray[np.int64], *, row_count: int
) -> tuple[Rows, npt.NDArray[np.int64]]:
    """Return the rows of the sparse runs, and the numbers of the dense ones."""
    lengths = _run_lengths(firsts, len(rows))
    is_dense = lengths.astype(np.int64) * _ROW_BITS > words_of(row_count) * WORD_BITS
    if not is_dense.any():
        return rows, np.empty(0, dtype=np.int64)
    return rows[np.repeat(~is_dense, lengths)], np.flatnonzero(is_dense)


def _bitmaps(
    rows: Rows,
    firsts: npt.NDArray[np.int64],
    dense: npt.NDArray[np.int64],
    *,
    row_count: int,
) -> npt.NDArray[np.uint64]:
    ends = np.append(firsts[1:], len(rows))
    found: list[Words] = [
        words_from_rows(rows[firsts[run] : ends[run]], row_count) for run in dense.tolist()
    ]
    empty = np.empty((0, words_of(row_count)), dtype=np.uint64)
    return np.stack(found) if found else empty
