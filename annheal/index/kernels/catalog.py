"""The kernels by name, where each is written, and the order in which they are compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from annheal.model.collection import VectorStorage


class Kernel(StrEnum):
    """One compiled function. They are compiled and loaded in this order, the soonest useful first.

    Comparison takes 3 s of one core of a server of 2024, everything that searches use 40 s.
    """

    COMPARE_BITMAP = "compare-bitmap"
    COMPARE_ROWS = "compare-rows"
    WALK = "walk"
    CODE_QUERIES = "code-queries"
    COMPARE_CODES = "compare-codes"
    WALK_INT8 = "walk-int8"
    WALK_FP16 = "walk-fp16"
    CARRY_LINKS = "carry-links"
    MARK_REACHED = "mark-reached"


SEARCH_KERNELS: Final = (
    Kernel.COMPARE_BITMAP,
    Kernel.COMPARE_ROWS,
    Kernel.WALK,
    Kernel.CODE_QUERIES,
    Kernel.COMPARE_CODES,
)
"""What a search of float32 vectors may use."""
MERGE_KERNELS: Final = (Kernel.CARRY_LINKS, Kernel.MARK_REACHED)
"""What carries the graph of one segment over into another."""


@dataclass(frozen=True, slots=True)
class KernelSource:
    """The Python function that is compiled. The module imports numba, which takes half a second."""

    module: str
    function: str


_WALK: Final = KernelSource("annheal.index.walk.walk_kernel", "walk")
SOURCES: Final[Mapping[Kernel, KernelSource]] = {
    Kernel.COMPARE_BITMAP: KernelSource("annheal.index.exact_kernel", "compare_bitmap"),
    Kernel.COMPARE_ROWS: KernelSource("annheal.index.exact_kernel", "compare_rows"),
    Kernel.WALK: _WALK,
    Kernel.CODE_QUERIES: KernelSource("annheal.index.codes.query_kernel", "code_queries"),
    Kernel.COMPARE_CODES: KernelSource("annheal.index.codes.scan_kernel", "compare_codes"),
    Kernel.WALK_INT8: _WALK,
    Kernel.WALK_FP16: _WALK,
    Kernel.CARRY_LINKS: KernelSource("annheal.index.carry.merge_kernel", "carry_links"),
    Kernel.MARK_REACHED: KernelSource("annheal.index.carry.merge_kernel", "mark_reached"),
}

_WALKS: Final = {
    VectorStorage.FLOAT32: Kernel.WALK,
    VectorStorage.INT8: Kernel.WALK_INT8,
    VectorStorage.FP16: Kernel.WALK_FP16,
}


def walk_over(storage: VectorStorage) -> Kernel:
    """Return the kernel that walks a graph over vectors of `storage`."""
    return _WALKS[storage]
