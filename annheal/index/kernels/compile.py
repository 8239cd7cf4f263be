"""`python -m annheal.index.kernels.compile FOLDER NICE`: the process that compiles missing kernels.

It writes a line `ready KERNEL SECONDS` to its output for each kernel, also for those that were
complete already or that another process compiled meanwhile. One process at a time compiles into a
folder.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

from annheal.index.kernels.cache import KernelCache, compile_lock
from annheal.index.kernels.catalog import Kernel

READY: Final = "ready"


def main(directory: Path, *, nice: int) -> None:
    """Compile the kernels that are missing in the folder of a cache."""
    os.nice(nice)
    cache = KernelCache(directory)
    for kernel in Kernel:
        print(READY, kernel.value, f"{compile_missing(kernel, cache):.3f}", flush=True)


def compile_missing(kernel: Kernel, cache: KernelCache) -> float:
    """Compile `kernel` unless it is complete; return the seconds that took, 0 if it was."""
    with compile_lock(cache):
        if cache.has(kernel):
            return 0.0
        started_s = time.perf_counter()
        from annheal.index.kernels.machine_code import compile_kernel

        folder = cache.folder(kernel)
        folder.mkdir(exist_ok=True, mode=0o700)
        for leftover in folder.iterdir():  # from a process that was killed
            leftover.unlink()
        compile_kernel(kernel, folder)
        cache.mark_complete(kernel)
        return time.perf_counter() - started_s


if __name__ == "__main__":
    main(Path(sys.argv[1]), nice=int(sys.argv[2]))
