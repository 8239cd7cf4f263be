"""Annheal as a user runs it: `annheal up`, or one process for each role on a real etcd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from annheal import AsyncClient
from annheal.errors import AnnhealError
from annheal.model.topology.shard import WorkerRole
from benchmarks.harness.options import REPOSITORY

READY_TIMEOUT_S = 60.0
TERM_TIMEOUT_S = 30.0
POLL_S = 0.05
ADDRESS_FILE = "address"
COORDINATOR, SHARD_NODE, COMPACTOR = "coordinator", "shard-node", "compactor"
LOG_TAIL_CHARACTERS = 4_000
SCRAPE_TIMEOUT_S = 10.0
_BLOCK_BYTES = 512
_STORED = re.compile(
    r'^annheal_object_store_bytes_total\{(?P<labels>[^}]*part="(?P<part>[^"]*)"[^}]*)\}'
    r" (?P<bytes>[0-9.e+]+)$",
    re.MULTILINE,
)
_FOREIGN_PREFIXES = ("ANNHEAL_", "AWS_")


class ClusterUnavailable(RuntimeError):
    """There is no etcd to run a cluster on."""


class Server:
    """The processes of one deployment; `address` is where clients connect.

    `metrics` are the addresses where processes are scraped, by role.
    """

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode = mode
        self.folder = folder
        self.address = ""
        self.metrics: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._started: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}

    def spawn(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start `annheal <arguments>` with its output in a log file."""
        self._started[name] = arguments, environment
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "annheal.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
            )

    async def start_again(self) -> None:
        """Start the processes of an embedded server that was stopped, on the same folder.

        `address` changes. Raises RuntimeError as `wait_ready` does.
        """
        self.address = ""
        (self.folder / "data" / ADDRESS_FILE).unlink(missing_ok=True)
        for name, (arguments, environment) in list(self._started.items()):
            self.spawn(name, arguments, environment)
        await self.wait_ready()

    async def wait_ready(self) -> None:
        """Return once a shard node and the compactor are there; raises RuntimeError otherwise."""
        deadline_s = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline_s:
            self._check_alive()
            if self.address and await self._is_ready():
                return
            if not self.address:
                path = self.folder / "data" / ADDRESS_FILE
                self.address = path.read_text().strip() if path.exists() else ""
            await asyncio.sleep(POLL_S)
        raise RuntimeError(f"{self.mode} was not ready in {READY_TIMEOUT_S:g} s\n{self._logs()}")

    async def _is_ready(self) -> bool:
        try:
            async with AsyncClient(self.address, timeout_s=1.0) as client:
                status = await client.status()
        except AnnhealError:
            return False
        roles = {worker.role for worker in status.workers}
        return bool(status.nodes) and WorkerRole.COMPACTOR in roles

    def _check_alive(self) -> None:
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise RuntimeError(f"{name} ended with {process.returncode}\n{self._logs()}")

    def _logs(self) -> str:
        return "\n".join(
            f"--- {path.name}\n{path.read_text(errors='replace')[-LOG_TAIL_CHARACTERS:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def pids(self) -> dict[str, int]:
        """Return the process ids by name."""
        return {name: process.pid for name, process in self._processes.items()}

    async def stored_bytes(self, role: str) -> dict[str, float]:
        """Return the bytes that a role has put into the object store, by the first part of keys."""
        url = f"http://{self.metrics[role]}/metrics"
        return stored_bytes(await asyncio.to_thread(_fetched, url))

    def memory_peak_bytes(self) -> int:
        """Return the sum of the largest resident sizes that the processes have had, files mapped
        by them included."""
        return sum(_status_bytes(pid, "VmHWM") for pid in self.pids().values())

    def memory_private_bytes(self) -> int:
        """Return what the processes hold now and no file backs."""
        return sum(_status_bytes(pid, "RssAnon") for pid in self.pids().values())

    def memory_resident_bytes(self) -> int:
        """Return what the processes hold in memory now, files mapped by them included."""
        return sum(_status_bytes(pid, "VmRSS") for pid in self.pids().values())

    def cpu_s(self) -> float:
        """Return the seconds of CPU that the processes have used."""
        ticks = sum(_cpu_ticks(pid) for pid in self.pids().values())
        return ticks / os.sysconf("SC_CLK_TCK")

    def thread_cpu_s(self) -> float:
        """Return the same, exact to less than a millisecond (Linux only)."""
        return sum(_threads_cpu_ns(pid) for pid in self.pids().values()) / 1e9

    def disk_bytes(self) -> int:
        """Return what the data takes on disk, logs left out."""
        return sum(
            path.lstat().st_blocks * _BLOCK_BYTES
            for path in self.folder.rglob("*")
            if path.is_file() and path.suffix != ".log"
        )

    def stop(self) -> None:
        """End the processes: SIGTERM, and SIGKILL for one that takes too long."""
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(TERM_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


@asynccontextmanager
async def serve(
    mode: str, *, settings: Mapping[str, str] | None = None, metrics: bool = False
) -> AsyncIterator[Server]:
    """Run a deployment on an empty folder for the length of the block.

    "embedded" is one process. "cluster" is one for each role on etcd, "roles" the same on SQLite;
    with `metrics` each role can be scraped. `settings` are those of all roles. Raises
    `ClusterUnavailable` when there is no etcd.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"annheal-bench-{mode}-"))
    server = Server(mode, folder)
    try:
        if mode == "embedded":
            flags = [
                part
                for key, value in (settings or {}).items()
                for part in ("--set", f"{key}={value}")
            ]
            data = str(folder / "data")
            server.spawn(
                "annheal",
                ["up", "--data-dir", data, "--listen", "127.0.0.1:0", *flags],
                _environment({}),
            )
            await server.wait_ready()
            yield server
        elif mode == "roles":
            url = f"sqlite://{folder / 'meta.sqlite'}"
            _spawn_roles(server, url, settings or {}, metrics=metrics)
            await server.wait_ready()
            yield server
        else:
            async with _cluster(server, settings or {}, metrics=metrics):
                yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def _cluster(
    server: Server, settings: Mapping[str, str], *, metrics: bool
) -> AsyncIterator[None]:
    """Start etcd, one coordinator, one shard node and one compactor."""
    from tests.support.etcd_server import EtcdServer, EtcdUnavailable

    etcd = EtcdServer()
    try:
        etcd.start()
    except (EtcdUnavailable, RuntimeError) as error:
        raise ClusterUnavailable(str(error)) from error
    try:
        _spawn_roles(server, etcd.url("bench"), settings, metrics=metrics)
        await server.wait_ready()
        yield
    finally:
        server.stop()
        etcd.stop()


def _spawn_roles(
    server: Server, metadata_url: str, settings: Mapping[str, str], *, metrics: bool
) -> None:
    """Start one coordinator, one shard node and one compactor."""
    from tests.support.ports import LOOPBACK, free_port

    objects = server.folder / "objects"
    objects.mkdir()
    shared = {
        "ANNHEAL_METADATA_URL": metadata_url,
        "ANNHEAL_OBJECT_STORE_URL": objects.as_uri(),
        **{f"ANNHEAL_{key.upper()}": value for key, value in settings.items()},
    }
    for role, identity in (
        (COORDINATOR, "COORDINATOR_ID"),
        (SHARD_NODE, "NODE_ID"),
        (COMPACTOR, "WORKER_ID"),
    ):
        address = f"{LOOPBACK}:{free_port()}"
        own = {
            f"ANNHEAL_{identity}": role,
            "ANNHEAL_LISTEN": address,
            "ANNHEAL_DATA_DIR": str(server.folder / role),
        }
        if metrics:
            server.metrics[role] = own["ANNHEAL_METRICS_LISTEN"] = f"{LOOPBACK}:{free_port()}"
        if role == COMPACTOR:
            own["ANNHEAL_SCRATCH_DIR"] = str(server.folder / role / "scratch")
        server.spawn(role, ["serve", role], _environment({**shared, **own}))
        if role == COORDINATOR:
            server.address = address


def _environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this environment without settings of Annheal, so that defaults are measured."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_PREFIXES)
    }
    return {**kept, "PYTHONPATH": str(REPOSITORY), **extra}


def stored_bytes(text: str) -> dict[str, float]:
    """Return the bytes put into the object store, by the first part of keys, from metrics."""
    return {
        match["part"]: float(match["bytes"])
        for match in _STORED.finditer(text)
        if 'operation="put"' in match["labels"]
    }


def _fetched(url: str) -> str:
    with urllib.request.urlopen(url, timeout=SCRAPE_TIMEOUT_S) as answer:
        text: bytes = answer.read()
    return text.decode()


def _status_bytes(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1_024
    return 0


def _threads_cpu_ns(pid: int) -> int:
    """Return the time that the living threads of a process have run."""
    used_ns = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # the thread has ended
            used_ns += int((task / "schedstat").read_text().split()[0])
    return used_ns


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return user + system
