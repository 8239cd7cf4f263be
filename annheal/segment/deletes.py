"""Delete vectors: which rows of a segment are dead. docs/formats/segment.md specifies the bytes."""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import xxhash

from annheal.errors import DataCorruption, FailedPrecondition
from annheal.index import LiveBitmap

_MAGIC = b"ANDV"
_VERSION = 1
# magic, version, two spare bytes, rows, dead rows; then the bits and the xxh3-128 of all before it.
_HEADER = struct.Struct("<4sHHQQ")
_CHECKSUM_BYTES = 16
_BIT_OF_ROW = (1 << np.arange(8)).astype(np.uint8)


class DeleteVector:
    """The dead rows of one segment; immutable, a change gives a new one.

    Attributes:
        rows: rows of the segment.
        dead_count: dead rows among them.
        live: the live rows for `VectorIndex.search`; None when no row is dead.
    """

    __slots__ = ("_dead", "dead_count", "live", "rows")

    def __init__(self, dead: npt.NDArray[np.uint8], *, rows: int) -> None:
        """Wrap packed bits, little-endian, one per row, padding zero; `dead` is not copied."""
        self.rows = rows
        self._dead = dead
        self._dead.flags.writeable = False
        self.dead_count = int(np.bitwise_count(dead).sum())
        self.live: LiveBitmap | None = None
        if self.dead_count:
            live = ~dead
            if rows % 8:
                live[-1] &= np.uint8((1 << rows % 8) - 1)
            self.live = LiveBitmap(live, rows=rows, count=rows - self.dead_count)

    @classmethod
    def empty(cls, rows: int) -> DeleteVector:
        """Return the delete vector of a segment in which every row lives."""
        return cls(np.zeros((rows + 7) // 8, dtype=np.uint8), rows=rows)

    @property
    def packed(self) -> npt.NDArray[np.uint8]:
        """The bits, (ceil(rows / 8),) uint8, little-endian, read-only: 1 is dead, padding is 0."""
        return self._dead

    @property
    def live_count(self) -> int:
        """Rows that are not dead."""
        return self.rows - self.dead_count

    def with_dead(self, rows: npt.NDArray[np.int64]) -> DeleteVector:
        """Return a vector in which `rows` (all in range, repeats allowed) are dead too."""
        if not len(rows):
            return self
        if int(rows.min()) < 0 or int(rows.max()) >= self.rows:
            raise ValueError(f"row numbers outside [0, {self.rows})")
        dead = self._dead.copy()
        np.bitwise_or.at(dead, rows >> 3, _BIT_OF_ROW[rows & 7])
        return DeleteVector(dead, rows=self.rows)

    def is_dead(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for each of `rows` (all in range) whether it is dead."""
        dead: npt.NDArray[np.bool_] = (self._dead[rows >> 3] & _BIT_OF_ROW[rows & 7]) != 0
        return dead

    def dead_mask(self) -> npt.NDArray[np.bool_]:
        """Return (rows,) bool, true where a row is dead."""
        return np.unpackbits(self._dead, count=self.rows, bitorder="little").view(np.bool_)

    def dead_rows(self) -> npt.NDArray[np.int64]:
        """Return the dead row numbers, ascending, (dead_count,) int64."""
        return np.flatnonzero(self.dead_mask()).astype(np.int64, copy=False)

    def live_rows(self) -> npt.NDArray[np.int64]:
        """Return the live row numbers, ascending, (live_count,) int64."""
        return np.flatnonzero(~self.dead_mask()).astype(np.int64, copy=False)


def encode_delete_vector(vector: DeleteVector) -> bytes:
    """Return the object to store."""
    header = _HEADER.pack(_MAGIC, _VERSION, 0, vector.rows, vector.dead_count)
    body = header + vector.packed.tobytes()
    return body + xxhash.xxh3_128_digest(body)


def decode_delete_vector(body: bytes, *, key: str, rows: int) -> DeleteVector:
    """Return the vector stored in the object `key`, of a segment of `rows` rows.

    Raises `DataCorruption`, naming the key, when the bytes are not that vector, and
    `FailedPrecondition` when a newer format wrote them.
    """
    facts = {"key": key}
    content, checksum = body[:-_CHECKSUM_BYTES], body[-_CHECKSUM_BYTES:]
    if len(content) < _HEADER.size or xxhash.xxh3_128_digest(content) != checksum:
        raise DataCorruption(f"delete vector {key} does not match its checksum", metadata=facts)
    magic, version, _, stored_rows, dead_count = _HEADER.unpack_from(content)
    if magic == _MAGIC and version > _VERSION:
        raise FailedPrecondition(
            f"delete vector {key} has format {version}; this version of Annheal reads formats"
            f" up to {_VERSION}: upgrade this process",
            metadata=facts,
        )
    bits = np.frombuffer(content, dtype=np.uint8, offset=_HEADER.size)
    if magic != _MAGIC or stored_rows != rows or len(bits) != (rows + 7) // 8:
        raise DataCorruption(
            f"delete vector {key} is not one of a segment of {rows} rows", metadata=facts
        )
    vector = DeleteVector(bits, rows=rows)
    if vector.dead_count != dead_count:
        raise DataCorruption(
            f"delete vector {key} holds {vector.dead_count} dead rows, says {dead_count}",
            metadata=facts,
        )
    return vector
