"""The compiled kernels: made once a process, from a cache on disk where one can be written.

Compiling takes tens of seconds on a busy machine, reading the cache well under one. So a process
calls `start_warm_up` early, and searches that have an alternative ask `ready_kernels` meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from annheal.model.collection import VectorStorage

_logger = logging.getLogger(__name__)

_KERNEL_MODULES = (
    "carry/merge_kernel.py",
    "carry/merge_layout.py",
    "codes/byte_products.py",
    "codes/code_layout.py",
    "codes/plane_kernel.py",
    "codes/query_kernel.py",
    "codes/scan_kernel.py",
    "distances.py",
    "exact_kernel.py",
    "walk/walk_kernel.py",
    "walk/walk_layout.py",
)


@dataclass(frozen=True, slots=True)
class Kernels:
    """The machine code of this process; signatures as in the kernel modules."""

    walk: Callable[..., None]
    compare_bitmap: Callable[..., None]
    compare_rows: Callable[..., None]
    compare_codes: Callable[..., None]
    code_queries: Callable[..., None]


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What `warm_up` did: the seconds it took, and the directory of the cache (None: no cache)."""

    took_s: float
    cache: Path | None


_lock = threading.Lock()
_kernels: Kernels | None = None
_directory: Path | None = None
_lossy_walks: dict[VectorStorage, Callable[..., None]] = {}
_lossy_threads: dict[VectorStorage, threading.Thread] = {}


def ready_kernels() -> Kernels | None:
    """Return the kernels if they are compiled, without waiting."""
    return _kernels


def kernels() -> Kernels:
    """Return the kernels, compiling them if nobody did; waits for a compilation under way."""
    if _kernels is None:
        warm_up()
    assert _kernels is not None
    return _kernels


def walk_ready(storage: VectorStorage) -> bool:
    """Return whether the walk over vectors of `storage` is compiled, without waiting."""
    return _kernels is not None and (storage is VectorStorage.FLOAT32 or storage in _lossy_walks)


def walk_kernel(storage: VectorStorage) -> Callable[..., None]:
    """Return the walk over vectors of `storage`; compiles it, or waits for a compilation."""
    every = kernels()
    if storage is VectorStorage.FLOAT32:
        return every.walk
    found = _lossy_walks.get(storage)
    if found is not None:
        return found
    with _lock:
        if storage not in _lossy_walks:
            started = time.perf_counter()
            _lossy_walks[storage] = _compile_lossy_walk(storage, _directory)
            took_s = time.perf_counter() - started
            _logger.info("the walk over %s vectors is ready after %.1f s", storage, took_s)
        return _lossy_walks[storage]


def want_walk(storage: VectorStorage) -> None:
    """Have the walk over vectors of `storage` compiled, in a thread that is started once.

    For whoever opens an index: nobody else pays for a storage that is not used.
    """
    with _lock:
        if storage is VectorStorage.FLOAT32 or storage in _lossy_threads:
            return
        _lossy_threads[storage] = threading.Thread(
            target=walk_kernel, args=(storage,), name=f"kernel-{storage}", daemon=True
        )
        _lossy_threads[storage].start()


def warm_up(*, cache: Path | None = None, storage: VectorStorage = VectorStorage.FLOAT32) -> WarmUp:
    """Compile the kernels or read them from the cache; does nothing the second time.

    Among them the walk over vectors of `storage`.

    The machine code is kept in NUMBA_CACHE_DIR where that is set, else in `cache`, such as a folder
    of a node's data directory, else in the user's cache directory. It need not exist. A
    directory that others can write is not used, because the cache holds code. Without any the
    kernels are compiled anew in each process.
    """
    global _directory, _kernels
    started = time.perf_counter()
    with _lock:
        if _kernels is None:
            _directory = _writable_cache(cache)
            _kernels = _compile(_directory)
            took_s = time.perf_counter() - started
            _logger.info("search kernels are ready after %.1f s (cache: %s)", took_s, _directory)
        elif walk_ready(storage):
            return WarmUp(0.0, None)
    walk_kernel(storage)
    return WarmUp(time.perf_counter() - started, _directory)


def start_warm_up(*, cache: Path | None = None) -> threading.Thread:
    """Run `warm_up` in a thread of its own; the caller may join it."""
    thread = threading.Thread(
        target=warm_up, kwargs={"cache": cache}, name="kernel-warm-up", daemon=True
    )
    thread.start()
    return thread


def _writable_cache(cache: Path | None) -> Path | None:
    digest = _source_digest()
    for parent in _cache_candidates(cache):
        # numba notices a changed function but not a changed callee in another file: the
        # directory's name covers all of them.
        directory = parent / f"kernels-{digest}"
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not _is_ours_alone(directory):
                continue
            with tempfile.TemporaryFile(dir=directory):
                return directory
        except OSError:
            continue
    return None


