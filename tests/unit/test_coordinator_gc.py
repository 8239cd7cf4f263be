from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.leader.gc import Garbage, GarbageCollector, plan_garbage, report_of
from annheal.metastore import keys
from annheal.metastore.codec import encode_value
from annheal.metastore.protocol import Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.model.topology.cluster import GarbageKind
from annheal.model.topology.manifest import (
    DeleteVectorEntry,
    IndexKind,
    Manifest,
    SegmentEntry,
    Tier,
)
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.protocol import ObjectStat
from tests.support.memory_cluster import spec

NOW = 100_000.0
GRACE = 3_600.0
OLD = NOW - 50_000.0


def stat(key: str, modified_s: float = OLD) -> ObjectStat:
    return ObjectStat(key, 10, modified_s)


def entry(segment_id: str) -> SegmentEntry:
    return SegmentEntry(segment_id, Tier.WARM, "m", IndexKind.HNSW, 1, 1, "00", 1, 1)


MANIFEST = Manifest(
    "c1",
    0,
    segments=(entry("live"),),
    delete_vectors=(DeleteVectorEntry("live", "deletes/c1/00000/live/now.bin", "00", 1),),
)
LISTING = [
    stat("segments/c1/00000/live/segment.json"),
    stat("segments/c1/00000/dead/segment.json"),
    stat("segments/c1/00000/dead/index.faiss"),
    stat("deletes/c1/00000/live/now.bin"),
    stat("deletes/c1/00000/live/before.bin"),
    stat("wal/c1/00000/00000000000000000001"),
    stat("recall/c1/00000/00000000000000000001.0000000001"),
]
DEAD = {
    "segments/c1/00000/dead/segment.json",
    "segments/c1/00000/dead/index.faiss",
    "deletes/c1/00000/live/before.bin",
}


def plan(
    listing: list[ObjectStat],
    *,
    now_s: float = NOW,
    before: Garbage | None = None,
    manifests: dict[tuple[str, int], Manifest] | None = None,
    tasks: tuple[CompactionTask, ...] = (),
    collections: frozenset[str] = frozenset({"c1"}),
    dropped: frozenset[str] = frozenset(),
) -> Garbage:
    return plan_garbage(
        listing,
        {("c1", 0): MANIFEST} if manifests is None else manifests,
        tasks,
        collections=collections,
        dropped=dropped,
        unreferenced_since={} if before is None else before.unreferenced_since,
        now_s=now_s,
        grace_s=GRACE,
    )


def test_what_is_unreferenced_is_deleted_after_the_grace_period_and_not_before():
    first = plan(LISTING)
    assert first.delete == ()
    early = plan(LISTING, now_s=NOW + GRACE - 1, before=first)
    assert early.delete == ()
    late = plan(LISTING, now_s=NOW + GRACE, before=early)
    assert set(late.delete) == DEAD
    assert late.unreferenced_since == {}


def test_a_segment_that_was_named_in_between_starts_its_grace_anew():
    first = plan(LISTING)
    named = replace(MANIFEST, segments=(entry("live"), entry("dead")))
    middle = plan(LISTING, now_s=NOW + 2_000, before=first, manifests={("c1", 0): named})
    last = plan(LISTING, now_s=NOW + GRACE, before=middle)
    assert not [key for key in last.delete if "/dead/" in key]


def test_young_objects_protect_their_whole_segment():
    young = [*LISTING, stat("segments/c1/00000/dead/rows.arrow", NOW)]
    late = plan(young, now_s=NOW + GRACE - 1, before=Garbage((), {"segments/c1/00000/dead/": 0.0}))
    assert not [key for key in late.delete if "/dead/" in key]


def test_shards_without_a_manifest_and_unknown_collections_are_left_alone():
    unreferenced = {"segments/c1/00000/dead/": 0.0, "segments/c9/00000/x": 0.0}
    before = Garbage((), unreferenced)
    assert plan(LISTING, before=before, manifests={}).delete == ()
    unknown = [stat("segments/c9/00000/x/segment.json")]
    assert plan(unknown, before=before).delete == ()


