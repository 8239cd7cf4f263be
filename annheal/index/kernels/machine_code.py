"""Compiling a kernel into a folder, and loading it from there; imports numba.

numba's own cache keeps files under the path of the source, so that each checkout compiles anew, and
compiles silently what it does not find. Both would be wrong here.
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
    """The folder has no machine code for this processor and version."""


def compile_kernel(kernel: Kernel, folder: Path) -> None:
    """Compile `kernel` into `folder`, which exists; takes seconds and holds the interpreter."""
    function = _function_of(kernel)
    function._cache = _cache_in(folder, function)
    function.compile(signature_of(kernel))


def load_kernel(kernel: Kernel, folder: Path) -> Callable[..., None]:
    """Return `kernel` as `compile_kernel` left it in `folder`; takes some 20 ms.

    Raises `KernelMissing` instead of compiling.
    """
    function = _function_of(kernel)
    function._cache = _cache_in(folder, function, only_read=True)
    function.compile(signature_of(kernel))
    # Another type of argument is a mistake of the caller, not a reason to compile.
    function.disable_compile()
    code: Callable[..., None] = function
    return code


def _function_of(kernel: Kernel) -> Any:
    """Return the kernel's function to numba, anew each time: it holds the code of one kernel."""
    source = SOURCES[kernel]
    written: Any = getattr(importlib.import_module(source.module), source.function)
    return jit(**written.targetoptions)(written.py_func)


def _cache_in(folder: Path, function: Any, *, only_read: bool = False) -> Any:
    """Return numba's cache of `function` with its files in `folder`."""

    class Locator(caching.UserProvidedCacheLocator):
        """Names `folder`, whatever the path of the source is."""

        def __init__(self, py_func: Any, py_file: str) -> None:
            self._py_file = py_file
            self._lineno = py_func.__code__.co_firstlineno
            self._cache_path = os.fspath(folder)

        @classmethod
        def from_function(cls, py_func: Any, py_file: str) -> Locator:
            return cls(py_func, py_file)

    class Format(caching.CompileResultCacheImpl):
        """numba's own format, in that folder."""

        _locator_classes = [Locator]  # noqa: RUF012 - numba's name and type

    class Cache(caching.FunctionCache):
        """Refuses to let numba go on to compile, if it is only to be read."""

        _impl_class = Format

        def load_overload(self, sig: Any, target_context: Any) -> Any:
            numbas: Any = super()
            found = numbas.load_overload(sig, target_context)
            if found is None and only_read:
                raise KernelMissing(f"{folder} has no machine code for {function.__name__}")
            return found

    made: Any = Cache
    return made(function.py_func)
