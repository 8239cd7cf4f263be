"""The kernels whose machine code this process has loaded.

Like imported modules they belong to the process: each is loaded once, never changes, and may be
called by any thread. `supply` loads them. Searches use those that are loaded, and never wait.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator

from annheal.index.kernels.catalog import SEARCH_KERNELS, Kernel, walk_over
from annheal.model.collection import VectorStorage

MachineCode = Callable[..., None]

_loaded: dict[Kernel, MachineCode] = {}
_suppliers = 0
_changed = threading.Condition()
_loading = threading.Lock()
"""Held while a kernel is loaded: two servers in one process load in different threads."""


class KernelNotLoaded(RuntimeError):
    """A kernel was called that is not loaded; callers must check `is_loaded` first."""


def is_loaded(*kernels: Kernel) -> bool:
    """Return whether all of `kernels` can be called."""
    return all(kernel in _loaded for kernel in kernels)


def loaded_kernels() -> list[Kernel]:
    """Return the kernels that can be called, in the order of `Kernel`."""
    return [kernel for kernel in Kernel if kernel in _loaded]


def can_walk(storage: VectorStorage) -> bool:
    """Return whether all kernels that searches of vectors in `storage` use are loaded."""
    return is_loaded(*SEARCH_KERNELS, walk_over(storage))


def machine_code(kernel: Kernel) -> MachineCode:
    """Return the compiled function, which takes the arguments of its source.

    Raises `KernelNotLoaded`.
    """
    try:
        return _loaded[kernel]
    except KeyError:
        raise KernelNotLoaded(f"the kernel {kernel} is not loaded") from None


def wait_loaded(
    kernels: Collection[Kernel], *, interval_s: float, on_wait: Callable[[], None] | None = None
) -> bool:
    """Wait until all of `kernels` are loaded and return True; False once no kernel is being loaded.

    Blocks: for background threads. `on_wait` is called about every `interval_s`, and ends the wait
    by raising.
    """
    with _changed:
        while not is_loaded(*kernels):
            if not _suppliers:
                return False
            _changed.wait(interval_s)
            if on_wait is not None:
                on_wait()
    return True


@contextlib.contextmanager
def supplying() -> Iterator[None]:
    """Let `wait_loaded` wait while this context is entered: kernels are being loaded."""
    global _suppliers
    with _changed:
        _suppliers += 1
    try:
        yield
    finally:
        with _changed:
            _suppliers -= 1
            _changed.notify_all()


def load_once(kernel: Kernel, load: Callable[[], MachineCode]) -> None:
    """Make the result of `load` the function of `kernel`, unless the kernel is loaded."""
    with _loading:
        if kernel in _loaded:
            return
        code = load()
        with _changed:
            _loaded[kernel] = code
            _changed.notify_all()
