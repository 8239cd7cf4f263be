"""Server processes under test: started, stopped, killed, and never left behind.

Every process writes its output to a log file of its own. When a test fails, `tests/conftest.py`
adds the end of each log to the report; when the group is left, whatever still runs is ended by its
own process id.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

REPOSITORY = Path(__file__).resolve().parents[2]

READY_TIMEOUT_S = 90.0
TERM_TIMEOUT_S = 60.0
POLL_INTERVAL_S = 0.02
LOG_TAIL_CHARACTERS = 6_000

# What a developer has set for himself must not reach the servers under test.
_FOREIGN_PREFIXES = ("ANNHEAL_", "AWS_")
_FOREIGN_NAMES = frozenset({"http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "no_proxy"})


class ProcessFailed(RuntimeError):
    """A process ended, or did not become ready; the message holds the end of its log."""


def clean_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this environment without settings of Annheal, S3 or proxies, plus `extra`."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_FOREIGN_PREFIXES) and name.lower() not in _FOREIGN_NAMES
    }
    # With FAISS and OpenMP spinning in every process, two cores do nothing but wait.
    environment["OMP_WAIT_POLICY"] = "passive"
    environment["PYTHONUNBUFFERED"] = "1"
    environment["PYTHONFAULTHANDLER"] = "1"
    environment["PYTHONPATH"] = str(REPOSITORY)
    environment.update(extra or {})
    return environment


class ServerProcess:
    """One server process that can be started again after its end; not thread-safe."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        self._command = list(command)
        self._folder = folder
        self._environment = dict(environment)
        self._is_ready = is_ready
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id; an error when it does not run."""
        if self._process is None or not self.running:
            raise ProcessFailed(f"{self.name} does not run:\n{self.log_tail()}")
        return self._process.pid

    def start(
        self, *, wait: bool = True, extra_environment: Mapping[str, str] | None = None
    ) -> None:
        """Start the process; with `wait`, return when it is ready."""
        if self.running:
            raise ProcessFailed(f"{self.name} runs already")
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=self._folder,
                env={**self._environment, **(extra_environment or {})},
            )
        if wait:
            self.wait_ready()

    def wait_ready(self, *, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Return when the process is ready; raises `ProcessFailed` when it ends or is too slow."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if not self.running:
                raise ProcessFailed(f"{self.name} ended at its start:\n{self.log_tail()}")
            if self._is_ready():
                return
            time.sleep(POLL_INTERVAL_S)
        raise ProcessFailed(f"{self.name} was not ready in {timeout_s:g} s:\n{self.log_tail()}")

    def kill(self) -> None:
        """End the process by SIGKILL; no error when it has ended already."""
        self.signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def terminate(self, *, timeout_s: float = TERM_TIMEOUT_S) -> int:
        """Send SIGTERM and return the exit code; raises `ProcessFailed` after `timeout_s`."""
        self.signal(signal.SIGTERM)
        return self.wait_end(timeout_s=timeout_s)

    def wait_end(self, *, timeout_s: float = TERM_TIMEOUT_S) -> int:
        """Return the exit code once the process has ended by itself."""
        if self._process is None:
            raise ProcessFailed(f"{self.name} was never started")
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(
                f"{self.name} did not end in {timeout_s:g} s:\n{self.log_tail()}"
            ) from None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal if the process runs."""
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def log(self) -> str:
        """Return everything that the process has written so far."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self) -> str:
        """Return the end of the log."""
        return self.log()[-LOG_TAIL_CHARACTERS:]


_live_groups: list[ProcessGroup] = []
# Logs of groups that a failure has ended, until the failure's report takes them.
_last_logs: list[tuple[str, str]] = []


class ProcessGroup:
    """Processes that end together when the group is left, however it is left."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="annheal-test-"))
        self.processes: dict[str, ServerProcess] = {}

    def add(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        module: str = "annheal.cli",
    ) -> ServerProcess:
        """Describe `python -m <module> <arguments>`; the caller starts it."""
        process = ServerProcess(
            name,
            [sys.executable, "-m", module, *arguments],
            folder=self.folder,
            environment=clean_environment(environment),
            is_ready=is_ready,
        )
        self.processes[name] = process
        return process

    def log_tails(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the end of the log of every process that wrote one."""
        for process in self.processes.values():
            tail = process.log_tail()
            if tail:
                yield process.name, tail

    def __enter__(self) -> ProcessGroup:
        _live_groups.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self.processes.values():
            process.kill()
        _live_groups.remove(self)
        if error is not None:
            _last_logs.extend(self.log_tails())
        if os.environ.get("ANNHEAL_TEST_KEEP_LOGS"):
            print(f"logs and data are kept in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def take_logs() -> Iterator[tuple[str, str]]:
    """Yield the names and log ends of all processes that live or that a failure has just ended."""
    yield from _last_logs
    _last_logs.clear()
    for group in _live_groups:
        yield from group.log_tails()


def wait_until(condition: Callable[[], object], *, timeout_s: float, what: str) -> None:
    """Return when `condition()` is true; raises `AssertionError` naming `what` otherwise."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"did not come about within {timeout_s:g} s: {what}")
        time.sleep(POLL_INTERVAL_S)


async def wait_until_async(
    condition: Callable[[], Awaitable[object]],
    *,
    timeout_s: float,
    what: str,
    interval_s: float = 0.1,
) -> None:
    """Like `wait_until`, for a condition that is awaited."""
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        if time.monotonic() > deadline_s:
            raise AssertionError(f"did not come about within {timeout_s:g} s: {what}")
        await asyncio.sleep(interval_s)
