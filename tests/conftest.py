"""Fixtures that several folders of tests share, and the servers' logs in reports of failures."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

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
    """Give examples of Hypothesis as long as the test has, and undo two settings of the caller.

    Every process of the tests would inherit those two.

    A shell that runs the tests in its background has SIGINT ignored; tests send it. With
    PYTHONDONTWRITEBYTECODE, which container images like to set, each of the hundreds of processes
    compiles the whole package again: 1.2 of the 4.4 CPU seconds from start to stop of a server.
    """
    # A time limit for one example measures how busy the machine is, and fails on one that is.
    settings.register_profile("annheal", deadline=None)
    settings.load_profile("annheal")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
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
