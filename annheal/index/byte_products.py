"""Products of 8-bit codes with 16-bit queries, a cache line at a time where the processor can.

Imported by `annheal.index.scan_kernel` alone, because importing numba takes most of a second.

What LLVM makes of the plain loop widens every code to 16 bits first. AVX-512 VNNI multiplies and
adds 64 bytes in one instruction, of which LLVM knows no general form, so it is written out here.
Comparing 50,000 of 100,000 rows of 256 bytes took 0.23 instead of 0.32 ms.
"""

from __future__ import annotations

from typing import Any

from llvmlite import binding, ir
from numba import config, int32, njit, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic

VNNI_LINE = 64
"""Codes that one instruction takes; other widths are multiplied by the plain loop."""

_LANES = ir.VectorType(ir.IntType(32), VNNI_LINE // 4)


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


def _unsigned_products(
    typing_context: Any, codes: Any, start: Any, bytes_: Any, high: Any, low: Any, width: Any
) -> Any:
    """Return the sum of (code + 128) * (256 * high byte + low byte), modulo 2 ** 32.

    `codes` and `bytes_` are int8; `width` is a multiple of `VNNI_LINE`.
    """
    position = types.uint64
    signature = types.int32(codes, position, bytes_, position, position, position)

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kinds, long = signature.args, ir.IntType(64)
        held = context.make_array(kinds[0])(context, builder, arguments[0])
        asked = context.make_array(kinds[2])(context, builder, arguments[2])
        multiply = ir.InlineAsm(
            ir.FunctionType(_LANES, [_LANES] * 3), "vpdpbusd $2, $1, $0", "=v,v,v,0"
        )
        # The instruction takes one unsigned operand: flipping the sign bit adds 128.
        sign_bits = ir.Constant(_LANES, [ir.Constant(ir.IntType(32), 0x80808080)] * _LANES.count)

        def line(view: Any, base: Any, offset: Any) -> Any:
            address = builder.gep(view.data, [builder.add(base, offset)])
            return builder.load(builder.bitcast(address, _LANES.as_pointer()), align=1)

        nothing = ir.Constant(_LANES, None)
        sums = [cgutils.alloca_once_value(builder, nothing) for _ in range(2)]
        limits = (long(0), arguments[5], long(VNNI_LINE))
        with cgutils.for_range_slice(builder, *limits, intp=long) as (offset, _):
            code = builder.xor(line(held, arguments[1], offset), sign_bits)
            for total, base in zip(sums, arguments[3:5], strict=True):
                byte = line(asked, base, offset)
                builder.store(builder.call(multiply, [code, byte, builder.load(total)]), total)
        eight = ir.Constant(_LANES, [ir.Constant(ir.IntType(32), 8)] * _LANES.count)
        high_sum, low_sum = (builder.load(total) for total in sums)
        add_lanes = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.IntType(32), [_LANES]),
            "llvm.vector.reduce.add.v16i32",
        )
        return builder.call(add_lanes, [builder.add(builder.shl(high_sum, eight), low_sum)])

    return signature, emit


_by_lines: Any = intrinsic(_unsigned_products)


@njit(nogil=True)
def product(codes: Any, start: Any, asked: Any, query: Any, width: Any) -> Any:
    """Return the product of the row that starts at `start` with the query at `query`, int32."""
    total = int32(0)
    for j in range(uint64(0), width):
        total += int32(codes[start + j]) * int32(asked[query + j])
    return total


@njit(nogil=True)
def line_product(codes: Any, start: Any, bytes_: Any, high: Any, low: Any, width: Any) -> Any:
    """As `product` plus 128 times the sum of the query: see `excess`.

    `high` and `low` are where the query's bytes begin; only with `HAS_VNNI`, and for a `width` of
    whole lines.
    """
    return _by_lines(codes, start, bytes_, high, low, width)


@njit(nogil=True)
def excess(asked: Any, query: Any, width: Any) -> Any:
    """Return what `line_product` is too large by, modulo 2 ** 32."""
    total = int32(0)
    for j in range(uint64(0), width):
        total += int32(asked[query + j])
    return int32(total * int32(128))
