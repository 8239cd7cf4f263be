"""The SDK against a real server: what goes in comes out, by every method."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal import AsyncClient, Client
from annheal.cli.server import opening
from annheal.cli.server.embedded import embedded_server as in_process_server
from annheal.errors import (
    AlreadyExists,
    DataCorruption,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from annheal.model.topology.shard import ShardPhase
from annheal.model.topology.task import TaskPhase
from annheal.runtime.retry import RetryPolicy
from annheal.shard_node import ownership
from tests.support.cluster import EmbeddedServer
from tests.support.ports import free_port

ROWS, DIMENSION = 3_000, 16
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
ATTRIBUTES = {
    "year": "int64",
    "share": "float64",
    "kind": "keyword",
    "tags": "keyword_list",
    "good": "bool",
    "at": "timestamp",
}


def made_vectors(rows: int = ROWS) -> npt.NDArray[np.float32]:
    return np.random.default_rng(11).standard_normal((rows, DIMENSION)).astype(np.float32)


VECTORS = made_vectors()
IDS = [f"r{row}" for row in range(ROWS)]


def attributes() -> dict[str, Any]:
    rows = range(ROWS)
    return {
        "year": np.arange(2000, 2000 + ROWS, dtype=np.int32) % 25 + 2000,
        "share": [row / ROWS for row in rows],
        "kind": pa.array(["odd" if row % 2 else "even" for row in rows]).dictionary_encode(),
        "tags": [["a", "b"] if row % 3 == 0 else None for row in rows],
        "good": [row % 5 == 0 for row in rows],
        "at": [NOON] * ROWS,
    }


@pytest.fixture
async def client(embedded_server: EmbeddedServer) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(embedded_server.address) as client:
        yield client


async def filled(client: AsyncClient, name: str, **settings: Any) -> None:
    await client.create_collection(
        name, DIMENSION, attributes=ATTRIBUTES, shard_count=2, **settings
    )
    seen: list[tuple[int, int]] = []
    result = await client.upsert(
        name,
        IDS,
        VECTORS,
        attributes=attributes(),
        payloads=[{"row": row} if row % 2 else None for row in range(ROWS)],
        batch_rows=500,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert result.count == ROWS
    assert seen[-1] == (ROWS, ROWS)
    assert len(seen) == ROWS // 500


def nearest(query: npt.NDArray[np.float32], k: int, rows: npt.NDArray[np.bool_]) -> list[str]:
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    scores = unit @ (query / np.linalg.norm(query))
    scores[~rows] = -2
    return [IDS[row] for row in np.argsort(-scores)[:k]]


async def test_records_come_back_as_they_went_in(client: AsyncClient) -> None:
    await filled(client, "sdk-records")
    found = await client.get("sdk-records", ["r7", "absent", "r3", "r0"])
    assert found.ids == ["r7", "r3", "r0"]
    first, second, third = found
    assert first.attributes == {
        "year": 2007,
        "share": pytest.approx(7 / ROWS),
        "kind": "odd",
        "good": False,
        "at": NOON,
    }
    assert second.attributes is not None
    assert second.attributes["tags"] == ["a", "b"]
    assert (first.payload, third.payload) == ({"row": 7}, None)
    assert first.vector is not None
    np.testing.assert_allclose(first.vector, VECTORS[7] / np.linalg.norm(VECTORS[7]), atol=1e-6)
    seen: list[str] = []
    async for page in client.scan("sdk-records", include=None, page_rows=700):
        assert len(page) <= 700
        assert page.vectors is None
        seen += page.ids
    assert sorted(seen) == sorted(IDS)
    years = [
        record.attributes
        async for page in client.scan("sdk-records", filter="year = 2003", include=["year"])
        for record in page
    ]
    assert years == [{"year": 2003}] * (ROWS // 25)


async def test_search_in_every_form_agrees_with_brute_force(client: AsyncClient) -> None:
    await filled(client, "sdk-search")
    query = VECTORS[42] + 0.1
    everything = np.ones(ROWS, dtype=bool)
    found = await client.search("sdk-search", query, k=5, exact=True, include=["kind", "payload"])
    assert found.ids == nearest(query, 5, everything)
    assert found.scores.dtype == np.float32
    assert list(found.scores) == sorted(found.scores, reverse=True)
    assert not found.partial
    assert {hit.id: hit.attributes for hit in found}["r42"] == {"kind": "even"}
    odd = np.arange(ROWS) % 2 == 1
    expression = "kind = 'odd' and year >= 2005"
    matching = odd & (np.arange(ROWS) % 25 >= 5)
    filtered = await client.search("sdk-search", query, k=5, filter=expression)
    assert filtered.ids == nearest(query, 5, matching)
    by_id = await client.search("sdk-search", id="r42", k=1)
    assert by_id.ids == ["r42"]
    assert by_id[0].score == pytest.approx(1, abs=1e-5)
    batch = await client.search_batch("sdk-search", VECTORS[:20], k=3)
    assert [ids[0] for ids in batch.ids] == IDS[:20]
    assert (await client.search_batch("sdk-search", ids=IDS[:20], k=3)).ids == batch.ids
    await client.flush("sdk-search")
    explained = await client.search("sdk-search", query, explain=True)
    assert sum(entry.live_rows for entry in explained.explain) == ROWS


async def test_searches_at_the_same_time_give_each_its_own_answer(client: AsyncClient) -> None:
    await filled(client, "sdk-gather")
    answers = await asyncio.gather(
        *(client.search("sdk-gather", VECTORS[row], k=2) for row in range(300))
    )
    assert [answer.ids[0] for answer in answers] == IDS[:300]
    bad = client.search("sdk-gather", np.full(DIMENSION, np.nan))
    good = [client.search("sdk-gather", VECTORS[row]) for row in range(5)]
    refused, *rest = await asyncio.gather(bad, *good, return_exceptions=True)
    assert isinstance(refused, InvalidArgument)
    assert [answer.ids[0] for answer in rest if not isinstance(answer, BaseException)] == IDS[:5]


async def test_deletes_counts_and_sessions(client: AsyncClient) -> None:
    await filled(client, "sdk-delete")
    assert (await client.delete("sdk-delete", ["r0", "r0", "absent"])).count == 1
    result = await client.delete("sdk-delete", filter="year = 2001")
    assert result.count == ROWS // 25
    assert await client.count("sdk-delete") == ROWS - 1 - ROWS // 25
    assert await client.count("sdk-delete", filter="good = true") == ROWS // 5 - 1
    token = client.session("sdk-delete")
    assert token is not None
    async with AsyncClient(client.address) as other:
        assert not await other.get("sdk-delete", ["r0"], session=token)
        found = await other.search("sdk-delete", VECTORS[0], session=token)
        assert "r0" not in found.ids
    # A token of a collection that was dropped is forgotten by itself.
    await client.drop_collection("sdk-delete")
    await client.create_collection("sdk-delete", DIMENSION)
    assert await client.count("sdk-delete", consistency="session") == 0


async def test_collections_are_described_changed_and_dropped(client: AsyncClient) -> None:
    created = await client.create_collection(
        "sdk-admin", 4, metric="l2", attributes={"n": "int64"}, settings={"recall_objective": 0.9}
    )
    assert (created.model.dimension, created.settings.recall_objective) == (4, 0.9)
    with pytest.raises(AlreadyExists):
        await client.create_collection("sdk-admin", 4)
    changed = await client.update_collection("sdk-admin", settings={"recall_objective": 0.99})
    assert changed.settings.recall_objective == 0.99
    changed = await client.update_collection("sdk-admin", settings={"recall_objective": None})
    assert changed.settings.recall_objective == 0.95
    names = [collection.name for collection in await client.list_collections()]
    assert "sdk-admin" in names
    assert names == sorted(names)
    await client.upsert("sdk-admin", ["a", "b"], [[0, 0, 0, 0], [3, 4, 0, 0]])
    far = await client.search("sdk-admin", [0, 0, 0, 0])
    assert far.scores.tolist() == [0.0, 25.0]
    await client.drop_collection("sdk-admin")
    with pytest.raises(NotFound):
        await client.get_collection("sdk-admin")


async def test_compaction_heals_and_recall_is_measured(client: AsyncClient) -> None:
    await filled(client, "sdk-heal")
    await client.flush("sdk-heal")
    await client.delete("sdk-heal", IDS[: ROWS // 3])
    before = await client.segments("sdk-heal")
    assert sum(segment.dead_rows for segment in before.segments) == ROWS // 3
    looks: list[int] = []
    tasks = await client.compact("sdk-heal", full=True, progress=lambda t: looks.append(len(t)))
    assert tasks
    assert {task.phase for task in tasks} <= {TaskPhase.PUBLISHED, TaskPhase.CANCELLED}
    assert looks
    assert tasks[0].task_id in {task.task_id for task in await client.tasks("sdk-heal")}
    after = await client.segments("sdk-heal")
    assert sum(segment.dead_rows for segment in after.segments) == 0
    assert sum(segment.rows for segment in after.segments) == ROWS - ROWS // 3
    report = await client.measure_recall("sdk-heal", sample_size=50)
    assert report.recall >= 0.95
    assert report.queries == 50
    status = await client.status()
    assert status.leader
    assert [node.registration.node_id for node in await client.nodes()] == ["local"]
    assert {shard.shard for shard in await client.shards("sdk-heal")} == {0, 1}
    assert await client.rebalance(dry_run=True) == ()


async def test_lossy_storage_answers_with_the_scores_of_the_vectors(
    client: AsyncClient, embedded_server: EmbeddedServer
) -> None:
    with pytest.raises(InvalidArgument, match="'int4' is none of float32, fp16, int8"):
        await client.create_collection("sdk-lossy", DIMENSION, settings={"storage": "int4"})
    created = await client.create_collection(
        "sdk-lossy", DIMENSION, metric="l2", settings={"storage": "int8"}
    )
    assert created.settings.storage == "int8"
    await client.upsert("sdk-lossy", IDS, VECTORS)
    await client.delete("sdk-lossy", IDS[:300])
    # So many that their mean says what the recall is: 40 of them had 0.9475 where 4,000 had 0.972.
    queries = made_vectors(ROWS + 500)[ROWS:]
    distances = ((queries[:, None] - VECTORS[None]) ** 2).sum(axis=2, dtype=np.float64)
    distances[:, :300] = np.inf
    await client.flush("sdk-lossy")
    for storage in ("int8", "fp16"):
        await client.update_collection("sdk-lossy", settings={"storage": storage})
        assert (await client.get_collection("sdk-lossy")).settings.storage == storage
        present = await client.segments("sdk-lossy")
        named = [one.segment_id for one in present.segments if one.segment_id != "growing"]
        await client.compact("sdk-lossy", segments=named)
        folder = embedded_server.data_dir / "objects" / "segments" / created.id
        stored = [
            json.loads(path.read_bytes())["build"]["storage"]
            for path in folder.rglob("segment.json")
        ]
        assert storage in stored
        found = 0
        results = await client.search_batch("sdk-lossy", queries, k=10)
        for result, truth in zip(results, distances, strict=True):
            numbers = [int(name.removeprefix("r")) for name in result.ids]
            np.testing.assert_allclose(result.scores, truth[numbers], rtol=1e-5)
            found += len({*numbers} & {*np.argsort(truth)[:10].tolist()})
        assert found >= 0.95 * 10 * len(queries)
    records = await client.get("sdk-lossy", ["r500"])
    np.testing.assert_array_equal(records[0].vector, VECTORS[500])


async def test_many_equal_vectors_compact_and_stay_findable(client: AsyncClient) -> None:
    rng = np.random.default_rng(2)
    vectors = rng.standard_normal((ROWS, 128)).astype(np.float32)
    vectors[rng.permutation(ROWS)[: ROWS * 9 // 10]] = vectors[0]
    vectors[1] = -vectors[0]
    await client.create_collection("sdk-equal", 128)
    await client.upsert("sdk-equal", IDS, vectors)
    await client.flush("sdk-equal")
    await client.compact("sdk-equal", full=True)
    tasks = await client.tasks("sdk-equal")
    assert TaskPhase.PUBLISHED in {task.phase for task in tasks}
    assert [
        task.error for task in tasks if task.phase is not TaskPhase.CANCELLED and task.error
    ] == []
    (segment,) = (await client.segments("sdk-equal")).segments
    assert segment.rows == ROWS
    assert (await client.search("sdk-equal", vectors[1], k=1)).ids == ["r1"]
    among_equals = await client.search("sdk-equal", vectors[0], k=100)
    assert among_equals.scores == pytest.approx(np.ones(100), abs=1e-5)
    status = await client.search("sdk-equal", vectors[1], k=1, recall_objective=1.0, explain=True)
    assert {entry.plan for entry in status.explain} == {"scan"}


async def test_errors_name_the_field_and_nothing_is_repeated_for_ever(client: AsyncClient) -> None:
    with pytest.raises(NotFound, match="sdk-absent"):
        await client.upsert("sdk-absent", ["a"], [[1.0]])
    await client.create_collection("sdk-errors", 4, attributes={"n": "int64"})
    with pytest.raises(InvalidArgument, match="dimension"):
        await client.upsert("sdk-errors", ["a"], [[1.0, 2.0]])
    with pytest.raises(InvalidArgument, match="2 ids"):
        await client.upsert("sdk-errors", ["a", "b"], [[1.0, 2.0, 3.0, 4.0]])
    with pytest.raises(InvalidArgument, match="k"):
        await client.search("sdk-errors", [1.0, 0, 0, 0], k=0)
    with pytest.raises(InvalidArgument, match="absent"):
        await client.search("sdk-errors", [1.0, 0, 0, 0], filter="absent = 1")
    with pytest.raises(NotFound):
        await client.search("sdk-errors", id="absent")
    hasty = RetryPolicy(delay_s_min=0.01, delay_s_max=0.02, attempts_max=3)
    async with AsyncClient(f"127.0.0.1:{free_port()}", retry_policy=hasty) as nobody:
        with pytest.raises(Unavailable):
            await nobody.count("c")
    async with AsyncClient(f"127.0.0.1:{free_port()}", timeout_s=0.3) as nobody:
        with pytest.raises((Unavailable, DeadlineExceeded)):
            await nobody.count("c")


def test_the_sync_client_does_the_same_from_several_threads(
    embedded_server: EmbeddedServer,
) -> None:
    with Client(embedded_server.address) as client:
        client.create_collection("sdk-sync", DIMENSION)
        assert client.upsert("sdk-sync", IDS[:500], VECTORS[:500].astype(np.float16)).count == 500
        assert sum(len(page) for page in client.scan("sdk-sync", page_rows=99)) == 500
        found: dict[int, str] = {}

        def search(row: int) -> None:
            found[row] = client.search("sdk-sync", VECTORS[row], k=1).ids[0]

        threads = [threading.Thread(target=search, args=(row,)) for row in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == dict(enumerate(IDS[:16]))
        with pytest.raises(NotFound):
            client.count("sdk-none")
    with pytest.raises(FailedPrecondition, match="closed"):
        client.count("sdk-sync")


async def test_a_server_in_this_process_keeps_its_data_and_its_lock(tmp_path: Path) -> None:
    async with in_process_server(tmp_path / "data") as server:
        assert (tmp_path / "data" / "address").read_text().strip() == server.address
        with pytest.raises(FailedPrecondition, match="in use by process"):
            async with in_process_server(tmp_path / "data"):
                pass
        async with AsyncClient(server.address) as client:
            await client.create_collection("kept", DIMENSION)
            await client.upsert("kept", IDS[:100], VECTORS[:100])
    assert not (tmp_path / "data" / "address").exists()
    async with (
        in_process_server(tmp_path / "data") as server,
        AsyncClient(server.address) as client,
    ):
        assert await client.count("kept") == 100
        assert (await client.search("kept", VECTORS[9], k=1)).ids == ["r9"]


async def test_a_server_is_ready_when_its_shards_are_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with in_process_server(tmp_path / "data") as server, AsyncClient(server.address) as first:
        await first.create_collection("slow", DIMENSION, shard_count=3)
        await first.upsert("slow", IDS[:100], VECTORS[:100])
    opened = ownership.open_shard

    async def slowly(*arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(0.3)
        return await opened(*arguments, **options)

    monkeypatch.setattr(ownership, "open_shard", slowly)
    async with in_process_server(tmp_path / "data") as server, AsyncClient(server.address) as again:
        assert {one.phase for one in await again.shards("slow")} == {ShardPhase.SERVING}
        assert await again.count("slow", timeout_s=1) == 100
    monkeypatch.setattr(opening, "OPEN_WITHIN_S", 0.0)
    async with in_process_server(tmp_path / "data"):
        assert "answering now, although these are still opening: slow/0" in caplog.text


async def test_a_role_that_dies_ends_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object, **__: object) -> None:
        raise DataCorruption("the queue is damaged")

    monkeypatch.setattr("annheal.cli.server.embedded.run_compactor", dies)
    async with in_process_server(tmp_path / "data") as server:
        with pytest.raises(DataCorruption, match="queue"):
            await asyncio.wait_for(server.wait(), 10)
    # The directory is free again.
    monkeypatch.undo()
    async with in_process_server(tmp_path / "data"):
        pass
