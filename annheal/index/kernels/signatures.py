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
    """Return the types of the arguments, in the order of the function's."""
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
            return (_given(i4), _given(i8), i8, i8, i8, _own(i4), _own(i4))


i1, i2, i4, i8 = types.int8, types.int16, types.int32, types.int64
u1, u2, u4, u8 = types.uint8, types.uint16, types.uint32, types.uint64
f4, f8 = types.float32, types.float64


def _given(dtype: Any, dimensions: int = 1) -> Any:
    """Return an array that is only read: what FAISS owns may be read-only and unaligned."""
    return types.Array(dtype, dimensions, "C", readonly=True, aligned=False)


def _own(dtype: Any, dimensions: int = 1) -> Any:
    """Return an array of numpy's that is written."""
    return types.Array(dtype, dimensions, "C")


_results = (_own(f4, 2), _own(i8, 2))
_compared = (_own(i4), _own(f4), _own(i8, 2), _own(i8))
_bitmap = (_given(u8), _given(u1))
_vectors = (_given(f4), i8, _given(f4), types.boolean)


def _compare_bitmap() -> Signature:
    return (*_vectors, *_bitmap, *_compared, *_results)


def _compare_rows() -> Signature:
    return (*_vectors, _given(i8), *_compared, *_results)


def _walk(element: Any) -> Signature:
    graph = (_given(i4), _given(i8), _given(i8), _given(element), _given(f4), _given(u1))
    scratch = (_own(u1), _own(i8), _own(i4), _own(f4), _own(i4), _own(i8))
    return (*graph, _given(i4), _given(i8), *scratch, *_results, _own(i8, 2), _own(u1))


def _compare_codes() -> Signature:
    row_codes = RowCodeArrays(
        planes=_given(i1),
        layout=_given(i8, 2),
        scales=_given(f4, 2),
        factors=_given(f4, 2),
        weights=_given(f4),
        norms=_given(f4),
        groups=_given(u1),
        group_bounds=_given(f8, 2),
    )
    coded = CodedQueries(
        vectors=_given(f4),
        codes=_given(i2),
        bytes=_given(i1),
        sums=_given(i4, 2),
        scales=_given(f4),
        offsets=_given(f4),
        rests=_given(f4, 2),
        shares=_given(f4, 2),
        errors=_given(f4, 2),
    )
    matching = MatchingRows(
        rows=_own(i4), products=_own(i4), shortlisted=_own(i4), upper_bounds=_own(f4)
    )
    candidates = Candidates(
        rows=_own(i4),
        products=_own(i4),
        values=_own(f8),
        squares=_own(f8),
        thresholds=_own(i4),
    )
    stored = (_given(f4), i8)
    bitmap = (types.boolean, *_bitmap)
    return (*row_codes, *stored, *coded, *bitmap, *matching, *candidates, *_compared, *_results)


def _code_queries() -> Signature:
    axes = (_given(f4), _given(u2), _given(f4), _given(i8), f8, _given(f8))
    coded = CodedQueries(
        vectors=_given(f4, 2),
        codes=_own(i2, 2),
        bytes=_own(i1, 3),
        sums=_own(i4, 2),
        scales=_own(f4),
        offsets=_own(f4),
        rests=_own(f4, 2),
        shares=_own(f4, 2),
        errors=_own(f4, 2),
    )
    vectors, *results = coded
    return (vectors, *axes, i8, f8, types.boolean, *results)


def _carry_links() -> Signature:
    graph = (_given(i4), _given(i8), _given(i8), _given(i4))
    rows = (_given(i8), _given(i4), _given(f4), _own(i8))
    scratch = (_own(u4), _own(i4), _own(i4), _own(f4), _own(i8), _own(i8))
    return (*graph, *rows, *scratch, _given(i8), _own(i4), _own(i8))
