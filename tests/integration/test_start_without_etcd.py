"""Without the metadata store every role waits for it, says so now and then, and can be stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from annheal import Client
from tests.support.cluster import Cluster, is_serving
from tests.support.etcd_server import EtcdServer
from tests.support.processes import ProcessGroup, ServerProcess, wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.etcd, pytest.mark.slow, pytest.mark.timeout(240)]

ROLES = ("coordinator-0", "node-0", "compactor-0")
SAYS_WITHIN_S = 90.0
"""Imports on a busy machine, two seconds for a connection, and the first message."""
WATCHED_S = 12.0
LINES_MAX = 30
"""Messages of one process in that time: each of its waiters repeats itself every ten seconds."""
STOP_WITHIN_S = 8.0


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        server.kill()
        yield server


def waiting(group: ProcessGroup, etcd: EtcdServer) -> tuple[Cluster, list[ServerProcess]]:
    """Start every role while etcd is away; return once all of them have said so."""
    cluster = Cluster(
        group,
        metadata_url=etcd.url("late"),
        object_store_url=f"file://{group.folder / 'objects'}",
        environment={},
    )
    cluster.add_coordinator("coordinator-0")
    cluster.add_node("node-0")
    cluster.add_compactor("compactor-0")
    members = [cluster[name] for name in ROLES]
    for member in members:
        member.start(wait=False)
    for member in members:
        wait_until(
            lambda member=member: "metadata store" in member.log() and "etcd" in member.log(),
            timeout_s=SAYS_WITHIN_S,
            what=f"{member.name} says what it waits for:\n{member.log()}",
        )
    return cluster, members


def test_every_role_waits_and_then_works(etcd: EtcdServer) -> None:
    with ProcessGroup() as group:
        cluster, members = waiting(group, etcd)
        until_s = time.monotonic() + WATCHED_S
        wait_until(lambda: time.monotonic() > until_s, timeout_s=WATCHED_S + 5, what="some time")
        for member in members:
            assert member.running, member.log()
            assert "Traceback" not in member.log()
            assert member.log().count("\n") < LINES_MAX, member.log()
        addresses = [*cluster.coordinators.values(), *cluster.nodes.values()]
        assert not any(is_serving(address) for address in addresses)
        etcd.restart()
        for member in members:
            member.wait_ready()
        with Client(cluster.address) as client:
            client.create_collection("c", 2)
            client.upsert("c", ["a"], [[1.0, 0.0]])
            assert client.count("c") == 1


def test_every_role_stops_at_once_while_it_waits(etcd: EtcdServer) -> None:
    with ProcessGroup() as group:
        _, members = waiting(group, etcd)
        for member in members:
            assert member.terminate(timeout_s=STOP_WITHIN_S) == 0, member.log()
            assert "Traceback" not in member.log()
