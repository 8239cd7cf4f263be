"""The compiled kernels of merges: apart from the others because only compactors need them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from annheal.index.compiled import compile_one, warm_up


@dataclass(frozen=True, slots=True)
class MergeKernels:
    """Signatures as in `merge_kernel`."""

    carry_links: Callable[..., None]
    mark_reached: Callable[..., None]


_lock = threading.Lock()
_kernels: MergeKernels | None = None


def merge_kernels() -> MergeKernels:
    """Return the kernels; compiles them, or waits for a compilation, the first time."""
    global _kernels
    with _lock:
        if _kernels is None:
            _kernels = _compile()
        return _kernels


def start_merge_warm_up(*, cache: Path | None = None) -> threading.Thread:
    """Compile all kernels, those of searches too, in a thread of its own; the caller may join it.

    For compactors, at their start: compiling holds the interpreter, and in one process with a node
    queries would wait for it in the middle of a merge.
    """

    def compile_all() -> None:
        warm_up(cache=cache)
        merge_kernels()

    thread = threading.Thread(target=compile_all, name="merge-kernel-warm-up", daemon=True)
    thread.start()
    return thread


def _compile() -> MergeKernels:
    from numba import types

    from annheal.index.carry import merge_kernel

    i4, i8, u4, f4 = types.int32, types.int64, types.uint32, types.float32

    def given(dtype: types.Type) -> types.Array:
        return types.Array(dtype, 1, "C", readonly=True, aligned=False)

    def own(dtype: types.Type) -> types.Array:
        return types.Array(dtype, 1, "C")

    graph = (given(i4), given(i8), given(i8), given(i4))
    rows = (given(i8), given(i4), given(f4), own(i8))
    scratch = (own(u4), own(i4), own(i4), own(f4), own(i8), own(i8))
    results = (given(i8), own(i4), own(i8))
    compile_one(merge_kernel.carry_links, (*graph, *rows, *scratch, *results))
    compile_one(merge_kernel.mark_reached, (given(i4), given(i8), i8, i8, i8, own(i4), own(i4)))
    return MergeKernels(merge_kernel.carry_links, merge_kernel.mark_reached)