def test_dropped_collections_lose_everything_their_log_too():
    keys = {one.key for one in LISTING}
    first = plan(LISTING, collections=frozenset(), dropped=frozenset({"c1"}))
    assert first.delete == ()
    late = plan(
        LISTING,
        now_s=NOW + GRACE,
        before=first,
        collections=frozenset(),
        dropped=frozenset({"c1"}),
        manifests={},
    )
    assert set(late.delete) == keys


def test_a_mark_does_not_delete_a_collection_that_still_exists():
    before = Garbage((), {"wal/c1/00000/00000000000000000001": 0.0})
    late = plan(LISTING, now_s=NOW + GRACE, before=before, dropped=frozenset({"c1"}))
    assert not [key for key in late.delete if key.startswith("wal/")]


def test_the_output_of_an_unfinished_task_is_kept():
    building = CompactionTask(
        "t", "c1", 0, ("live",), "warm", TaskReason.MERGE, created_at_s=OLD - 10
    )
    before = Garbage((), {"segments/c1/00000/dead/": 0.0})
    for phase in (TaskPhase.PENDING, TaskPhase.BUILT):
        kept = plan(LISTING, before=before, tasks=(replace(building, phase=phase),))
        assert not [key for key in kept.delete if "/dead/" in key]
    later = replace(building, created_at_s=OLD + 1_000)
    for task in (later, replace(building, phase=TaskPhase.PUBLISHED), replace(building, shard=1)):
        gone = plan(LISTING, before=before, tasks=(task,))
        assert [key for key in gone.delete if "/dead/" in key]


def test_keys_of_other_shapes_are_not_touched():
    odd = [stat("segments/c1/readme"), stat("other/c1/00000/x/y"), stat("wal/c1/x/1")]
    assert plan(odd, before=Garbage((), {one.key: 0.0 for one in odd})).delete == ()


def test_the_report_counts_objects_and_bytes_by_kind():
    first = plan(LISTING)
    waiting = report_of(first, LISTING, dry_run=True, grace_s=GRACE)
    assert waiting.dry_run
    assert waiting.kinds == (
        GarbageKind("segments", waiting_objects=2, waiting_bytes=20),
        GarbageKind("vectors"),
        GarbageKind("deletes", waiting_objects=1, waiting_bytes=10),
        GarbageKind("wal"),
        GarbageKind("recall"),
    )
    late = plan(LISTING, now_s=NOW + GRACE, before=first)
    deleted = report_of(late, LISTING, dry_run=False, grace_s=GRACE)
    assert deleted.kinds[0] == GarbageKind("segments", deleted_objects=2, deleted_bytes=20)
    assert deleted.deleted_objects == 3


async def test_a_dry_run_deletes_nothing_and_a_real_one_what_is_due(tmp_path: Path):
    now = [time.time()]
    meta, objects = SqliteMetaStore(tmp_path / "meta"), LocalObjectStore(tmp_path / "objects")
    await meta.commit(
        [
            Put(keys.manifest_key("c1", 0), encode_value(MANIFEST)),
            Put(keys.collection_key("c"), encode_value(replace(spec("c"), id="c1"))),
        ]
    )
    for one in LISTING:
        await objects.put_if_absent(one.key, b"0123456789")
    collector = GarbageCollector(
        Catalog(meta), meta, objects, grace_s=GRACE, wall_clock=lambda: now[0]
    )

    async def left() -> set[str]:
        return {stat.key async for stat in objects.list("")}

    assert (await collector.collect()).kinds[0].waiting_objects == 2
    now[0] += GRACE + 1
    would = await collector.collect(dry_run=True)
    assert (would.deleted_objects, would.kinds[0].deleted_bytes) == (3, 20)
    assert await left() == {one.key for one in LISTING}
    did = await collector.collect()
    assert did == replace(would, dry_run=False)
    assert await left() == {one.key for one in LISTING} - DEAD
    assert (await collector.collect()).deleted_objects == 0
    await meta.commit([Put(keys.task_key("t"), b"not a task")])
    assert (await collector.collect()).kinds == (), "unreadable metadata: hands off"
    await meta.close()
    await objects.close()
