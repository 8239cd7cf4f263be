"""Migrations by the SDK over gRPC, in front of in-memory nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from annheal import AsyncClient
from annheal.coordinator.app import Coordinator
from annheal.coordinator.service import services
from annheal.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from annheal.model.topology.migration.state import MigrationPhase
from annheal.rpc.server import RpcServer
from tests.support.embedding_server import DIMENSION, MODEL, EmbeddingServer, serve_embeddings
from tests.support.memory_cluster import MemoryCluster, eventually, memory_cluster
from tests.unit.test_migration_driver import report_segments

NAME = "packages"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as found:
        yield found


@dataclass(slots=True)
class Served:
    """A cluster with one collection of two models, and a client of it."""

    cluster: MemoryCluster
    coordinator: Coordinator
    client: AsyncClient

    async def phase(self, wanted: MigrationPhase) -> None:
        collection = await self.client.get_collection(NAME)

        def reached() -> bool:
            stored = self.coordinator.catalog.migration(collection.id)
            return stored is not None and stored.value.phase is wanted

        await eventually(reached)


@pytest.fixture
async def able(tmp_path: Path, endpoint: EmbeddingServer) -> AsyncIterator[Served]:
    endpoint.reset()
    async with memory_cluster(tmp_path) as cluster:
        await cluster.add_node("a")
        coordinator = await cluster.add_coordinator(embedder_urls=(endpoint.url,))
        server = RpcServer(services(coordinator))
        port = server.listen("127.0.0.1:0")
        await server.start()
        await server.set_serving(True)
        embedder: dict[str, Any] = {
            "kind": "openai", "url": endpoint.url, "remote_model": MODEL, "retries": 0,
        }  # fmt: skip
        try:
            async with AsyncClient(f"127.0.0.1:{port}") as client:
                await client.create_collection(
                    NAME, 8, model="m", shard_count=2, attributes={"name": "keyword"},
                    metric="inner_product",
                )  # fmt: skip
                await client.add_model(
                    NAME, "m2", DIMENSION, embedder=embedder, source="{name}: {text?}"
                )
                await client.add_model(NAME, "by-clients", 5)
                yield Served(cluster, coordinator, client)
        finally:
            await server.stop(grace_s=1.0)


async def test_a_migration_from_the_start_to_a_rollback(able: Served) -> None:
    client = able.client
    report_segments(able.cluster, {"s1": "m2"})
    begun = await client.start_migration(
        NAME, "m2", settings={"tasks_max": 3, "lacking_share_max": 0.5}, who="ada", why="better"
    )
    assert (begun.migration.settings.tasks_max, begun.migration.thresholds.recall_min) == (3, 0.95)
    again = await client.start_migration(NAME, "m2", who="ada")
    assert again.migration.history[0] == begun.migration.history[0]
    await able.phase(MigrationPhase.VALIDATE)
    changed = await client.update_migration(NAME, {"rows_per_second": 50}, who="bob")
    assert changed.migration.settings.rows_per_second == 50
    assert (await client.pause_migration(NAME, who="bob")).migration.paused
    assert (await client.resume_migration(NAME, who="bob", why="go")).migration.paused is False
    with pytest.raises(FailedPrecondition, match="recall is not measured") as refused:
        await client.commit_migration(NAME, who="ada")
    assert refused.value.reason == "GATE_NOT_PASSED"
    assert refused.value.metadata["recall"] == "recall is not measured, needed is at least 0.95"
    with pytest.raises(InvalidArgument, match="why"):
        await client.commit_migration(NAME, who="ada", force=True)
    forced = await client.commit_migration(NAME, who="ada", why="it is a test", force=True)
    step = forced.migration.history[-1]
    assert (step.event, step.who, step.why, step.forced) == ("commit", "ada", "it is a test", True)
    assert (await client.get_collection(NAME)).serving == "m2"
    back = await client.rollback_migration(NAME, who="ada")
    assert back.possible == ("pause", "update", "validate", "commit", "abort")
    assert (await client.get_collection(NAME)).serving == "m"
    assert (await client.validate_migration(NAME, who="ada")).migration.validations == 2
    with pytest.raises(FailedPrecondition, match=r"a migration .* has not ended"):
        await client.remove_model(NAME, "m2")
    with pytest.raises(FailedPrecondition, match="purge is not possible; possible is"):
        await client.purge_migration(NAME, who="ada")
    report_segments(able.cluster, {"s2": "m"})
    await client.abort_migration(NAME, who="ada")
    await able.phase(MigrationPhase.ABORTED)
    (listed,) = await client.migrations()
    assert listed == await client.migration(NAME)
    assert [one.name for one in (await client.get_collection(NAME)).usable_models] == [
        "m", "by-clients"
    ]  # fmt: skip


async def test_what_is_wrong_with_an_order_is_said(able: Served) -> None:
    client = able.client
    with pytest.raises(NotFound, match="it has 'm', 'm2', 'by-clients'"):
        await client.start_migration(NAME, "m3", who="ada")
    with pytest.raises(InvalidArgument, match="leads away from"):
        await client.start_migration(NAME, "m", who="ada")
    with pytest.raises(NotFound, match="has no migration"):
        await client.migration(NAME)
    with pytest.raises(NotFound, match="has no migration"):
        await client.pause_migration(NAME, who="ada")
    for who, said in (("", "say who asks"), ("leader", "names the cluster itself")):
        with pytest.raises(InvalidArgument, match=said):
            await client.start_migration(NAME, "m2", who=who)
    with pytest.raises(InvalidArgument, match="tasks_max"):
        await client.start_migration(NAME, "m2", settings={"tasks_max": 65}, who="ada")
    with pytest.raises(InvalidArgument, match="sample_size"):
        await client.plan_migration(NAME, "m2", sample_size=10_001)
    assert await client.migrations() == []


async def test_what_this_version_cannot_do_is_refused(able: Served) -> None:
    client = able.client
    with pytest.raises(Unimplemented, match="canary_share"):
        await client.start_migration(NAME, "m2", settings={"canary_share": 0.05}, who="ada")
    assert await client.migrations() == []


async def test_a_plan_says_what_a_migration_would_take(
    able: Served, endpoint: EmbeddingServer
) -> None:
    client = able.client
    ids = [f"p{n}" for n in range(40)]
    attributes = {"name": [None if n % 4 == 0 else "name" for n in range(40)]}
    await client.upsert(
        NAME, ids, [[1.0] * 8] * 40, attributes=attributes, payloads=[{"text": "x" * 10}] * 40
    )
    report_segments(able.cluster, {"s1": "m"})  # 100 rows in each of two shards
    plan = await client.plan_migration(NAME, "m2")
    assert (plan.rows, plan.rows_lacking, plan.sampled) == (200, 200, 40)
    assert plan.sampled_without_text == 10
    assert [(one.reason, one.rows) for one in plan.reasons] == [("no_source", 10)]
    # 30 of 40 records have the 16 characters "name: xxxxxxxxxx", 4 tokens; 200 are 5 times 40.
    assert (plan.characters, plan.tokens) == (30 * 5 * 16, 30 * 5 * 4)
    assert plan.rows_per_s > 0
    assert plan.duration_s == pytest.approx(150 / plan.rows_per_s)
    assert plan.disk_bytes == 200 * (DIMENSION * 4 + 2 * 16 * 8)
    assert plan.warnings == ()
    assert len(endpoint.requests[-1]) == 30  # with the new model's embedder
    few = await client.plan_migration(NAME, "m2", sample_size=4)
    assert few.sampled == 4


async def test_a_plan_without_an_embedder_or_with_a_broken_one_has_warnings(
    able: Served, endpoint: EmbeddingServer
) -> None:
    client = able.client
    report_segments(able.cluster, {"s1": "m"})
    outside = await client.plan_migration(NAME, "by-clients")
    assert outside.warnings == (
        "model 'by-clients' has no embedder: its vectors must come from clients",
    )
    assert (outside.rows_lacking, outside.characters) == (200, 0)
    await client.upsert(NAME, ["a"], [[1.0] * 8], attributes={"name": ["n"]})
    endpoint.refuses = lambda text: True
    refused = await client.plan_migration(NAME, "m2")
    assert refused.sampled == 1
    assert refused.reasons or refused.warnings
