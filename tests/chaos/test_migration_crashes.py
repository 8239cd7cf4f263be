"""SIGKILL of `annheal up` at the steps of a migration: before and after each of its commits, and
at the steps of the backfills, while an operator repeats what was not answered.

The job finishes, each step is in its history once, and every record is there with its new vector.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest

from annheal import Client
from annheal.errors import AnnhealError
from annheal.model.topology.migration.state import MigrationPhase
from annheal.model.topology.migration.view import MigrationStatus
from annheal.model.topology.task import TaskPhase
from annheal.runtime.fail_points import BACKFILL_POINTS, ENV_FAIL_POINT
from tests.support.cluster import EmbeddedServer
from tests.support.crash_points import ENV_CRASH_AT
from tests.support.embedding_server import (
    DIMENSION,
    MODEL,
    EmbeddingServer,
    serve_embeddings,
    vector_of,
)
from tests.support.ports import LOOPBACK, free_port
from tests.support.processes import ProcessFailed, ProcessGroup

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = "migrating"
ROWS = 200
IDS = [f"p{number}" for number in range(ROWS)]
GONE, CHANGED = "p0", "p1"
STEP_TIMEOUT_S = 400.0
# Each start of the server is armed with the next of these, until all are used up.
ARMED: tuple[dict[str, str], ...] = (
    *({ENV_CRASH_AT: f"meta commit {when} migrations/ 1"} for when in ("before", "after") * 4),
    *({ENV_FAIL_POINT: point} for point in BACKFILL_POINTS),
    *(
        {ENV_FAIL_POINT: point}
        for point in (
            "coordinator.planned", "compactor.claimed", "compactor.uploading", "compactor.verified",
            "compactor.reported", "coordinator.proposing", "coordinator.proposed",
            "shard_node.replaced", "coordinator.finished",
        )
    ),
    *({ENV_CRASH_AT: f"meta commit {when} migrations/ 2"} for when in ("before", "after")),
)  # fmt: skip


@dataclass
class Operator:
    """Repeats each step until it was answered, and starts the server again whenever it has died."""

    server: EmbeddedServer
    left: list[dict[str, str]] = field(default_factory=list)
    deaths: int = 0

    def start(self) -> None:
        """Start the server, armed with the next crash, until it serves."""
        while not self.server.process.running:
            armed = self.left.pop(0) if self.left else {}
            try:
                self.server.process.start(extra_environment=armed)
            except ProcessFailed:
                assert armed, self.server.process.log_tail()
                self.deaths += 1

    def until(self, step: Callable[[Client], bool]) -> None:
        """Repeat `step` until it returns True, through any number of deaths."""
        deadline_s = time.monotonic() + STEP_TIMEOUT_S
        while time.monotonic() < deadline_s:
            if not self.server.process.running:
                self.deaths += 1
                self.start()
            try:
                with Client(self.server.address, timeout_s=3.0) as client:
                    if step(client):
                        return
            except AnnhealError as error:
                if not error.retryable and error.reason != "DEADLINE_EXCEEDED":
                    raise
            time.sleep(0.05)  # until the server is back, by the deadline above
        raise AssertionError(self.server.process.log_tail())

    def ask(self, step: Callable[[Client], MigrationStatus], phase: MigrationPhase) -> None:
        """Repeat an order until it is answered; the migration must be in `phase` or beyond."""
        self.until(lambda client: step(client).migration.phase is phase)

    def wait(self, phase: MigrationPhase) -> None:
        """Wait until the migration is in `phase`; tasks of which all attempts died are retried."""

        def reached(client: Client) -> bool:
            for task in client.tasks(NAME, phase=TaskPhase.FAILED):
                client.retry_task(task.task_id)
            return client.migration(NAME).migration.phase is phase

        self.until(reached)


def none_left(client: Client) -> bool:
    """Whether the leader has seen that no record waits for a vector."""
    seen = client.migration(NAME).migration.coverage
    return seen is not None and not (seen.segments_left or seen.shards_unreported)


@pytest.fixture
def endpoint() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as found:
        yield found


@pytest.fixture
def operator(endpoint: EmbeddingServer) -> Iterator[Operator]:
    with ProcessGroup() as group:
        server = EmbeddedServer(
            group,
            listen=f"{LOOPBACK}:{free_port()}",
            module="tests.support.crash_points",
            settings={"compaction_interval_s": "0.2"},
        )
        server.start()
        with Client(server.address) as client:
            client.create_collection(
                NAME, 4, model="old", attributes={"name": "keyword"}, shard_count=2
            )
            vectors = np.random.default_rng(3).normal(size=(ROWS, 4)).astype(np.float32)
            names = [f"package {number}" for number in range(ROWS)]
            client.upsert(NAME, IDS, vectors, attributes={"name": names})
            client.flush(NAME)
            client.add_model(
                NAME, "new", DIMENSION, source="{name}",
                embedder={
                    "kind": "openai", "url": endpoint.url, "remote_model": MODEL, "retries": 0
                },
            )  # fmt: skip
        server.kill()
        yield Operator(server, list(ARMED))


def test_a_migration_survives_a_kill_at_every_step(operator: Operator) -> None:
    who = "ada"
    easy = {"overlap_min": 0.0, "latency_ratio_max": 1_000.0}
    operator.until(lambda client: bool(client.start_migration(NAME, "new", settings=easy, who=who)))
    # Written meanwhile: the one must not come back, the other not go back.
    operator.until(lambda client: client.delete(NAME, ids=[GONE]) is not None)
    operator.until(
        lambda client: client.update(NAME, [CHANGED], attributes={"name": ["renamed"]}) is not None
    )
    operator.wait(MigrationPhase.READY)
    for step in ("commit", "rollback", "commit"):
        phase = MigrationPhase.ROLLED_BACK if step == "rollback" else MigrationPhase.COMMITTED
        operator.ask(
            lambda client, step=step: getattr(client, f"{step}_migration")(NAME, who=who), phase
        )
    operator.until(none_left)
    operator.until(lambda client: bool(client.purge_migration(NAME, who=who)))
    operator.wait(MigrationPhase.PURGED)
    operator.left.clear()
    operator.until(lambda client: client.count(NAME, consistency="strong") == ROWS - 1)
    with Client(operator.server.address) as client:
        found = client.migration(NAME).migration
        asked = [one.event for one in found.history if one.who == who]
        assert asked == ["start", "commit", "rollback", "commit", "purge"]
        own = [one.event for one in found.history if one.who != who]
        assert own == ["prepared", "covered", "validated", "finished"]
        assert client.get_collection(NAME).serving == "new"
        assert [one.name for one in client.get_collection(NAME).usable_models] == ["new"]
        for number in range(ROWS):
            text = "renamed" if IDS[number] == CHANGED else f"package {number}"
            (hit,) = client.search(NAME, vector=vector_of(text), k=1)
            assert (hit.id == IDS[number]) is (IDS[number] != GONE)
    assert operator.deaths >= 20, operator.deaths
