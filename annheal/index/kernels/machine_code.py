"""Compiles a kernel into a folder, and loads it from there; imports numba.

numba's own cache is not used as it is: its files depend on the path of the source, so that every
checkout compiles again, and it compiles a function that it does not find.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba import jit
from numba.core import caching

from annheal.index.kernels.catalog import SOURCES, Kernel
from annheal.index.kernels.signatures import signature_of


class KernelMissing(Exception):
    """The folder has no machine code of the kernel for this processor and version."""


def compile_kernel(kernel: Kernel, folder: Path) -> None:
    """Compile `kernel` into `folder`, which exists. Takes seconds and holds the GIL."""
    function = _function_of(kernel)
    function._cache = _cache_in(folder, function)
    function.compile(signature_of(kernel))


def load_kernel(kernel: Kernel, folder: Path) -> Callable[..., None]:
    """Return `kernel` from the files that `compile_kernel` wrote into `folder`; takes about 20 ms.

    Raises `KernelMissing` if there are none; it does not compile.
    """
    function = _function_of(kernel)
    function._cache = _cache_in(folder, function, only_read=True)
    function.compile(signature_of(kernel))
    # Arguments of other types raise an error instead of being compiled for.
    function.disable_compile()
    code: Callable[..., None] = function
    return code


def _function_of(kernel: Kernel) -> Any:
    """Return a new numba function of the kernel's source: it holds the code of one kernel only."""
    source = SOURCES[kernel]
    decorated: Any = getattr(importlib.import_module(source.module), source.function)
    return jit(**decorated.targetoptions)(decorated.py_func)


def _cache_in(folder: Path, function: Any, *, only_read: bool = False) -> Any:
    """Return a numba cache of `function` with its files in `folder`.

    With `only_read` it raises `KernelMissing` for a function that it does not have.
    """

    class Locator(caching.UserProvidedCacheLocator):
        """Returns `folder` for every path of the source."""

        def __init__(self, py_func: Any, py_file: str) -> None:
            self._py_file = py_file
            self._lineno = py_func.__code__.co_firstlineno
            self._cache_path = os.fspath(folder)

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Locator:
            return cls(py_func, py_file)

    class Format(caching.CompileResultCacheImpl):
        """numba's file format, in `folder`."""

        _locator_classes = [Locator]  # noqa: RUF012 - numba's name and type

    class Cache(caching.FunctionCache):
        """A cache that raises, if `only_read`, where numba would compile."""

        _impl_class = Format

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            parent: Any = super()
            found = parent.load_overload(sig, target_context)
            if found is None and only_read:
                raise KernelMissing(f"{folder} has no machine code for {function.__name__}")
            return found

    cache: Any = Cache
    return cache(function.py_func)
