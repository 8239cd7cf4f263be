"""One `annheal up` process that the demonstration starts, kills and starts again."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from annheal import Client
from annheal.errors import AnnhealError
from annheal.model.topology.shard import WorkerRole

READY_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
POLL_S = 0.05
ADDRESS_FILE = "address"
LOG_TAIL_CHARACTERS = 3_000
REPOSITORY = Path(__file__).resolve().parents[1]


class DemoServer:
    """`annheal up` over `folder`; its output goes to a log file there."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self.data_dir = folder / "data"
        self.log_path = folder / "server.log"
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        """What a person would type."""
        flags = [
            part for key, value in self._settings.items() for part in ("--set", f"{key}={value}")
        ]
        return ["up", "--data-dir", str(self.data_dir), "--listen", "127.0.0.1:0", *flags]

    @property
    def pid(self) -> int:
        """The process id, 0 when it does not run."""
        return self._process.pid if self._process is not None else 0

    def start(self) -> tuple[str, float]:
        """Start the server; return its address and the seconds until it answered.

        Raises RuntimeError with the end of its log when it does not come up.
        """
        address_file = self.data_dir / ADDRESS_FILE
        # A killed server leaves the address behind at which nobody answers any more.
        address_file.unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ANNHEAL_")}
        environment["PYTHONPATH"] = str(REPOSITORY)
        started_s = time.monotonic()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "annheal.cli", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                # Ctrl-C in the terminal is for the demonstration, which then ends the server.
                start_new_session=True,
            )
        while time.monotonic() - started_s < READY_TIMEOUT_S:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server ended at its start:\n{self._log_tail()}")
            address = address_file.read_text().strip() if address_file.exists() else ""
            if address and _answers(address):
                return address, time.monotonic() - started_s
            time.sleep(POLL_S)  # until it answers, by the deadline above
        raise RuntimeError(
            f"the server was not ready in {READY_TIMEOUT_S:g} s:\n{self._log_tail()}"
        )

    def kill(self) -> None:
        """End the server by SIGKILL: it gets no chance to finish or save anything."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def stop(self) -> None:
        """End the server by SIGTERM, or by SIGKILL when it takes too long."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def disk_bytes(self, folder: str = ".") -> int:
        """Return the size of the files below a folder of the data directory, links left out."""
        sizes = 0
        for path in (self.data_dir / folder).rglob("*"):
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # the server has deleted it meanwhile
            if stat.S_ISREG(status.st_mode):
                sizes += status.st_size
        return sizes

    def _log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]


def _answers(address: str) -> bool:
    try:
        with Client(address, timeout_s=1.0) as client:
            status = client.status()
    except AnnhealError:
        return False
    roles = {worker.role for worker in status.workers}
    return bool(status.nodes) and WorkerRole.COMPACTOR in roles
