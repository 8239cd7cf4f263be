"""Bitmaps of the rows of an index that a search may return."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

_BIT_OF_ROW = (1 << np.arange(8)).astype(np.uint8)


class LiveBitmap:
    """An immutable set of rows of one index: those that are live, or live and match a filter.

    Bit `row % 8` (little-endian order) of byte `row // 8` says whether a row is in the set; the
    padding bits of the last byte are zero. Searches only read it and its FAISS selector, so any
    number of threads may use it.

    Attributes:
        rows: rows of the index that it describes.
        count: rows in the set.
        packed: (ceil(rows / 8),) uint8, read-only.
    """

    __slots__ = ("_selector", "count", "packed", "rows")

    def __init__(self, packed: npt.NDArray[np.uint8], *, rows: int, count: int) -> None:
        """Wrap `packed` without copying it. The class methods below count the rows."""
        if packed.dtype != np.uint8 or packed.shape != ((rows + 7) // 8,):
            raise ValueError(f"{packed.dtype} {packed.shape} is no bitmap of {rows} rows")
        self.rows = rows
        self.count = count
        self.packed = np.ascontiguousarray(packed)
        self.packed.flags.writeable = False
        # IDSelectorBitmap keeps a reference to the array; is_member() only reads it.
        self._selector: Any = faiss.IDSelectorBitmap(self.packed)

    @classmethod
    def from_mask(cls, mask: npt.NDArray[np.bool_]) -> LiveBitmap:
        """Return the set of rows where `mask` (rows,) is true."""
        packed = np.packbits(mask, bitorder="little")
        return cls(packed, rows=len(mask), count=int(np.count_nonzero(mask)))

    @classmethod
    def from_packed(cls, packed: npt.NDArray[np.uint8], *, rows: int) -> LiveBitmap:
        """Return the set of the rows whose bits are set; padding bits must be zero."""
        return cls(packed, rows=rows, count=int(np.bitwise_count(packed).sum()))

    @classmethod
    def from_rows(cls, members: npt.NDArray[np.int64], *, rows: int) -> LiveBitmap:
        """Return the set of the row numbers `members`, which may repeat."""
        mask = np.zeros(rows, dtype=np.bool_)
        mask[members] = True
        return cls.from_mask(mask)

    @property
    def selector(self) -> Any:
        """The FAISS selector, for `annheal.index` alone."""
        return self._selector

    def mask(self) -> npt.NDArray[np.bool_]:
        """Return (rows,) bool, True for rows in the set."""
        return np.unpackbits(self.packed, count=self.rows, bitorder="little").view(np.bool_)

    def members(self) -> npt.NDArray[np.int64]:
        """Return the row numbers in the set, ascending, (count,) int64."""
        return np.flatnonzero(self.mask()).astype(np.int64, copy=False)

    def contains(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return (n,) bool, True for those of `rows` (n,) that are in the set; all must exist."""
        inside: npt.NDArray[np.bool_] = (self.packed[rows >> 3] & _BIT_OF_ROW[rows & 7]) != 0
        return inside

    def __and__(self, other: LiveBitmap) -> LiveBitmap:
        """Return the rows that are in both sets of the same index."""
        if other.rows != self.rows:
            raise ValueError(f"bitmaps of {self.rows} and {other.rows} rows")
        return LiveBitmap.from_packed(self.packed & other.packed, rows=self.rows)
