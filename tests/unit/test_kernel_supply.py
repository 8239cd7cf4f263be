"""The process that compiles, and what a server process knows of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from annheal.index.kernels import loaded
from annheal.index.kernels.cache import KernelCache, open_cache
from annheal.index.kernels.catalog import SEARCH_KERNELS, Kernel
from annheal.index.kernels.loaded import KernelNotLoaded, machine_code, supplying, wait_loaded
from annheal.index.kernels.supply import ATTEMPTS_MAX, KernelSupply, SupplyPhase
from tests.support.memory_cluster import eventually


@pytest.fixture
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded, "_loaded", {})


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A folder in which nothing can be compiled: its lock cannot be opened."""
    (open_cache(tmp_path).directory / "lock").mkdir()
    return tmp_path


async def test_every_kernel_of_a_complete_cache_is_loaded(nothing_loaded: None) -> None:
    own = KernelSupply()
    assert own.state.phase is SupplyPhase.WAITING
    await own.run()
    assert own.state.phase is SupplyPhase.READY
    assert own.state.loaded == tuple(Kernel)
    assert (await own.wait_ended()).failures == 0
    assert machine_code(Kernel.WALK) is not machine_code(Kernel.WALK_INT8)


async def test_a_compilation_that_fails_is_tried_again_and_then_given_up(
    nothing_loaded: None, broken: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = KernelSupply(broken, retry_s=0.01)
    await own.run()
    state = await own.wait_ended()
    assert state.phase is SupplyPhase.FAILED
    assert state.failures == ATTEMPTS_MAX
    assert "IsADirectoryError" in state.error
    assert "given up" in caplog.text
    assert state.loaded == ()


async def test_what_fails_once_is_compiled_at_the_next_attempt(
    nothing_loaded: None, broken: Path
) -> None:
    shared, cache = open_cache(), open_cache(broken)

    async def repaired(delay_s: float) -> None:
        (cache.directory / "lock").rmdir()
        for kernel in Kernel:  # as if compiled
            copy_of(kernel, shared, cache)

    own = KernelSupply(broken, pause=repaired)
    await own.run()
    assert own.state.phase is SupplyPhase.READY
    assert own.state.failures == 1


def copy_of(kernel: Kernel, source: KernelCache, target: KernelCache) -> None:
    target.folder(kernel).mkdir(exist_ok=True)
    for path in source.folder(kernel).iterdir():
        (target.folder(kernel) / path.name).write_bytes(path.read_bytes())
    target.mark_complete(kernel)


async def test_machine_code_that_does_not_fit_is_compiled_again(
    nothing_loaded: None, tmp_path: Path
) -> None:
    shared, cache = open_cache(), open_cache(tmp_path)
    for kernel in Kernel:
        copy_of(kernel, shared, cache)
    for path in cache.folder(Kernel.MARK_REACHED).glob("*.nbi"):
        path.unlink()
    cache.mark_complete(Kernel.MARK_REACHED)  # complete, and yet it is not there
    own = KernelSupply(tmp_path, nice=0, retry_s=0.01)
    await own.run()
    assert own.state.phase is SupplyPhase.READY
    assert own.state.failures == 1
    assert "no machine code for mark_reached" in own.state.error


async def test_stopping_ends_the_compiling_process_at_once(
    nothing_loaded: None, tmp_path: Path
) -> None:
    own = KernelSupply(tmp_path)
    running = asyncio.create_task(own.run())
    await eventually(lambda: (open_cache(tmp_path).directory / "lock").exists(), timeout_s=60)
    assert own.state.phase is SupplyPhase.COMPILING
    started_s = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - started_s < 2.0
    assert not compiling(open_cache(tmp_path).directory)
    assert open_cache(tmp_path).missing()


def compiling(directory: Path) -> bool:
    """Whether some process of this machine has the folder among its arguments."""
    return any(
        str(directory).encode() in path.read_bytes()
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if readable(path)
    )


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_a_kernel_that_is_not_loaded_is_refused_and_not_waited_for(nothing_loaded: None) -> None:
    with pytest.raises(KernelNotLoaded, match="walk is not loaded"):
        machine_code(Kernel.WALK)


def test_waiting_ends_at_once_where_nobody_loads_kernels(nothing_loaded: None) -> None:
    assert not wait_loaded(SEARCH_KERNELS, interval_s=60)


def test_waiting_ends_when_the_last_supply_ends_and_when_the_waiter_is_told_to(
    nothing_loaded: None,
) -> None:
    begun = threading.Event()
    found: list[bool] = []

    def wait() -> None:
        begun.set()
        found.append(wait_loaded([Kernel.WALK], interval_s=60))

    with supplying():
        waiter = threading.Thread(target=wait)
        waiter.start()
        begun.wait(10)
    waiter.join(10)
    assert found == [False]

    def told() -> None:
        raise InterruptedError

    with supplying(), pytest.raises(InterruptedError):
        wait_loaded([Kernel.WALK], interval_s=0.01, on_wait=told)


def test_importing_the_package_does_not_import_numba() -> None:
    code = (
        "import sys, annheal.index; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
