"""Has the kernels compiled by a process of its own, and loads each as soon as it is ready."""

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
"""As compactors: searches and writes go first, and beside a build compiling still moves on."""
RETRY_S: Final = 10.0
"""Before the second attempt; twice as long before the third."""
END_TIMEOUT_S: Final = 1.0
"""How long the compiling process may take to end before it is killed."""
ERROR_CHARACTERS_MAX: Final = 500
_PAGE_IN_BYTES: Final = 1 << 20
_ROOT: Final = Path(__file__).parents[3]
"""Where the package `annheal` lies, for the process that compiles."""

ResultT = TypeVar("ResultT")
Pause = Callable[[float], Awaitable[object]]

_log = logging.getLogger(__name__)


class SupplyPhase(StrEnum):
    """How far the kernels of a process are."""

    WAITING = "waiting"
    COMPILING = "compiling"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class SupplyState:
    """Where things stand.

    `loaded` can be called. `failures` counts the attempts that ended with an error, of which
    `error` was the last. FAILED is final: this process goes on without what is not loaded.
    """

    phase: SupplyPhase
    loaded: tuple[Kernel, ...]
    failures: int = 0
    error: str = ""
    directory: Path | None = None


class _AttemptFailed(Exception):
    """Kernels could not be compiled or not be loaded; never leaves this module."""


class KernelSupply:
    """Brings the kernels into this process; its owner runs `run` as a supervised task.

    Nothing waits for it on an event loop. Machine code is loaded in a thread, one kernel at a time:
    nothing in that holds the interpreter for more than about 10 ms.

    Args:
        chosen: the folder to keep machine code in, else as `open_cache` says.
        nice: how far the compiling process stands back behind others, 0 to 19.
        retry_s: how long to wait after the first attempt that failed.
        pause: waits for so many seconds.
    """

    def __init__(
        self,
        chosen: Path | None = None,
        *,
        nice: int = NICE,
        retry_s: float = RETRY_S,
        pause: Pause = asyncio.sleep,
    ) -> None:
        self._chosen = chosen
        self._nice = nice
        self._retry_s = retry_s
        self._pause = pause
        self._phase = SupplyPhase.WAITING
        self._directory: Path | None = None
        self._failures, self._error = 0, ""
        self._ended = asyncio.Event()

    @property
    def state(self) -> SupplyState:
        """Where things stand."""
        loaded = tuple(loaded_kernels())
        return SupplyState(self._phase, loaded, self._failures, self._error, self._directory)

    async def wait_ended(self) -> SupplyState:
        """Return once all kernels are loaded, or once nothing more is tried."""
        await self._ended.wait()
        return self.state

    async def run(self) -> None:
        """Return when all kernels are loaded, or after `ATTEMPTS_MAX` attempts that failed.

        A cancellation ends the compiling process too.
        """
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        with supplying():
            if not await self._supply():
                return
        self._end(SupplyPhase.READY)
        _log.info("all kernels are loaded after %.1f s", loop.time() - started_s)

    async def _supply(self) -> bool:
        """Return whether all kernels are loaded at last."""
        async with _loader(self._chosen) as loader:
            self._directory = loader.cache.directory
            while not is_loaded(*Kernel):
                try:
                    await self._attempt(loader)
                except _AttemptFailed as error:
                    if not await self._tries_again(str(error)):
                        return False
        return True

    async def _attempt(self, loader: _Loader) -> None:
        """Load what is there, compile the rest, and load each when it is ready."""
        for kernel in await loader.complete():
            await loader.load(kernel)
        if is_loaded(*Kernel):
            return
        self._phase = SupplyPhase.COMPILING
        _log.info("kernels are compiled into %s; meanwhile searches do without", self._directory)
        async with contextlib.aclosing(_compiled(loader.cache, nice=self._nice)) as ready:
            async for kernel in ready:
                await loader.load(kernel)

    async def _tries_again(self, error: str) -> bool:
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


