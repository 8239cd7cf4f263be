"""The kernels whose machine code this process has loaded.

Like imported modules they belong to the process: there is one copy, it never changes, and any
thread may call it. `supply` puts them here; searches ask and never wait.
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
"""Two servers in one process load in threads of their own."""


class KernelNotLoaded(RuntimeError):
    """A kernel was called before it was loaded: the caller did not ask whether it is there."""


def is_loaded(*kernels: Kernel) -> bool:
    """Return whether all of `kernels` can be called."""
    return all(kernel in _loaded for kernel in kernels)


def loaded_kernels() -> list[Kernel]:
    """Return the kernels that can be called, in the order of `Kernel`."""
    return [kernel for kernel in Kernel if kernel in _loaded]


def can_walk(storage: VectorStorage) -> bool:
    """Return whether everything that filtered searches over vectors of `storage` use is there."""
    return is_loaded(*SEARCH_KERNELS, walk_over(storage))


def machine_code(kernel: Kernel) -> MachineCode:
    """Return the function, with the arguments of its source; raises `KernelNotLoaded`."""
    try:
        return _loaded[kernel]
    except KeyError:
        raise KernelNotLoaded(f"the kernel {kernel} is not loaded") from None


def wait_loaded(
    kernels: Collection[Kernel], *, interval_s: float, tell: Callable[[], None] | None = None
) -> bool:
    """Wait until all of `kernels` are loaded; False once no thread is loading any.

    For threads that work in the background. `tell` is called about every `interval_s`; what it
    raises ends the wait.
    """
    with _changed:
        while not is_loaded(*kernels):
            if not _suppliers:
                return False
            _changed.wait(interval_s)
            if tell is not None:
                tell()
    return True


@contextlib.contextmanager
def supplying() -> Iterator[None]:
    """Announce that kernels are going to be loaded: `wait_loaded` waits only for these."""
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
    """Let `kernel` be called, with what `load` returns; does nothing where it is loaded already."""
    with _loading:
        if kernel in _loaded:
            return
        code = load()
        with _changed:
            _loaded[kernel] = code
            _changed.notify_all()
