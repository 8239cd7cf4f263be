"""Backfills: texts of a segment's rows, embedded over real HTTP by a server that fails at will."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from annheal.compactor.attempt import Attempt
from annheal.compactor.build import backfill
from annheal.compactor.throttle import BuildSlots, MigrationPace
from annheal.errors import AnnhealError
from annheal.metastore.codec import encode_value
from annheal.metastore.keys import migration_key
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.texts.spec import EmbedderSpec, TextModel
from annheal.model.topology.migration.state import Migration, MigrationPhase, MigrationSettings
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from annheal.objectstore.local import LocalObjectStore
from annheal.segment import Segment
from annheal.segment.parts.files import fetch_part
from annheal.segment.parts.segment import PartSegment
from tests.support import compaction
from tests.support.compaction import COLLECTION_ID, SHARD, Workplace
from tests.support.embedding_server import EmbeddingServer, Fault, serve_embeddings, vector_of
from tests.support.segments import MODEL, sample_columns, sample_rows

NEW = ModelSpec("new", 8, Metric.COSINE)
ROWS = 60
DEAD = (0, 4, 59)
SOURCE = "{colour}, {size}, {weight?}"
COLUMNS = sample_columns(ROWS)
WITH_SOURCE = [
    row
    for row in range(ROWS)
    if row not in DEAD and COLUMNS["colour"][row] is not None and COLUMNS["size"][row] is not None
]
LIVE = ROWS - len(DEAD)


def text_of(row: int) -> str:
    weight = COLUMNS["weight"][row]
    return f"{COLUMNS['colour'][row]}, {COLUMNS['size'][row]}, {'' if weight is None else weight}"


@dataclass
class Place:
    """One segment of a collection that migrates, and an embedder."""

    work: Workplace
    server: EmbeddingServer

    async def migrate(self, **changes: object) -> None:
        settings = MigrationSettings()
        migration = Migration(
            COLLECTION_ID, MODEL.name, NEW.name, MigrationPhase.BACKFILL, settings=settings
        )
        migration = replace(migration, **changes)  # type: ignore[arg-type]
        key = migration_key(COLLECTION_ID)
        await self.work.meta.commit([Put(key, encode_value(migration))])

    async def run(self) -> CompactionTask:
        task = CompactionTask(
            "t1", COLLECTION_ID, SHARD, ("s1",), "hot", TaskReason.BACKFILL, model=NEW.name
        )
        attempt = Attempt(
            self.work.meta,
            self.work.objects,
            worker_dir=self.work.directory / "worker",
            slots=BuildSlots(1),
        )
        return await attempt.run(task)

    async def part(self, task: CompactionTask) -> PartSegment:
        assert task.part is not None
        segment: Segment = await self.work.open(self.work.manifest.segments[0])
        files = await fetch_part(
            self.work.objects,
            COLLECTION_ID,
            SHARD,
            "s1",
            task.part,
            cache_dir=self.work.directory / "parts",
        )
        return PartSegment(segment, files)

    async def publish(self, task: CompactionTask) -> None:
        """Put the part into the manifest, as the owner does."""
        assert task.part is not None
        manifest = self.work.manifest
        entry = replace(manifest.segments[0], parts=(task.part,))
        self.work.manifest = replace(manifest, segments=(entry,))
        await self.work.store()


def collection_of(server: EmbeddingServer, **options: object) -> Collection:
    # One request at a time: which of them meet the planned faults is certain then.
    embedder = EmbedderSpec(
        "openai", url=server.url, remote_model="hash-8", batch_texts=7, retries=3, concurrency=1
    )
    embedder = replace(embedder, **options)  # type: ignore[arg-type]
    return replace(
        compaction.collection(),
        models=(MODEL, NEW),
        text_models=(TextModel(NEW.name, embedder, SOURCE),),
    )


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    meta = SqliteMetaStore(tmp_path / "meta.db")
    objects = LocalObjectStore(tmp_path / "objects")
    with serve_embeddings() as server:
        work = Workplace(meta, objects, tmp_path, collection=collection_of(server))
        await work.add_segment("s1", sample_rows(ROWS), dead=DEAD)
        place = Place(work, server)
        await place.migrate()
        yield place
    await objects.close()
    await meta.close()


async def check(place: Place, task: CompactionTask, rows: list[int]) -> None:
    """The part has exactly these rows, each with the vector of its own text."""
    assert task.phase is TaskPhase.BUILT
    assert task.rows_out == len(rows)
    if not rows:
        assert task.part is None
        return
    part = await place.part(task)
    assert sorted(part.base_rows.tolist()) == rows
    expected = [vector_of(text_of(row)) for row in part.base_rows.tolist()]
    np.testing.assert_allclose(part.vectors, np.array(expected), atol=1e-6)


async def test_every_live_row_with_a_source_gets_the_vector_of_its_text(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backfill, "CHUNK_ROWS", 10)
    task = await place.run()
    await check(place, task, WITH_SOURCE)
    (skip,) = task.skipped
    assert (skip.reason, skip.rows) == ("no_source", LIVE - len(WITH_SOURCE))
    assert len(task.skipped_records) == skip.rows
    assert {one.id for one in task.skipped_records} == {
        f"record-{row}" for row in range(ROWS) if row not in (*DEAD, *WITH_SOURCE)
    }
    assert all("is missing" in one.reason for one in task.skipped_records)
    asked = [text for request in place.server.requests for text in request]
    assert sorted(asked) == sorted(text_of(row) for row in WITH_SOURCE)


async def test_rows_that_have_a_vector_keep_it_and_are_not_embedded_again(place: Place) -> None:
    place.server.refuses = lambda text: text.startswith("green")
    first = await place.run()
    red_and_blue = [row for row in WITH_SOURCE if COLUMNS["colour"][row] != "green"]
    await check(place, first, red_and_blue)
    assert {(one.reason, one.rows) for one in first.skipped} == {
        ("no_source", LIVE - len(WITH_SOURCE)),
        ("refused", len(WITH_SOURCE) - len(red_and_blue)),
    }
    await place.publish(first)
    place.server.refuses = lambda text: False
    place.server.requests.clear()
    second = await place.run()
    assert second.rows_out == len(WITH_SOURCE) - len(red_and_blue)
    assert second.part is not None
    assert second.part.rows == len(WITH_SOURCE)
    await check(place, replace(second, rows_out=len(WITH_SOURCE)), WITH_SOURCE)
    asked = [text for request in place.server.requests for text in request]
    assert len(asked) == second.rows_out
    assert all(text.startswith("green") for text in asked)


PASSING = [
    Fault.RATE_LIMIT,
    Fault.ERROR,
    Fault.OVERLOADED,
    Fault.SHORT,
    Fault.NO_INDEX,
    Fault.TWICE,
    Fault.WRONG_DIMENSION,
    Fault.NAN,
    Fault.NULL,
    Fault.HUGE,
    Fault.SHUFFLED,
    Fault.TRUNCATED,
    Fault.RESET,
    Fault.NOT_JSON,
]


@pytest.mark.parametrize("fault", PASSING)
async def test_a_fault_that_passes_loses_doubles_and_changes_nothing(
    place: Place, fault: Fault
) -> None:
    place.server.faults = [Fault.NONE, fault, Fault.NONE, fault]
    await check(place, await place.run(), WITH_SOURCE)


@pytest.mark.parametrize("fault", [Fault.NAN, Fault.WRONG_DIMENSION, Fault.SHORT, Fault.NULL])
async def test_bad_vectors_are_listed_and_never_stored(place: Place, fault: Fault) -> None:
    """One vector of each answer is bad, whenever it is asked for."""
    place.server.always = fault
    task = await place.run()
    bad = {one.reason: one.rows for one in task.skipped}["bad_vector"]
    assert bad >= len(WITH_SOURCE) // 7
    assert task.rows_out == len(WITH_SOURCE) - bad
    rows = [] if task.part is None else sorted((await place.part(task)).base_rows.tolist())
    assert set(rows) < set(WITH_SOURCE)
    await check(place, task, rows)


@pytest.mark.parametrize("fault", [Fault.ERROR, Fault.WRONG_KEY, Fault.NO_MODEL])
async def test_an_embedder_that_does_not_answer_fails_the_attempt(
    place: Place, fault: Fault
) -> None:
    """The task is tried again later; nothing is stored, and no record counts as skipped."""
    place.work.collection = collection_of(place.server, retries=0)
    await place.work.store()
    place.server.always = fault
    with pytest.raises(AnnhealError):
        await place.run()
    assert [stat.key async for stat in place.work.objects.list("vectors/")] == []


async def test_nothing_is_embedded_while_the_migration_is_paused_or_over(place: Place) -> None:
    await place.migrate(paused=True)
    await check(place, await place.run(), [])
    await place.migrate(phase=MigrationPhase.ABORTED)
    await check(place, await place.run(), [])
    assert place.server.requests == []


async def test_the_rate_is_kept_and_can_be_changed_while_it_runs(place: Place) -> None:
    now_s = 0.0
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        slept.append(seconds)

    pace = MigrationPace(place.work.meta, COLLECTION_ID, clock=lambda: now_s, sleep=sleep)
    await place.migrate(settings=MigrationSettings(rows_per_second=100.0, tasks_max=2))
    for _ in range(4):
        assert await pace.allow(50)
    assert now_s == pytest.approx(3.0)
    await place.migrate(settings=MigrationSettings(rows_per_second=0.0))
    assert await pace.allow(50)  # what the old rate still asks for
    after_s = now_s
    for _ in range(100):
        assert await pace.allow(50)
    assert now_s == pytest.approx(after_s)
    await place.migrate(paused=True)
    now_s += 5.0
    assert not await pace.allow(1)


async def test_a_cancelled_attempt_leaves_nothing_running(place: Place) -> None:
    place.server.always = Fault.SLOW
    running = asyncio.create_task(place.run())
    await asyncio.to_thread(place.server.arrived.wait, 60.0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert not list((place.work.directory / "worker").iterdir())