def warm_up(chosen: Path | None = None) -> None:
    """Load every kernel, compiling what is missing; waits for it. Raises RuntimeError without.

    For tests, benchmarks and tools. Servers run a `KernelSupply`.
    """
    if is_loaded(*Kernel):
        return

    async def supply() -> SupplyState:
        own = KernelSupply(chosen, nice=0, retry_s=0.1)
        await own.run()
        return own.state

    # The calling thread may run an event loop of its own.
    with ThreadPoolExecutor(1) as pool:
        state = pool.submit(lambda: asyncio.run(supply())).result()
    if state.phase is not SupplyPhase.READY:
        raise RuntimeError(f"the kernels cannot be had: {state.error}")


class _Loader:
    """Loads machine code from one cache, in a thread: files and the dynamic linker wait."""

    def __init__(self, cache: KernelCache, pool: ThreadPoolExecutor) -> None:
        self.cache = cache
        self._pool = pool

    async def complete(self) -> list[Kernel]:
        """Return the kernels whose machine code is there."""
        return await self._run(lambda: [one for one in Kernel if self.cache.has(one)])

    async def load(self, kernel: Kernel) -> None:
        """Load one kernel that is complete; raises `_AttemptFailed` when it does not fit."""
        if not is_loaded(kernel):
            await self._run(lambda: load_once(kernel, lambda: _load(kernel, self.cache)))

    async def _run(self, work: Callable[[], ResultT]) -> ResultT:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


@contextlib.asynccontextmanager
async def _loader(chosen: Path | None) -> AsyncIterator[_Loader]:
    pool = ThreadPoolExecutor(1, thread_name_prefix="kernel-load")
    try:
        cache = await asyncio.get_running_loop().run_in_executor(pool, open_cache, chosen)
        if cache.private:
            _log.warning(
                "kernels are compiled for this process alone: %s; ANNHEAL_KERNEL_CACHE names"
                " another folder",
                cache.private,
            )
        try:
            yield _Loader(cache, pool)
        finally:
            if cache.private:
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
            cache.forget(kernel)
            raise _AttemptFailed(str(error)) from error


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's cyclic collector from running while numba makes its many objects.

    It would look at all objects of the process, three times in a second, each time with the
    interpreter held: 95 ms where the longest hold is 5 ms without it.
    """
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _page_in_llvm() -> None:
    """Read LLVM's library, so that the dynamic linker finds it in memory.

    The linker waits for the disk with the interpreter held: 215 ms on a machine that had not used
    the library since its start, 10 ms otherwise.
    """
    found = None if "llvmlite" in sys.modules else importlib.util.find_spec("llvmlite")
    for folder in (found and found.submodule_search_locations) or ():
        for path in Path(folder, "binding").glob("*.so"):
            with path.open("rb", buffering=0) as file:
                while file.read(_PAGE_IN_BYTES):
                    pass


async def _compiled(cache: KernelCache, *, nice: int) -> AsyncGenerator[Kernel, None]:
    """Run the compiling process; yield each kernel when it is complete. Ends the process at last.

    Raises `_AttemptFailed` with the end of what it said when it fails.
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
    saying = asyncio.create_task(_last_of(process.stderr))
    try:
        async for line in process.stdout:
            words = line.decode(errors="replace").split()
            if len(words) == 3 and words[0] == READY:
                _log.debug("kernel %s is compiled after %s s", words[1], words[2])
                yield Kernel(words[1])
        status = await process.wait()
        if status:
            raise _AttemptFailed(f"the compiling process ended with {status}: {await saying}")
    finally:
        await _ended(process)
        saying.cancel()
        await asyncio.gather(saying, return_exceptions=True)


async def _last_of(stream: asyncio.StreamReader) -> str:
    """Read a stream to its end, and return the end of it."""
    last = b""
    while part := await stream.read(1 << 16):
        last = (last + part)[-ERROR_CHARACTERS_MAX:]
    return last.decode(errors="replace").strip()


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End the process if it runs, and wait for it."""
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
