"""The types of the kernels' arguments; imports numba."""

from __future__ import annotations

from typing import Any

from numba import types

from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.code_arrays import (
    Candidates,
    CodedQueries,
    MatchingRows,
    RowCodeArrays,
)

Signature = tuple[Any, ...]


def signature_of(kernel: Kernel) -> Signature:
    """Return the types of the arguments of `kernel`, in their order."""
    match kernel:
        case Kernel.COMPARE_BITMAP:
            return _compare_bitmap()
        case Kernel.COMPARE_ROWS:
            return _compare_rows()
        case Kernel.WALK:
            return _walk(types.float32)
        case Kernel.WALK_INT8:
            return _walk(types.uint8)
        case Kernel.WALK_FP16:
            return _walk(types.uint16)
        case Kernel.CODE_QUERIES:
            return _code_queries()
        case Kernel.COMPARE_CODES:
            return _compare_codes()
        case Kernel.CARRY_LINKS:
            return _carry_links()
        case Kernel.MARK_REACHED:
            return (_read(i4), _read(i8), i8, i8, i8, _written(i4), _written(i4))


i1, i2, i4, i8 = types.int8, types.int16, types.int32, types.int64
u1, u2, u4, u8 = types.uint8, types.uint16, types.uint32, types.uint64
f4, f8 = types.float32, types.float64


def _read(dtype: Any, dimensions: int = 1) -> Any:
    """Return the type of an array that kernels read: FAISS's may be read-only and unaligned."""
    return types.Array(dtype, dimensions, "C", readonly=True, aligned=False)


def _written(dtype: Any, dimensions: int = 1) -> Any:
    """Return the type of an array that kernels write."""
    return types.Array(dtype, dimensions, "C")


_results = (_written(f4, 2), _written(i8, 2))
_block_scratch = (_written(i4), _written(f4), _written(i8, 2), _written(i8))
_bitmap = (_read(u8), _read(u1))
_vectors = (_read(f4), i8, _read(f4), types.boolean)


def _compare_bitmap() -> Signature:
    return (*_vectors, *_bitmap, *_block_scratch, *_results)


def _compare_rows() -> Signature:
    return (*_vectors, _read(i8), *_block_scratch, *_results)


def _walk(element: Any) -> Signature:
    graph = (_read(i4), _read(i8), _read(i8), _read(element), _read(f4), _read(u1))
    scratch = (_written(u1), _written(i8), _written(i4), _written(f4), _written(i4), _written(i8))
    calls = (_read(i4), _read(f4), _read(i8))
    return (*graph, *calls, *scratch, *_results, _written(i8, 2), _written(u1))


def _compare_codes() -> Signature:
    row_codes = RowCodeArrays(
        planes=_read(i1),
        layout=_read(i8, 2),
        scales=_read(f4, 2),
        factors=_read(f4, 2),
        weights=_read(f4),
        norms=_read(f4),
        groups=_read(u1),
        group_bounds=_read(f8, 2),
    )
    coded = CodedQueries(
        vectors=_read(f4),
        codes=_read(i2),
        bytes=_read(i1),
        sums=_read(i4, 2),
        scales=_read(f4),
        offsets=_read(f4),
        rests=_read(f4, 2),
        shares=_read(f4, 2),
        errors=_read(f4, 2),
    )
    matching = MatchingRows(
        rows=_written(i4),
        products=_written(i4),
        shortlisted=_written(i4),
        upper_bounds=_written(f4),
    )
    candidates = Candidates(
        rows=_written(i4),
        products=_written(i4),
        values=_written(f8),
        squares=_written(f8),
        thresholds=_written(i4),
    )
    stored = (_read(f4), i8)
    bitmap = (types.boolean, *_bitmap)
    return (
        *row_codes,
        *stored,
        *coded,
        *bitmap,
        *matching,
        *candidates,
        *_block_scratch,
        *_results,
    )


def _code_queries() -> Signature:
    axes = (_read(f4), _read(u2), _read(f4), _read(i8), f8, _read(f8))
    coded = CodedQueries(
        vectors=_read(f4, 2),
        codes=_written(i2, 2),
        bytes=_written(i1, 3),
        sums=_written(i4, 2),
        scales=_written(f4),
        offsets=_written(f4),
        rests=_written(f4, 2),
        shares=_written(f4, 2),
        errors=_written(f4, 2),
    )
    vectors, *results = coded
    return (vectors, *axes, i8, f8, types.boolean, *results)


def _carry_links() -> Signature:
    graph = (_read(i4), _read(i8), _read(i8), _read(i4))
    rows = (_read(i8), _read(i4), _read(f4), _written(i8))
    scratch = (_written(u4), _written(i4), _written(i4), _written(f4), _written(i8), _written(i8))
    return (*graph, *rows, *scratch, _read(i8), _written(i4), _written(i8))
