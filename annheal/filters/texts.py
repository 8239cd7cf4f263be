"""Sorted distinct texts, as they lie in Arrow buffers, and the ranges that filters select."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from annheal.model.filter import ComparisonOp

_HASHED_TEXTS_PER_STEP: Final = 32
"""Texts that Arrow hashes in the time of one step of a binary search in Python, measured."""


class SortedTexts:
    """Distinct texts in the order of their UTF-8 bytes; the code of a text is its position."""

    __slots__ = ("_texts", "_view", "count")

    def __init__(self, texts: pa.StringArray | pa.LargeStringArray) -> None:
        """Wrap a sorted array without nulls or repeats; nothing is copied."""
        self._texts = texts
        self.count = len(texts)
        self._view = _TextBytes(texts)

    def span(self, op: ComparisonOp, text: str) -> tuple[int, int]:
        """Return the codes [first, end) of the texts for which `text_of_code op text` holds."""
        wanted = text.encode()
        match op:
            case ComparisonOp.EQ:
                first = bisect_left(self._view, wanted)
                return first, first + (first < self.count and self._view[first] == wanted)
            case ComparisonOp.LT:
                return 0, bisect_left(self._view, wanted)
            case ComparisonOp.LE:
                return 0, bisect_right(self._view, wanted)
            case ComparisonOp.GT:
                return bisect_right(self._view, wanted), self.count
            case ComparisonOp.GE:
                return bisect_left(self._view, wanted), self.count
        raise ValueError(f"{op} selects no range")

    def prefix_span(self, prefix: str) -> tuple[int, int]:
        """Return the codes [first, end) of the texts that start with `prefix`."""
        if not prefix:
            return 0, self.count
        wanted = prefix.encode()
        # No byte of UTF-8 is 0xFF, so the last one can grow by one.
        behind = wanted[:-1] + bytes([wanted[-1] + 1])
        return bisect_left(self._view, wanted), bisect_left(self._view, behind)

    def codes(self, wanted: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the codes of those of the distinct `wanted` texts that there are, ascending."""
        if len(wanted) * self.count.bit_length() * _HASHED_TEXTS_PER_STEP > self.count:
            values: Any = pa.array(wanted, type=self._texts.type)
            hits = pc.is_in(self._texts, value_set=values)
            return np.flatnonzero(hits.to_numpy(zero_copy_only=False)).astype(np.int64, copy=False)
        spans = (self.span(ComparisonOp.EQ, text) for text in wanted)
        return np.array(sorted(first for first, end in spans if first < end), dtype=np.int64)


class _TextBytes(Sequence[bytes]):
    """UTF-8 of single texts, read in place: a scalar of Arrow costs several times as much."""

    __slots__ = ("_bytes", "_offsets")

    def __init__(self, texts: Any) -> None:
        dtype = np.dtype(np.int64 if pa.types.is_large_string(texts.type) else np.int32)
        self._offsets: npt.NDArray[Any] = np.zeros(1, dtype=dtype)
        self._bytes = memoryview(b"")
        if len(texts):
            _, offsets, content = texts.buffers()
            self._offsets = np.frombuffer(
                offsets, dtype=dtype, count=len(texts) + 1, offset=texts.offset * dtype.itemsize
            )
            self._bytes = memoryview(b"" if content is None else content)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].tobytes()


def sorted_dictionary(column: Any) -> Any:
    """Return a dictionary-encoded column with codes in the order of the texts.

    Its dictionary must have no repeats and no nulls, which Arrow's `dictionary_encode` sees to.
    """
    order = pc.array_sort_indices(column.dictionary)
    ranks = np.empty(len(order), dtype=np.int32)
    ranks[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
    indices = column.indices
    missing = None
    if indices.null_count:
        missing = indices.is_null().to_numpy(zero_copy_only=False)
        indices = indices.fill_null(0)
    codes = indices.to_numpy()
    ranked = ranks[codes] if len(ranks) else np.zeros(len(codes), dtype=np.int32)
    return pa.DictionaryArray.from_arrays(
        pa.array(ranked, type=pa.int32(), mask=missing), column.dictionary.take(order)
    )
