"""An Annheal server in one process, or a cluster of processes on etcd and S3."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from annheal import AsyncClient
from annheal.model.topology.task import TaskPhase
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import ProcessGroup, ServerProcess

PROBE_TIMEOUT_S = 2.0
ADDRESS_FILE = "address"
COMPACTION_TIMEOUT_S = 90.0
COMPACTIONS_MAX = 5

# Liveness is decided within three seconds, so that tests need not wait for the defaults. Less would
# make a busy machine look dead.
FAST_CLUSTER: dict[str, str] = {
    "lease_ttl_s": "3",
    "control_interval_s": "0.5",
    "store_retry_s": "0.2",
}

# Every few writes something is flushed, merged, checkpointed, trimmed and collected.
EAGER_SETTINGS: dict[str, str] = {
    "compaction_interval_s": "0.2",
    "control_interval_s": "0.2",
    "collection_interval_s": "1",
    "collection_grace_s": "8",
    "orphan_grace_s": "3",
    "poll_interval_s": "0.2",
}
SMALL_SEGMENTS: dict[str, float] = {
    "seal_rows_max": 120,
    "seal_age_s": 0.5,
    "tombstone_rows_min": 10,
    "tombstone_ratio_max": 0.1,
}


def is_serving(address: str) -> bool:
    """Whether the standard health service at `address` answers SERVING."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_TIMEOUT_S).close()
    except OSError:
        return False
    with grpc.insecure_channel(address) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=PROBE_TIMEOUT_S
            )
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def setting_flags(settings: Mapping[str, str]) -> list[str]:
    """Return `--set key=value` for each setting."""
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


async def compact_fully(client: AsyncClient, collection: str) -> None:
    """Rewrite every shard, and return when nothing is left to rewrite.

    A task whose segments were rewritten by another one meanwhile ends as cancelled, and what it
    would have done is planned anew; none may fail.
    """
    for _ in range(COMPACTIONS_MAX):
        tasks = await client.compact(collection, full=True, timeout_s=COMPACTION_TIMEOUT_S)
        phases = {task.phase for task in tasks}
        assert phases <= {TaskPhase.PUBLISHED, TaskPhase.CANCELLED}, tasks
        if TaskPhase.CANCELLED not in phases:
            return
    raise AssertionError(f"{collection}: tasks were cancelled {COMPACTIONS_MAX} times in a row")


class EmbeddedServer:
    """`annheal up` over a folder of its own; by default its port changes with every start."""

    def __init__(
        self,
        group: ProcessGroup,
        *,
        name: str = "annheal",
        data_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        listen: str = f"{LOOPBACK}:0",
        module: str = "annheal.cli",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.data_dir = data_dir or group.folder / f"{name}-data"
        self.process: ServerProcess = group.add(
            name,
            [
                *("up", "--data-dir", str(self.data_dir), "--listen", listen),
                *setting_flags(settings or {}),
            ],
            is_ready=self._is_ready,
            module=module,
            environment=environment,
        )

    @property
    def address(self) -> str:
        """`host:port` that clients connect to."""
        return (self.data_dir / ADDRESS_FILE).read_text().strip()

    @property
    def objects(self) -> Path:
        """The folder that holds the objects."""
        return self.data_dir / "objects"

    def start(self, *, wait: bool = True) -> EmbeddedServer:
        """Start the server; with `wait`, return when it serves."""
        # A file that a killed server left behind names an address where nobody answers.
        (self.data_dir / ADDRESS_FILE).unlink(missing_ok=True)
        self.process.start(wait=wait)
        return self

    def kill(self) -> None:
        """End the server by SIGKILL."""
        self.process.kill()

    def _is_ready(self) -> bool:
        path = self.data_dir / ADDRESS_FILE
        return path.exists() and bool(path.read_text().strip()) and is_serving(self.address)


class Cluster:
    """Coordinators, shard nodes and compactors as processes over one etcd prefix and one bucket.

    Members keep their names and ports through kills, as the pods of a StatefulSet do.
    """

    def __init__(
        self,
        group: ProcessGroup,
        *,
        metadata_url: str,
        object_store_url: str,
        environment: Mapping[str, str],
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._group = group
        self._environment = {
            **environment,
            "ANNHEAL_METADATA_URL": metadata_url,
            "ANNHEAL_OBJECT_STORE_URL": object_store_url,
        }
        for key, value in {**FAST_CLUSTER, **(settings or {})}.items():
            self._environment[f"ANNHEAL_{key.upper()}"] = value
        self.coordinators: dict[str, str] = {}
        self.nodes: dict[str, str] = {}
        self.compactors: list[str] = []

    def __getitem__(self, name: str) -> ServerProcess:
        return self._group.processes[name]

    @property
    def address(self) -> str:
        """The address of the first coordinator."""
        return next(iter(self.coordinators.values()))

    def add_coordinator(self, name: str, *, module: str = "annheal.cli") -> ServerProcess:
        """Describe a coordinator; the caller starts it."""
        self.coordinators[name] = address = f"{LOOPBACK}:{free_port()}"
        return self._add("coordinator", name, address, {"COORDINATOR_ID": name}, module)

    def add_node(self, name: str, *, module: str = "annheal.cli") -> ServerProcess:
        """Describe a shard node; the caller starts it."""
        self.nodes[name] = address = f"{LOOPBACK}:{free_port()}"
        return self._add("shard-node", name, address, {"NODE_ID": name}, module)

    def add_compactor(self, name: str, *, module: str = "annheal.cli") -> ServerProcess:
        """Describe a compactor; the caller starts it."""
        self.compactors.append(name)
        address = f"{LOOPBACK}:{free_port()}"
        identity = {"WORKER_ID": name, "SCRATCH_DIR": str(self._group.folder / name / "scratch")}
        return self._add("compactor", name, address, identity, module)

    def start(self) -> Cluster:
        """Start every member and return when all of them serve."""
        members = [self[name] for name in (*self.coordinators, *self.nodes, *self.compactors)]
        for member in members:
            if not member.running:
                member.start(wait=False)
        for member in members:
            member.wait_ready()
        return self

    def _add(
        self, role: str, name: str, address: str, identity: Mapping[str, str], module: str
    ) -> ServerProcess:
        environment = dict(self._environment)
        environment["ANNHEAL_DATA_DIR"] = str(self._group.folder / name)
        environment["ANNHEAL_LISTEN"] = address
        environment |= {f"ANNHEAL_{key}": value for key, value in identity.items()}
        return self._group.add(
            name,
            ["serve", role],
            environment=environment,
            is_ready=lambda: is_serving(address),
            module=module,
        )
