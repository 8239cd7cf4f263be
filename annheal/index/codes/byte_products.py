"""Products of 8-bit codes with 16-bit queries, sixteen rows at a time where the processor can.

Imported by `annheal.index.codes.plane_kernel` alone, because importing numba takes most of a
second.

What LLVM makes of the plain loop widens every code to 16 bits first. AVX-512 VNNI multiplies and
adds 64 bytes in one instruction, of which LLVM knows no general form, so it is written out here.
Sixteen rows at a time share the adding up of lanes, which is most of the work for rows of a line:
50,000 of 100,000 rows of 64 bytes took 0.055 ms, one by one 0.11.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config, int32, njit, types, uint8, uint64
from numba.core import cgutils
from numba.extending import intrinsic

from annheal.index.codes.code_layout import LINE_BYTES, NIBBLE_LINE, ROWS_AT_ONCE

_WORD, _LONG = ir.IntType(32), ir.IntType(64)
_LANES = ir.VectorType(_WORD, ROWS_AT_ONCE)


def _has_vnni() -> bool:
    settings: Any = config
    if settings.CPU_NAME or settings.CPU_FEATURES or not settings.ENABLE_AVX:
        return False  # code for another processor was asked for
    found = binding.get_host_cpu_features()
    return bool(found.get("avx512f") and found.get("avx512vnni"))


HAS_VNNI = _has_vnni()
if HAS_VNNI:
    # numba compiles no assembly of its own and so leaves the assembler out.
    binding.initialize_native_asmparser()

_MULTIPLY_ADD = ir.InlineAsm(
    ir.FunctionType(_LANES, [_LANES] * 3), "vpdpbusd $2, $1, $0", "=v,v,v,0"
)
"""Adds to each lane the products of four unsigned bytes with four signed ones."""


def _of_lanes(word: int) -> Any:
    return ir.Constant(_LANES, [ir.Constant(_WORD, word)] * ROWS_AT_ONCE)


def _load_line(builder: Any, view: Any, position: Any) -> Any:
    address = builder.bitcast(builder.gep(view.data, [position]), _LANES.as_pointer())
    return builder.load(address, align=1)


def _sums_of_lanes(builder: Any, vector_of: Callable[[int], Any]) -> Any:
    """Return a vector of which lane r is the sum of all lanes of `vector_of(r)`.

    Two vectors are halved and put together until one is left, which takes a fifth of the
    instructions of sixteen sums.
    """

    def of(first: int, count: int) -> Any:
        if count == 1:
            return vector_of(first)
        step = count // 2
        left, right = of(first, step), of(first + step, step)
        lanes = range(ROWS_AT_ONCE)
        taken = [lane - (lane // step % 2) * (step - ROWS_AT_ONCE) for lane in lanes]
        mask_type = ir.VectorType(_WORD, ROWS_AT_ONCE)
        halves = [
            builder.shuffle_vector(left, right, ir.Constant(mask_type, [n + more for n in taken]))
            for more in (0, step)
        ]
        return builder.add(*halves)

    return of(0, ROWS_AT_ONCE)


def _unsigned(builder: Any, line: Any, *, nibbles: bool) -> list[Any]:
    """Return a line of codes as the instruction takes one of its operands."""
    if not nibbles:
        # Flipping the sign bit adds 128.
        return [builder.xor(line, _of_lanes(0x80808080))]
    lowest, higher = _of_lanes(0x0F0F0F0F), builder.lshr(line, _of_lanes(4))
    return [builder.and_(line, lowest), builder.and_(higher, lowest)]


def _line_product(builder: Any, parts: list[Any], query: tuple[list[Any], list[Any]]) -> Any:
    """Return the product of a line of codes with 256 * the first lines of a query + the second."""
    sums = []
    for lines in query:
        total = ir.Constant(_LANES, None)
        for part, line in zip(parts, lines, strict=True):
            total = builder.call(_MULTIPLY_ADD, [part, line, total])
        sums.append(total)
    return builder.add(builder.shl(sums[0], _of_lanes(8)), sums[1])


def _rows_by_lines(*, nibbles: bool) -> Any:
    """Return a call that writes the products of sixteen rows' codes with a query, modulo 2 ** 32.

    The codes of row r begin at `base` + r * `width`, which is of whole lines. `rows[first]` to
    `rows[first + 15]` are the rows, `found[at]` and on takes their products, which are of codes
    plus 128, or of nibbles as they are stored. The query is 256 * the bytes at `high` + those at
    `low`. Only with `HAS_VNNI`.
    """
    # A line of nibbles takes two lines of the query.
    query_lines = NIBBLE_LINE // LINE_BYTES if nibbles else 1

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        planes, listed, query, results = (
            context.make_array(signature.args[number])(context, builder, arguments[number])
            for number in (0, 2, 4, 8)
        )
        base, first, high, low, width, at = (arguments[number] for number in (1, 3, 5, 6, 7, 9))
        totals = cgutils.alloca_once_value(builder, ir.Constant(_LANES, None))
        limits = (_LONG(0), width, _LONG(LINE_BYTES))
        with cgutils.for_range_slice(builder, *limits, intp=_LONG) as (offset, _):
            begins = [
                builder.add(builder.mul(offset, _LONG(query_lines)), _LONG(LINE_BYTES * n))
                for n in range(query_lines)
            ]
            higher, lower = (
                [_load_line(builder, query, builder.add(byte, begin)) for begin in begins]
                for byte in (high, low)
            )

            def product(r: int) -> Any:
                place = builder.gep(listed.data, [builder.add(first, _LONG(r))])
                start = builder.mul(builder.zext(builder.load(place), _LONG), width)
                line = _load_line(builder, planes, builder.add(builder.add(base, start), offset))
                return _line_product(
                    builder, _unsigned(builder, line, nibbles=nibbles), (higher, lower)
                )

            more = _sums_of_lanes(builder, product)
            builder.store(builder.add(builder.load(totals), more), totals)
        target = builder.bitcast(builder.gep(results.data, [at]), _LANES.as_pointer())
        builder.store(builder.load(totals), target, align=1)
        return context.get_dummy_value()

    def products(
        typing_context: Any,
        codes: Any,
        base: Any,
        rows: Any,
        first: Any,
        bytes_: Any,
        high: Any,
        low: Any,
        width: Any,
        found: Any,
        at: Any,
    ) -> Any:
        place = types.uint64
        return (
            types.void(codes, place, rows, place, bytes_, place, place, place, found, place),
            emit,
        )

    return intrinsic(products)


whole_products: Any = _rows_by_lines(nibbles=False)
nibble_products: Any = _rows_by_lines(nibbles=True)


@njit(nogil=True)
def whole_product(codes: Any, start: Any, query: Any, begin: Any, width: Any) -> Any:
    """Return the product of the codes from `start` on with the query from `begin` on, int32."""
    total = int32(0)
    for j in range(uint64(0), width):
        total += int32(codes[start + j]) * int32(query[begin + j])
    return total


@njit(nogil=True)
def nibble_product(codes: Any, start: Any, query: Any, begin: Any, width: Any) -> Any:
    """As `whole_product` with nibbles of codes, as they are stored."""
    total, line = int32(0), uint64(LINE_BYTES)
    for offset in range(uint64(0), width, line):
        at = begin + offset + offset
        for j in range(uint64(0), line):
            both = uint8(codes[start + offset + j])
            total += int32(both & uint8(15)) * int32(query[at + j])
            total += int32(both >> uint8(4)) * int32(query[at + line + j])
    return total
