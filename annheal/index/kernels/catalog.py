"""The kernels: their names, their sources, and the order in which they are compiled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from annheal.model.collection import VectorStorage


class Kernel(StrEnum):
    """A compiled function. Kernels are compiled and loaded in this order, the most useful first.

    On one core of a server of 2024 the first two take 3 s, all that searches use take 40 s.
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
"""Kernels of searches of float32 vectors."""
MERGE_KERNELS: Final = (Kernel.CARRY_LINKS, Kernel.MARK_REACHED)
"""Kernels that extend the graph of a base segment."""


@dataclass(frozen=True, slots=True)
class KernelSource:
    """The Python function that is compiled. Its module imports numba, which takes half a second."""

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
    """Return the kernel that walks a graph with vectors in `storage`."""
    return _WALKS[storage]