def _is_ours_alone(directory: Path) -> bool:
    found = directory.stat()
    return found.st_uid == os.geteuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _cache_candidates(cache: Path | None) -> Iterator[Path]:
    if chosen := os.environ.get("NUMBA_CACHE_DIR"):
        yield Path(chosen)
    if cache is not None:
        yield cache
    if home := os.environ.get("XDG_CACHE_HOME"):
        yield Path(home) / "annheal"
    elif home := os.environ.get("HOME"):
        yield Path(home) / ".cache" / "annheal"


def _source_digest() -> str:
    digest = hashlib.sha256()
    for name in _KERNEL_MODULES:
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]


def compile_one(function: Any, signature: tuple[Any, ...]) -> None:
    """Compile one more kernel, or read it from the cache that `warm_up` chose; waits for that."""
    kernels()
    with _lock:
        _compile_one(function, signature, _directory)


def _compile(directory: Path | None) -> Kernels:
    from annheal.index import exact_kernel
    from annheal.index.codes import query_kernel, scan_kernel
    from annheal.index.walk import walk_kernel

    functions: dict[str, Any] = {
        "walk": walk_kernel.walk,
        "compare_bitmap": exact_kernel.compare_bitmap,
        "compare_rows": exact_kernel.compare_rows,
        "compare_codes": scan_kernel.compare_codes,
        "code_queries": query_kernel.code_queries,
    }
    signatures = _signatures()
    for name, function in functions.items():
        _compile_one(function, signatures[name], directory)
    return Kernels(**functions)


def _compile_lossy_walk(storage: VectorStorage, directory: Path | None) -> Callable[..., None]:
    """Return the walk for another type of stored vectors, as a function of its own."""
    from numba import njit, types

    from annheal.index.distances import REORDER_SUMS
    from annheal.index.walk.walk_kernel import walk

    function: Any = njit(nogil=True, fastmath=REORDER_SUMS)(walk.py_func)
    element = types.uint16 if storage is VectorStorage.FP16 else types.uint8
    _compile_one(function, _signatures(element)["walk"], directory)
    compiled: Callable[..., None] = function
    return compiled


def _compile_one(function: Any, signature: tuple[Any, ...], directory: Path | None) -> None:
    from numba import config

    settings: Any = config
    if directory is not None:
        before, settings.CACHE_DIR = settings.CACHE_DIR, os.fspath(directory)
        try:
            function.enable_caching()
        finally:
            settings.CACHE_DIR = before
    function.compile(signature)
    # Another type of argument is a mistake of the caller, not a reason to compile again.
    function.disable_compile()


def _signatures(element: Any = None) -> dict[str, tuple[Any, ...]]:
    """Return argument types: what FAISS owns may be read-only and, when mapped, unaligned.

    `element` is the type of the vectors that are walked, float32 by default.
    """
    from numba import types

    def given(dtype: Any, dimensions: int = 1) -> Any:
        return types.Array(dtype, dimensions, "C", readonly=True, aligned=False)

    def own(dtype: Any, dimensions: int = 1) -> Any:
        return types.Array(dtype, dimensions, "C")

    i1, i2, i4, i8 = types.int8, types.int16, types.int32, types.int64
    u1, f4, f8 = types.uint8, types.float32, types.float64
    results = (own(f4, 2), own(i8, 2))
    compared = (own(i4), own(f4), own(i8, 2), own(i8))
    walked = given(f4 if element is None else element)
    graph = (given(i4), given(i8), given(i8), walked, given(f4), given(u1))
    scratch = (own(u1), own(i8), own(i4), own(f4), own(i4), own(i8))
    vectors = (given(f4), i8, given(f4), types.boolean)
    coded = (given(i1), given(i8, 2), given(f4, 2), given(f4, 2), given(f4), given(f4))
    kinds = (given(u1), given(f8, 2))
    errors = (given(f4, 2),) * 3
    asked = (given(f4), given(i2), given(i1), given(i4, 2), given(f4), given(f4), *errors)
    axes = (given(f4), given(types.uint16), given(f4), given(i8), f8, given(f8))
    asked_errors = (own(f4, 2),) * 3
    bitmap = (given(types.uint64), given(u1))
    return {
        "walk": (*graph, given(i4), given(i8), *scratch, *results, own(i8, 2), own(u1)),
        "compare_bitmap": (*vectors, *bitmap, *compared, *results),
        "compare_rows": (*vectors, given(i8), *compared, *results),
        "compare_codes": (
            *coded,
            *kinds,
            given(f4),
            i8,
            *asked,
            types.boolean,
            *bitmap,
            *(own(i4), own(i4), own(i4), own(f4)),
            *(own(i4), own(i4), own(f8), own(f8), own(i4)),
            *compared,
            *results,
        ),
        "code_queries": (
            given(f4, 2),
            *axes,
            i8,
            f8,
            types.boolean,
            own(i2, 2),
            own(i1, 3),
            own(i4, 2),
            own(f4),
            own(f4),
            *asked_errors,
        ),
    }
