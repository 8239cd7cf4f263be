"""Reading single texts of an Arrow column by its offsets, without touching the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

FEW_TEXTS = 64
"""Up to so many texts are read one by one.

Ten ids of 100,000 take 54 us so and 222 us by Arrow's `take` while the caches hold something else,
as they do after a walk; 100 ids take 47 and 25 us.
"""

Rows = npt.NDArray[np.int64]
types: Any = pa.types


def texts_at(column: Any, rows: Rows) -> list[str]:
    """Return the texts of a column without nulls at `rows` (n,), in their order."""
    if len(rows) > FEW_TEXTS:
        found: list[str] = column.take(pa.array(rows, type=pa.int64())).to_pylist()
        return found
    ends = offsets_of(column)
    text = memoryview(column.buffers()[2] or b"")
    return [
        str(text[start:stop], "utf-8")
        for start, stop in zip(ends[rows].tolist(), ends[rows + 1].tolist(), strict=True)
    ]


def text_bytes(column: Any, rows: Rows) -> npt.NDArray[np.int64]:
    """Return the bytes of the given texts or binaries of an Arrow column, (n,) int64.

    Only the offsets are read: a mapped column is not loaded for it.
    """
    ends = offsets_of(column)
    lengths: npt.NDArray[np.int64] = (ends[rows + 1] - ends[rows]).astype(np.int64)
    return lengths


def offsets_of(column: Any) -> npt.NDArray[Any]:
    """Return the n + 1 offsets of a column of texts, binaries or lists."""
    kind = column.type
    large = types.is_large_binary(kind) or types.is_large_string(kind) or types.is_large_list(kind)
    buffer = column.buffers()[1]
    if buffer is None or not buffer.size:
        return np.zeros(len(column) + 1, dtype=np.int64)
    ends = np.frombuffer(buffer, dtype=np.int64 if large else np.int32)
    return ends[column.offset : column.offset + len(column) + 1]
