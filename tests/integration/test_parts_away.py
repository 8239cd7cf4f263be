"""A store goes away under a running cluster: health and errors say which one and since when."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from typer.testing import CliRunner

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.errors import AnnhealError, Unavailable, UnknownOutcome
from tests.support.cluster import Cluster
from tests.support.etcd_server import EtcdServer
from tests.support.processes import ProcessGroup, wait_until
from tests.support.s3_server import S3Server

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.etcd,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

ROWS = np.eye(4, dtype=np.float32)
IDS = ["a", "b", "c", "d"]
Run = Callable[..., Any]


class Away:
    """A cluster of one node, with an etcd and an S3 server of its own that may be stopped."""

    def __init__(self, cluster: Cluster, etcd: EtcdServer, s3: S3Server) -> None:
        self.cluster = cluster
        self.etcd = etcd
        self.s3 = s3

    def health(self, *, timeout_s: float = 30.0) -> tuple[int, dict[str, dict[str, Any]]]:
        """Return the exit code of `annheal health` and its findings on the cluster."""
        options = ("--address", self.cluster.address, "--timeout", str(timeout_s), "-o", "json")
        found = CliRunner().invoke(app, hoist(["health", *options]))
        findings = json.loads(found.stdout)["cluster"]
        return found.exit_code, {one["question"]: one for one in findings}

    def able(self, service: str) -> bool:
        """Whether the node's health service says that it can do `service`."""
        with grpc.insecure_channel(next(iter(self.cluster.nodes.values()))) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    for name in [name for name in os.environ if name.startswith("ANNHEAL_")]:
        monkeypatch.delenv(name)
    with EtcdServer() as etcd, S3Server() as s3, ProcessGroup() as group:
        cluster = Cluster(
            group,
            metadata_url=etcd.url("away"),
            object_store_url=s3.url(prefix="away"),
            environment=s3.environment(),
        )
        cluster.add_coordinator("coordinator-0")
        cluster.add_node("node-0")
        cluster.add_compactor("compactor-0")
        cluster.start()
        with Client(cluster.address) as client:
            client.create_collection("c", 4)
            client.upsert("c", IDS, ROWS)
        yield Away(cluster, etcd, s3)


def refused_write(client: Client, *, timeout_s: float) -> AnnhealError:
    with pytest.raises((Unavailable, UnknownOutcome)) as caught:
        client.upsert("c", IDS, ROWS, timeout_s=timeout_s)
    return caught.value


@pytest.mark.parametrize("how", ["killed", "paused"])
def test_without_the_object_store_writes_and_health_say_so(away: Away, how: str) -> None:
    code, found = away.health()
    assert code == 0, found
    assert [one["health"] for one in found.values()] == ["good"] * len(found)
    with Client(away.cluster.address) as client:
        gone_s = time.time()
        if how == "killed":
            away.s3.kill()
        else:
            away.s3.pause()
        errors = [refused_write(client, timeout_s=8.0) for _ in range(3)]
        for error in errors:
            assert "object store" in error.message, error
        assert isinstance(errors[-1], Unavailable), "nothing is begun while the log is away"
        assert client.search("c", vector=ROWS[0], k=1)[0].id == "a", "reads of what is open go on"
        code, found = away.health()
        assert code == ExitCode.UNHEALTHY
        write = found["can it write?"]
        assert write["health"] == "bad"
        assert "node-0: object store writes: failing since" in write["answer"]
        assert "log of c/0: failing since" in write["answer"]
        assert found["can it read?"]["health"] == "bad"
        assert found["does the metadata store answer?"]["health"] == "good"
        parts = client.health().parts
        since = [one.failing_since_s for one in parts if not one.works]
        assert all(gone_s - 1 < one < time.time() for one in since)
        wait_until(lambda: not away.able("annheal.write"), timeout_s=5, what="no writes")
        assert away.able(""), "the node stays in service"
        log = away.cluster["node-0"].log()
        assert "log of c/0: failing for" in log
        assert log.count("log of c/0: failing for") <= 1 + (time.time() - gone_s) / 30
        if how == "killed":
            away.s3.restart()
        else:
            away.s3.resume()
        client.upsert("c", IDS, ROWS, timeout_s=120)
        wait_until(lambda: away.health()[0] == 0, timeout_s=60, what="healthy again")
        assert "log of c/0: works again" in away.cluster["node-0"].log()
        wait_until(lambda: away.able("annheal.write"), timeout_s=5, what="writes again")


def test_without_etcd_health_and_status_answer(away: Away) -> None:
    away.etcd.pause()
    try:
        with Client(away.cluster.address) as client:
            client.upsert("c", IDS, ROWS, timeout_s=10)
            assert client.count("c") == 4
            status = client.status(timeout_s=15)
            assert "the metadata store is away" in status.warnings[0]
            assert status.totals.live_rows == 4
        code, found = away.health()
        assert code == ExitCode.UNHEALTHY
        metadata = found["does the metadata store answer?"]
        assert metadata["health"] == "bad"
        assert "node-0: metadata store: failing since" in metadata["answer"]
        assert "coordinator-0: metadata store: failing since" in metadata["answer"]
        assert found["can it write?"]["health"] == "good"
        assert found["do all processes run?"]["health"] == "unknown"
    finally:
        away.etcd.resume()
    wait_until(lambda: away.health()[0] == 0, timeout_s=60, what="healthy again")
