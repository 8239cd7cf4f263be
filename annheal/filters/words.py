"""Sets of rows as packed words: bit `row % 64` of word `row // 64`, padding bits zero.

Arrays of words that are handed around are never changed; they may be mapped files.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from annheal.filters.columns import Mask

Words: TypeAlias = npt.NDArray[np.uint64]
Rows: TypeAlias = npt.NDArray[np.int32]

WORD_BITS: Final = 64
_WORD_BYTES: Final = 8
_BIT_OF_ROW: Final = (1 << np.arange(8)).astype(np.uint8)
_SCATTER_ONE_BY_ONE: Final = 256
"""One row in so many, or fewer: bits are set one by one, not through a mask of bytes."""


def words_of(row_count: int) -> int:
    """Return how many words a set over `row_count` rows has."""
    return -(-row_count // WORD_BITS)


def no_rows(row_count: int) -> Words:
    """Return the empty set."""
    return np.zeros(words_of(row_count), dtype=np.uint64)


def every_row(row_count: int) -> Words:
    """Return the set of all rows."""
    words = np.full(words_of(row_count), ~np.uint64(0))
    _clear_padding(words, row_count)
    return words


def inverted(words: Words, row_count: int) -> Words:
    """Return the rows that are not in `words`."""
    result = ~words
    _clear_padding(result, row_count)
    return result


def count_rows(words: Words) -> int:
    """Return how many rows are in the set."""
    return int(np.bitwise_count(words).sum())


def words_from_mask(mask: Mask) -> Words:
    """Return the set of the rows where `mask` (row_count,) is true."""
    return _padded(np.packbits(mask, bitorder="little"), len(mask))


def words_from_rows(rows: Rows, row_count: int) -> Words:
    """Return the set of the given rows, which may repeat."""
    if len(rows) * _SCATTER_ONE_BY_ONE > row_count:
        mask = np.zeros(row_count, dtype=np.bool_)
        mask[rows] = True
        return words_from_mask(mask)
    words = no_rows(row_count)
    np.bitwise_or.at(words.view(np.uint8), rows >> 3, _BIT_OF_ROW[rows & 7])
    return words


def words_from_arrow(buffer: Any, *, offset: int, row_count: int) -> Words:
    """Return `row_count` bits of an Arrow bitmap from bit `offset` on, in place where possible."""
    start, stop = offset // 8, (offset + row_count + 7) // 8
    octets = np.frombuffer(buffer, dtype=np.uint8, count=stop - start, offset=start)
    if offset % 8:
        bits = np.unpackbits(octets, bitorder="little")[offset % 8 :][:row_count]
        return words_from_mask(bits.view(np.bool_))
    words = _padded(octets, row_count)
    if row_count % WORD_BITS and int(words[-1]) >> (row_count % WORD_BITS):
        words = words.copy()
        _clear_padding(words, row_count)
    return words


def packed_bytes(words: Words, row_count: int) -> npt.NDArray[np.uint8]:
    """Return the set as `annheal.index.LiveBitmap` takes it: (ceil(row_count / 8),) uint8."""
    return words.view(np.uint8)[: (row_count + 7) // 8]


def _padded(octets: npt.NDArray[np.uint8], row_count: int) -> Words:
    size_bytes = words_of(row_count) * _WORD_BYTES
    if len(octets) == size_bytes:
        return octets.view(np.uint64)
    whole = np.zeros(size_bytes, dtype=np.uint8)
    whole[: len(octets)] = octets
    return whole.view(np.uint64)


def _clear_padding(words: Words, row_count: int) -> None:
    if row_count % WORD_BITS:
        words[-1] &= np.uint64((1 << row_count % WORD_BITS) - 1)
