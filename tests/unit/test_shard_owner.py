"""An owned shard under bad input, full stores, absent stores and cancelled callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    Fenced,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.index import LiveBitmap
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import manifest_key
from annheal.model.collection import Metric
from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.records import EVERYTHING, RecordBatch
from annheal.model.search import SearchOptions
from annheal.model.topology.manifest import Manifest, SegmentEntry, Tier
from annheal.model.topology.task import CompactionTask, TaskReason
from annheal.model.write import DeleteIds, DeleteWhere, ScanRequest, Upsert, WriteOperation
from annheal.objectstore.wrappers import Fault, FaultKind, FaultyObjectStore, NoFaults, Operation
from annheal.segment import Segment, SegmentRows, fetch_segment, upload_segment, write_segment
from annheal.shard_node.owner import publication, resolving, write_path
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.reads import get_records, scan_page
from annheal.shard_node.search.searcher import Searcher
from tests.support.model_checker import (
    ABSENT,
    ShardModel,
    check_manifest,
    check_reads,
    check_search,
)
from tests.support.shards import (
    DIMENSION,
    Gate,
    Owner,
    ShardWorld,
    record_batch,
    shard_collection,
    shard_world,
)

PATIENCE_S = 20.0
QUERIES = np.random.default_rng(1).standard_normal((3, DIMENSION)).astype(np.float32)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[ShardWorld]:
    async with shard_world(tmp_path) as opened:
        yield opened


async def manifest_of(world: ShardWorld) -> Manifest:
    key = manifest_key("c1", 0)
    stored = await world.meta.get(key)
    assert stored is not None
    return decode_value(stored.value, Manifest, key=key)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def changed(batch: RecordBatch, **parts: Any) -> RecordBatch:
    columns = {name: getattr(batch, name) for name in ("ids", "vectors", "attributes", "payloads")}
    return RecordBatch(**{**columns, **parts})


def bad_operations() -> dict[str, WriteOperation]:
    batch = record_batch(["a", "b"], version=1)
    not_finite = batch.vectors.copy()
    not_finite[1, 2] = np.nan
    ints = pa.RecordBatch.from_arrays([pa.array([1, 2]), pa.array([1, 2])], ["colour", "size"])
    return {
        "repeated id": Upsert(changed(batch, ids=pa.array(["a", "a"], type=pa.string()))),
        "null id": Upsert(changed(batch, ids=pa.array(["a", None], type=pa.string()))),
        "dimension": Upsert(changed(batch, vectors=np.ones((2, 5), dtype=np.float32))),
        "rows": Upsert(changed(batch, vectors=batch.vectors[:1])),
        "payload rows": Upsert(changed(batch, payloads=batch.payloads.slice(0, 1))),
        "not finite": Upsert(changed(batch, vectors=not_finite)),
        "attribute types": Upsert(changed(batch, attributes=ints)),
        "attribute names": Upsert(changed(batch, attributes=batch.attributes.select(["size"]))),
        "empty id": DeleteIds(("",)),
        "long id": DeleteIds(("x" * 513,)),
        "unknown field": DeleteWhere(Comparison("nothing", ComparisonOp.EQ, 1)),
        "unfit value": DeleteWhere(Comparison("size", ComparisonOp.EQ, "red")),
    }


@pytest.mark.parametrize("name", list(bad_operations()))
async def test_a_bad_write_fails_alone(world: ShardWorld, name: str) -> None:
    """INV-3 and liveness: it is refused before the log, and its group goes on without it."""
    owner = await world.open()
    model = ShardModel()
    bad = asyncio.create_task(owner.write(bad_operations()[name]))
    await asyncio.gather(owner.upsert("x", version=1), owner.upsert("y", version=1))
    model.acknowledge({"x": 1, "y": 1})
    with pytest.raises(InvalidArgument):
        await bad
    check_reads(owner.shard.view, model)
    again = await world.open(node_id="b")
    check_reads(again.shard.view, model)


async def test_empty_writes_are_harmless(world: ShardWorld) -> None:
    owner = await world.open()
    assert (await owner.upsert()).upserted == 0
    assert (await owner.delete()).deleted == 0
    assert (await owner.delete_where(Comparison("size", ComparisonOp.EQ, 1))).deleted == 0
    await owner.shard.flush()
    again = await world.open(node_id="b")
    check_reads(again.shard.view, ShardModel())


async def test_an_empty_shard_answers(world: ShardWorld) -> None:
    owner = await world.open()
    check_search(owner.shard, ShardModel(), QUERIES, k=10)
    await owner.shard.flush()
    check_reads(owner.shard.view, ShardModel())


async def test_a_sealed_segment_without_live_rows_only_moves_the_checkpoint(
    world: ShardWorld,
) -> None:
    owner = await world.open()
    await owner.upsert("a", "b", version=1)
    await owner.delete("a", "b", "a")
    assert owner.shard.view.live_rows == 0
    await owner.shard.flush()
    manifest = await manifest_of(world)
    assert manifest.segments == ()
    assert manifest.checkpoint_slot == 2
    model = ShardModel()
    model.acknowledge({"a": ABSENT, "b": ABSENT})
    again = await world.open(node_id="b")
    check_reads(again.shard.view, model)


@pytest.mark.parametrize("flushed", [False, True])
@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
async def test_k_beyond_the_rows(tmp_path: Path, flushed: bool, metric: Metric) -> None:
    async with shard_world(tmp_path, collection=shard_collection(metric=metric)) as world:
        owner = await world.open()
        model = ShardModel()
        await owner.upsert("a", "b", "c", version=1)
        model.acknowledge({"a": 1, "b": 1, "c": 1})
        if flushed:
            await owner.shard.flush()
        await owner.delete("b")
        model.acknowledge({"b": ABSENT})
        check_reads(owner.shard.view, model)
        check_search(owner.shard, model, QUERIES, k=100)
        check_search(owner.shard, model, QUERIES, k=100, exact=False)


async def test_the_deepest_page_of_a_scan_is_reached(world: ShardWorld) -> None:
    """A page used to end the scan when its first candidate was the last record seen."""
    owner = await world.open()
    ids = [f"r{i}" for i in range(50)]
    await owner.upsert(*ids, version=1)
    model = ShardModel()
    model.acknowledge(dict.fromkeys(ids, 1))
    check_reads(owner.shard.view, model)
    await owner.shard.flush()
    check_reads(owner.shard.view, model)
    page = scan_page(owner.shard.view, ScanRequest("c1", 0, 50))
    assert page.finished
    assert len(page.records) == 50


async def test_a_read_sees_one_moment_however_the_rows_go_on(world: ShardWorld) -> None:
    owner = await world.open()
    await owner.upsert("a", "b", version=1)
    view = owner.shard.view
    await owner.upsert("a", "new", version=2)
    await owner.delete("b")
    found = get_records(view, ("new", "a", "b"), EVERYTHING)
    assert found.ids == ["a", "b"]
    assert found.payloads is not None
    assert found.payloads.to_pylist() == [b'{"v": 1}'] * 2


async def test_rows_without_attributes_can_be_read_whole(tmp_path: Path) -> None:
    async with shard_world(tmp_path, collection=shard_collection(schema=())) as world:
        owner = await world.open()
        whole = record_batch(["a", "b"], version=1)
        bare = changed(whole, attributes=whole.attributes.select([]))
        await owner.write(Upsert(bare))
        await owner.shard.flush()
        third = record_batch(["c"], version=1)
        await owner.write(Upsert(changed(third, attributes=third.attributes.select([]))))
        options = SearchOptions(k=3, projection=EVERYTHING)
        searcher = Searcher(owner.shard.collection, FilterCache())
        answer = searcher.search([(0, owner.shard.view)], QUERIES[:1], options)
        assert sorted(answer.records.ids) == ["a", "b", "c"]
        assert len(get_records(owner.shard.view, ("c", "a"), EVERYTHING)) == 2
        again = await world.open(node_id="b")
        assert again.shard.view.live_rows == 3


class Refuses:
    """Every call of `operation` on keys that start with `prefix` fails, until it is healed."""

    def __init__(self, operation: Operation, prefix: str = "") -> None:
        self._operation = operation
        self._prefix = prefix
        self.calls = 0

    def next_fault(self, operation: Operation, key: str) -> Fault:
        if operation is not self._operation or not key.startswith(self._prefix):
            return Fault()
        self.calls += 1
        return Fault(FaultKind.UNAVAILABLE)


async def test_flushes_that_fail_do_not_gather_sealed_segments(tmp_path: Path) -> None:
    settings = {"seal_rows_max": 4}
    async with shard_world(tmp_path, collection=shard_collection(**settings)) as world:
        plan = Refuses(Operation.PUT_FILE)
        objects = FaultyObjectStore(world.objects, plan)
        owner = await world.open(objects=objects)
        model = ShardModel()
        ids = [f"r{i}" for i in range(5)]
        await owner.upsert(*ids, version=1)
        model.acknowledge(dict.fromkeys(ids, 1))
        await wait_until(lambda: plan.calls >= 2)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await owner.shard.flush()
        assert len(owner.shard._shard.sealed) == 1
        await owner.upsert("x", version=1)  # writes go on meanwhile
        model.acknowledge({"x": 1})
        check_reads(owner.shard.view, model)
        objects.plan = NoFaults()
        await owner.shard.flush()
        assert owner.shard.state().wal_slots == 0
        check_reads(owner.shard.view, model)
        await check_manifest(world.objects, await manifest_of(world))


async def test_full_segments_are_flushed_by_themselves(tmp_path: Path) -> None:
    async with shard_world(tmp_path, collection=shard_collection(seal_rows_max=4)) as world:
        owner = await world.open()
        for number in range(3):
            await owner.upsert(*(f"r{number}-{i}" for i in range(4)), version=1)
        await wait_until(lambda: not owner.shard.view.growing)
        assert owner.shard.view.live_rows == 12


async def test_replayed_rows_are_flushed_by_age(tmp_path: Path) -> None:
    async with shard_world(tmp_path) as world:
        owner = await world.open()
        await owner.upsert("a", version=1)
        await owner.stop()
        world.collection = shard_collection(seal_age_s=0.1)
        again = await world.open()
        await wait_until(lambda: not again.shard.view.growing)


async def test_a_cancelled_flush_is_finished(world: ShardWorld) -> None:
    """Half a flush (the manifest stored, the rows not taken over) would cost the shard."""
    held, release = asyncio.Event(), asyncio.Event()
    armed = False

    async def hold_commit(moment: str, operation: str, key: str) -> None:
        if armed and (moment, operation) == ("after", "meta.commit"):
            held.set()
            await release.wait()

    owner = await world.open(hook=hold_commit)
    model = ShardModel()
    await owner.upsert("a", version=1)
    armed = True
    flushing = asyncio.create_task(owner.shard.flush())
    async with asyncio.timeout(PATIENCE_S):
        await held.wait()
    flushing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await flushing
    release.set()
    await wait_until(lambda: not owner.shard.view.growing)
    await owner.upsert("b", version=1)
    await owner.shard.flush()
    model.acknowledge({"a": 1, "b": 1})
    check_reads(owner.shard.view, model)
    assert not owner.shard.deposed


async def test_a_released_shard_ends_its_flush(world: ShardWorld) -> None:
    gate = Gate(holds_at=1_000_000)
    owner = await world.open(hook=gate)
    await owner.upsert("a", version=1)
    gate.holds_at = len(gate.calls)
    flushing = asyncio.create_task(owner.shard.flush())
    async with asyncio.timeout(PATIENCE_S):
        await gate.held.wait()
        await owner.stop()
        with pytest.raises(Fenced):
            await flushing
    with pytest.raises(Fenced):
        await owner.shard.flush()


async def test_writes_wait_out_an_absent_store(world: ShardWorld) -> None:
    plan = Refuses(Operation.PUT, "wal/")
    objects = FaultyObjectStore(world.objects, NoFaults())
    owner = await world.open(objects=objects)
    objects.plan = plan
    writing = asyncio.create_task(owner.upsert("a", version=1))
    with pytest.raises(UnknownOutcome):
        await owner.write(DeleteIds(("a",)), timeout_s=0.05)
    await wait_until(lambda: plan.calls >= 2)
    objects.plan = NoFaults()
    assert (await writing).upserted == 1
    assert owner.shard.view.live_rows == 1, "a delete that timed out before its turn is dropped"


async def test_back_pressure_spares_deletes(tmp_path: Path) -> None:
    async with shard_world(tmp_path, collection=shard_collection(unindexed_rows_max=2)) as world:
        owner = await world.open()
        await owner.upsert("a", "b", version=1)
        with pytest.raises(ResourceExhausted) as refused:
            await owner.upsert("c", version=1)
        assert refused.value.reason == "UNINDEXED_ROWS"
        assert refused.value.retry_after_s
        assert (await owner.delete("a")).deleted == 1


async def test_waiting_writes_have_a_limit(
    world: ShardWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_path, "WAITING_OPERATIONS_MAX", 3)
    owner = await world.open()
    writes = [asyncio.create_task(owner.delete(f"r{i}")) for i in range(10)]
    ends = await asyncio.gather(*writes, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, ResourceExhausted)]
    assert len(refused) == 7


async def test_a_delete_by_filter_has_a_limit(
    world: ShardWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolving, "DELETE_MATCHES_MAX", 1)
    owner = await world.open()
    await owner.upsert("a", "b", "c", "d", version=1)
    with pytest.raises(FailedPrecondition) as refused:
        await owner.delete_where(Comparison("size", ComparisonOp.GE, 0))
    assert refused.value.reason == "TOO_MANY_MATCHES"
    assert owner.shard.view.live_rows == 4


async def test_errors_that_many_callers_raise_are_their_own(world: ShardWorld) -> None:
    owner = await world.open()
    owner.shard.close()
    raised: list[AnnhealError] = []
    for _ in range(2):
        with pytest.raises(Fenced) as error:
            await owner.upsert("a")
        raised.append(error.value)
    assert raised[0] is not raised[1]


async def merged(world: ShardWorld, owner: Owner) -> CompactionTask:
    """Publish nothing for all segments, whose rows are dead."""
    sources = tuple(entry.segment_id for entry in (await manifest_of(world)).segments)
    return CompactionTask("t", "c1", 0, sources, "warm", TaskReason.TOMBSTONES)


async def test_cached_files_go_with_their_segment(world: ShardWorld) -> None:
    owner = await world.open()
    await owner.upsert("a", "b", version=1)
    await owner.shard.flush()
    task = await merged(world, owner)
    (source,) = task.sources
    shard_cache = world.cache / "a" / "c1" / "00000"
    for name in (source, "of-another-life"):
        (shard_cache / name).mkdir(parents=True)
        (shard_cache / name / "index.faiss").write_bytes(b"cached")
    await owner.delete("a", "b")
    await owner.shard.publish_compaction(task)
    assert [path.name for path in shard_cache.iterdir()] == ["of-another-life"]
    assert owner.shard.view.segments == ()
    await owner.stop()
    await world.open()
    assert list(shard_cache.iterdir()) == []


async def test_a_stale_compaction_is_refused_and_a_published_one_succeeds_again(
    world: ShardWorld,
) -> None:
    owner = await world.open()
    await owner.upsert("a", version=1)
    await owner.shard.flush()
    task = await merged(world, owner)
    await owner.delete("a")
    await owner.shard.publish_compaction(task)
    await owner.shard.publish_compaction(task)
    await owner.upsert("b", version=1)
    await owner.shard.flush()
    (present,) = (await manifest_of(world)).segments
    stale = CompactionTask(
        "t", "c1", 0, (*task.sources, present.segment_id), "warm", TaskReason.MERGE
    )
    with pytest.raises(FailedPrecondition) as refused:
        await owner.shard.publish_compaction(stale)
    assert refused.value.reason == "STALE_COMPACTION"


async def rebuilt(world: ShardWorld, sources: Sequence[SegmentEntry]) -> CompactionTask:
    """Build one flat segment of all rows of `sources`, of which none is dead."""
    parts: list[SegmentRows] = []
    for entry in sources:
        files = await fetch_segment(world.objects, "c1", 0, entry, cache_dir=world.root / "x")
        segment = Segment.open(files, entry)
        taken = segment.take(np.arange(segment.rows), EVERYTHING)
        batch = RecordBatch(
            pa.array(taken.ids, type=pa.string()),
            taken.vectors,  # type: ignore[arg-type]
            taken.attributes,  # type: ignore[arg-type]
            taken.payloads,  # type: ignore[arg-type]
        )
        parts.append(SegmentRows.of(batch, sequences=segment.sequences))
    (rows,) = parts
    output = write_segment(
        world.root / "output",
        segment_id="output",
        tier=Tier.WARM,
        model=world.collection.model,
        schema=world.collection.schema,
        rows=rows,
        created_at_s=1.0,
    )
    await upload_segment(world.objects, "c1", 0, world.root / "output", output)
    names = tuple(entry.segment_id for entry in sources)
    return CompactionTask("t", "c1", 0, names, "warm", TaskReason.MERGE, output=output)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_rows_that_die_while_a_compaction_is_published_stay_dead(
    world: ShardWorld, moment: str
) -> None:
    """INV-2, INV-6: between the two carries, and across the next owner."""
    held, release = asyncio.Event(), asyncio.Event()
    armed = False

    async def hold_commit(now: str, operation: str, key: str) -> None:
        if armed and (now, operation) == (moment, "meta.commit"):
            held.set()
            await release.wait()

    owner = await world.open(hook=hold_commit)
    model = ShardModel()
    await owner.upsert("a", "b", "c", "d", version=1)
    await owner.shard.flush()
    task = await rebuilt(world, (await manifest_of(world)).segments)
    await owner.delete("a")  # after the build, before the publication
    armed = True
    publishing = asyncio.create_task(owner.shard.publish_compaction(task))
    async with asyncio.timeout(PATIENCE_S):
        await held.wait()
        await owner.delete("b")
        await owner.upsert("c", version=2)
        release.set()
        await publishing
    model.acknowledge({"a": ABSENT, "b": ABSENT, "c": 2, "d": 1})
    assert [view.segment.id for view in owner.shard.view.segments] == ["output"]
    check_reads(owner.shard.view, model)
    check_search(owner.shard, model, QUERIES, k=10)
    next_owner = await world.open(node_id="b")
    check_reads(next_owner.shard.view, model)
    await check_manifest(world.objects, await manifest_of(world))


async def test_a_delete_vector_that_no_manifest_names_is_not_named_later(
    world: ShardWorld,
) -> None:
    """INV-5: between its upload and the next manifest it may have been collected as garbage."""
    owner = await world.open()
    for record_id in ("a", "b"):
        await owner.upsert(record_id, f"{record_id}2", version=1)
        await owner.shard.flush()
    first, second = (await manifest_of(world)).segments
    await owner.delete("a", "b", "b2")  # one row of the first segment, all of the second
    task = CompactionTask("t", "c1", 0, (second.segment_id,), "warm", TaskReason.TOMBSTONES)
    await owner.shard.publish_compaction(task)
    named = {entry.key for entry in (await manifest_of(world)).delete_vectors}
    stored = [stat.key async for stat in world.objects.list("deletes/")]
    await world.objects.delete([key for key in stored if key not in named])
    await owner.upsert("c", version=1)
    await owner.shard.flush()
    manifest = await manifest_of(world)
    assert [entry.segment_id for entry in manifest.delete_vectors] == [first.segment_id]
    await check_manifest(world.objects, manifest)


async def test_an_owner_that_slept_names_no_objects_of_before(
    world: ShardWorld,
) -> None:
    """What it uploaded may have been collected meanwhile (INV-5): it uploads anew."""
    clock: list[float] = []
    owner = await world.open(boottime=lambda: clock.pop(0) if clock else 0.0)
    await owner.upsert("a", version=1)
    before = await manifest_of(world)
    clock += [0.0, publication.PUBLISH_WITHIN_S + 1]
    with pytest.raises(Unavailable, match="could not be stored"):
        await owner.shard.flush()
    assert await manifest_of(world) == before
    await owner.shard.flush()
    assert len((await manifest_of(world)).segments) == 1


async def test_the_filter_cache_is_bounded_in_bytes_and_entries(world: ShardWorld) -> None:
    owner = await world.open()
    await owner.upsert(*(f"r{i}" for i in range(100)), version=1)
    await owner.shard.flush()
    segment = owner.shard.view.segments[0].segment
    by_entries = FilterCache(entries_max=4)
    by_bytes = FilterCache(bytes_max=3 * 13)
    for cache in (by_entries, by_bytes):
        for limit in range(9):
            bitmap = cache.matches(segment, Comparison("size", ComparisonOp.LT, limit))
            assert isinstance(bitmap, LiveBitmap)
    assert (len(by_entries), len(by_bytes)) == (4, 3)
