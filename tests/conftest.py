"""Fixtures that several folders of tests share, and the servers' logs in reports of failures."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from annheal.index import start_merge_warm_up, warm_up
from tests.support.cluster import EmbeddedServer
from tests.support.etcd_server import EtcdServer
from tests.support.processes import ProcessGroup, take_logs

# Every server process of a test has a data directory of its own: without a common cache each would
# spend its first 20 seconds on compiling the kernels.
os.environ.setdefault(
    "NUMBA_CACHE_DIR", str(Path(tempfile.gettempdir()) / f"annheal-tests-{os.geteuid()}" / "numba")
)

pytest_plugins = ("tests.support.s3_server",)

# Contract suites are imported by the tests, and pytest explains only asserts that it rewrote.
pytest.register_assert_rewrite(
    "tests.contract.object_store_contract",
    "tests.support.packages",
    "tests.support.records_oracle",
)


def pytest_configure() -> None:
    """Listen to Ctrl-C again where a shell runs the tests in its background.

    Such a shell has SIGINT ignored, and every process that a test starts would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Add the end of the log of every server process to the report of a failed test."""
    report: pytest.TestReport = yield
    if report.failed:
        report.sections.extend((f"log of {name}", tail) for name, tail in take_logs())
    return report


@pytest.fixture(scope="session")
def etcd_server() -> Iterator[EtcdServer]:
    """One etcd for the whole run; every test takes a prefix of its own (`url(prefix)`)."""
    with EtcdServer() as server:
        yield server


@pytest.fixture(scope="session")
def embedded_server() -> Iterator[EmbeddedServer]:
    """One `annheal up` for the whole run; every test takes collections of its own."""
    with ProcessGroup() as group:
        yield EmbeddedServer(group, name="embedded").start()


@pytest.fixture(scope="session", autouse=True)
def _kernels_in_the_cache() -> None:
    """Compile once, before servers start: three that compile at once lose their leases."""
    warm_up()
    start_merge_warm_up().join()
