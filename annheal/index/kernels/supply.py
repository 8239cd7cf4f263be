"""Starts the process that compiles kernels, and loads each kernel when it is ready."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import os
import shutil
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final, TypeVar

from annheal.index.kernels.cache import KernelCache, open_cache
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.compile import READY
from annheal.index.kernels.loaded import (
    MachineCode,
    is_loaded,
    load_once,
    loaded_kernels,
    supplying,
)

ATTEMPTS_MAX: Final = 3
NICE: Final = 10
"""The same as of compactors: searches and writes go first, and builds do not stop compilation."""
RETRY_S: Final = 10.0
"""The delay before the second attempt; that before the third is twice as long."""
END_TIMEOUT_S: Final = 1.0
"""Time for the compiling process to end before it is killed."""
ERROR_CHARACTERS_MAX: Final = 500
_PAGE_IN_BYTES: Final = 1 << 20
_ROOT: Final = Path(__file__).parents[3]
"""The folder of the package `annheal`, for the import path of the compiling process."""

ResultT = TypeVar("ResultT")
Pause = Callable[[float], Awaitable[object]]

_log = logging.getLogger(__name__)


class SupplyPhase(StrEnum):
    """The phase of compiling and loading the kernels of a process."""

    WAITING = "waiting"
    COMPILING = "compiling"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SupplyState:
    """The state of compiling and loading.

    `loaded` are the kernels that can be called. `failures` is the number of failed attempts,
    `error` the message of the last. FAILED is final: this process runs without the other kernels.
    """

    phase: SupplyPhase
    loaded: tuple[Kernel, ...]
    failures: int = 0
    error: str = ""
    directory: Path | None = None


class _AttemptFailed(Exception):
    """Kernels could not be compiled or loaded; caught in this module."""


class KernelSupply:
    """Compiles and loads the kernels of this process; its owner runs `run` as a supervised task.

    It does not block the event loop: machine code is loaded in a thread, one kernel at a time, and
    the GIL is held for about 10 ms at most.

    Args:
        parent: where the folder of machine code is; see `open_cache`.
        nice: nice value of the compiling process, 0 to 19.
        retry_s: delay after the first failed attempt.
        pause: waits for a number of seconds.
    """

    def __init__(
        self,
        parent: Path | None = None,
        *,
        nice: int = NICE,
        retry_s: float = RETRY_S,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._parent = parent
        self._nice = nice
        self._retry_s = retry_s
        self._pause = pause
        self._phase = SupplyPhase.WAITING
        self._directory: Path | None = None
        self._failures, self._error = 0, ""
        self._ended = asyncio.Event()

    @property
    def state(self) -> SupplyState:
        """The present state."""
        loaded = tuple(loaded_kernels())
        return SupplyState(self._phase, loaded, self._failures, self._error, self._directory)

    async def wait_ended(self) -> SupplyState:
        """Wait until all kernels are loaded or the last attempt failed; return the state then."""
        await self._ended.wait()
        return self.state

    async def run(self) -> None:
        """Compile and load all kernels; return then, or after `ATTEMPTS_MAX` failed attempts.

        Cancelling it ends the compiling process too.
        """
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        with supplying():
            if not await self._supply():
                return
        self._end(SupplyPhase.READY)
        _log.info("all kernels are loaded after %.1f s", loop.time() - started_s)

    async def _supply(self) -> bool:
        """Return True when all kernels are loaded, False after the last failed attempt."""
        async with _loader(self._parent) as loader:
            self._directory = loader.cache.directory
            while not is_loaded(*Kernel):
                try:
                    await self._attempt(loader)
                except _AttemptFailed as error:
                    if not await self._wait_to_retry(str(error)):
                        return False
        return True

    async def _attempt(self, loader: _Loader) -> None:
        """Load the complete kernels, compile the others, and load each when it is ready."""
        for kernel in await loader.complete():
            await loader.load(kernel)
        if is_loaded(*Kernel):
            return
        self._phase = SupplyPhase.COMPILING
        _log.info("kernels are compiled into %s; meanwhile searches do without", self._directory)
        async with contextlib.aclosing(_compiled(loader.cache, nice=self._nice)) as ready:
            async for kernel in ready:
                await loader.load(kernel)

    async def _wait_to_retry(self, error: str) -> bool:
        """Return True after the delay before the next attempt, False if there is none."""
        self._failures, self._error = self._failures + 1, error
        if self._failures >= ATTEMPTS_MAX:
            _log.error(
                "kernels are given up after %d attempts, until the next start; filtered searches"
                " compare every matching row: %s",
                self._failures,
                error,
            )
            self._end(SupplyPhase.FAILED)
            return False
        _log.warning("kernels: attempt %d of %d: %s", self._failures, ATTEMPTS_MAX, error)
        self._phase = SupplyPhase.WAITING
        await self._pause(self._retry_s * 2 ** (self._failures - 1))
        return True

    def _end(self, phase: SupplyPhase) -> None:
        self._phase = phase
        self._ended.set()


def warm_up(parent: Path | None = None) -> None:
    """Compile and load all kernels and wait for them; raises RuntimeError if that fails.

    For tests, benchmarks and tools. Servers run a `KernelSupply`.
    """
    if is_loaded(*Kernel):
        return

    async def supply() -> SupplyState:
        own = KernelSupply(parent, nice=0, retry_s=0.1)
        await own.run()
        return own.state

    # The calling thread may run an event loop of its own.
    with ThreadPoolExecutor(1) as pool:
        state = pool.submit(lambda: asyncio.run(supply())).result()
    if state.phase is not SupplyPhase.READY:
        raise RuntimeError(f"the kernels could not be loaded: {state.error}")


class _Loader:
    """Loads machine code from one cache in a thread, as files and the dynamic linker block."""

    def __init__(self, cache: KernelCache, pool: ThreadPoolExecutor) -> None:
        self.cache = cache
        self._pool = pool

    async def complete(self) -> list[Kernel]:
        """Return the kernels that are complete in the cache."""
        return await self._run(lambda: [one for one in Kernel if self.cache.has(one)])

    async def load(self, kernel: Kernel) -> None:
        """Load a complete kernel; raises `_AttemptFailed` if its machine code does not fit."""
        if not is_loaded(kernel):
            await self._run(lambda: load_once(kernel, lambda: _load(kernel, self.cache)))

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


@contextlib.asynccontextmanager
async def _loader(parent: Path | None) -> AsyncIterator[_Loader]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="kernel-load")
    try:
        cache = await asyncio.get_running_loop().run_in_executor(pool, open_cache, parent)
        if cache.private_because:
            _log.warning(
                "kernels are compiled for this process alone: %s; ANNHEAL_KERNEL_CACHE names"
                " another folder",
                cache.private_because,
            )
        try:
            yield _Loader(cache, pool)
        finally:
            if cache.private_because:
                pool.submit(shutil.rmtree, cache.directory, ignore_errors=True)
    finally:
        pool.shutdown(wait=False)


def _load(kernel: Kernel, cache: KernelCache) -> MachineCode:
    _page_in_llvm()
    with _collector_paused():
        from annheal.index.kernels.machine_code import KernelMissing, load_kernel

        try:
            return load_kernel(kernel, cache.folder(kernel))
        except KernelMissing as error:
            cache.discard(kernel)
            raise _AttemptFailed(str(error)) from error


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Disable Python's garbage collector while numba creates its many objects.

    The collector would visit all objects of the process three times a second, holding the GIL for
    95 ms each time; the longest hold without it is 5 ms.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _page_in_llvm() -> None:
    """Read LLVM's library into the page cache.

    The dynamic linker holds the GIL while it reads the library: 215 ms if it is not in the page
    cache, 10 ms otherwise.
    """
    found = None if "llvmlite" in sys.modules else importlib.util.find_spec("llvmlite")
    for folder in (found and found.submodule_search_locations) or ():
        for path in Path(folder, "binding").glob("*.so"):
            with path.open("rb", buffering=0) as file:
                while file.read(_PAGE_IN_BYTES):
                    pass


async def _compiled(cache: KernelCache, *, nice: int) -> AsyncGenerator[Kernel, None]:
    """Run the compiling process; yield each kernel when it is complete. Ends the process at close.

    Raises `_AttemptFailed` with the last of its error output if it fails.
    """
    paths = [os.fspath(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "annheal.index.kernels.compile",
        os.fspath(cache.directory),
        str(nice),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    error_output = asyncio.create_task(_read_tail(process.stderr))
    try:
        async for line in process.stdout:
            words = line.decode(errors="replace").split()
            if len(words) == 3 and words[0] == READY:
                _log.debug("kernel %s is compiled after %s s", words[1], words[2])
                yield Kernel(words[1])
        status = await process.wait()
        if status:
            raise _AttemptFailed(f"the compiling process ended with {status}: {await error_output}")
    finally:
        await _terminate(process)
        error_output.cancel()
        await asyncio.gather(error_output, return_exceptions=True)


async def _read_tail(stream: asyncio.StreamReader) -> str:
    """Read a stream to its end; return its last `ERROR_CHARACTERS_MAX` bytes as text."""
    last = b""
    while part := await stream.read(1 << 16):
        last = (last + part)[-ERROR_CHARACTERS_MAX:]
    return last.decode(errors="replace").strip()


async def _terminate(process: asyncio.subprocess.Process) -> None:
    """End the process if it is running, and wait for it."""
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
