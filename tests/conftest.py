"""Fixtures that several folders of tests share, and the servers' logs in reports of failures."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from annheal.index import warm_up
from tests.support.cluster import EmbeddedServer
from tests.support.etcd_server import EtcdServer
from tests.support.processes import ProcessGroup, take_logs

pytest_plugins = ("tests.support.s3_server",)

# Contract suites are imported by the tests, and pytest explains only asserts that it rewrote.
pytest.register_assert_rewrite(
    "tests.contract.object_store_contract",
    "tests.contract.shard_node_contract",
    "tests.support.packages",
    "tests.support.records_oracle",
)


def pytest_configure() -> None:
    """Listen to Ctrl-C again where a shell runs the tests in its background.

    Such a shell has SIGINT ignored, and every process that a test starts would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Load the kernels; compile them first, a minute or two, unless this user's cache has them.

    Not in a fixture, whose time counts against the timeout of the first test.
    """
    if session.items and not session.config.option.collectonly:
        warm_up()


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
