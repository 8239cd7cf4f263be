"""The model of a shard (a dict and brute force) and the named checkers of DESIGN section 11.

Rows are functions of id and version (`tests.support.shards`), so the model keeps versions only. A
write that was not acknowledged leaves two legal versions of an id, until a check sees one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from annheal.errors import Fenced
from annheal.model.collection import Metric
from annheal.model.filter import Filter
from annheal.model.limits import WRITE_ROWS_MAX
from annheal.model.records import EVERYTHING, RecordSet
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.model.topology.manifest import Manifest, SegmentEntry
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.model.write import DeleteIds, ScanRequest
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.segment import checksum_of, load_delete_vector
from annheal.segment.meta import META_FILE, decode_meta
from annheal.segment.parts.meta import PART_META_FILE, decode_part_meta
from annheal.shard_node.owner.owned_shard import CHECKPOINT_SLOTS_MAX, OwnedShard
from annheal.shard_node.owner.write_path import GROUP_OPERATIONS_MAX
from annheal.shard_node.rows.shard import Shard
from annheal.shard_node.rows.view import ShardView
from annheal.shard_node.search.filter_cache import CACHE_BYTES_MAX, FilterCache
from annheal.shard_node.search.reads import count_rows, get_records, scan_page
from annheal.shard_node.search.searcher import Searcher
from annheal.shards.object_keys import part_key, segment_key, wal_prefix
from annheal.shards.routing import hash_id
from annheal.shards.wal import decode_wal_object
from tests.support.shards import colour_of, payload_of, size_of, vector_of

ABSENT = -1
SCORE_TOLERANCE = 1e-4
Predicate = Callable[[str, int], bool]


@dataclass(slots=True)
class ShardModel:
    """What a shard may hold: the legal versions of every id that was ever written."""

    legal: dict[str, set[int]] = field(default_factory=dict)

    def attempt(self, changes: Mapping[str, int]) -> None:
        """A write was sent and not acknowledged."""
        for record_id, version in changes.items():
            self.legal.setdefault(record_id, {ABSENT}).add(version)

    def acknowledge(self, changes: Mapping[str, int]) -> None:
        """A write was acknowledged: nothing older may be seen."""
        for record_id, version in changes.items():
            self.legal[record_id] = {version}

    def observe(self, seen: Mapping[str, int]) -> None:
        """Check that what is seen is legal (INV-1, INV-2, INV-6), and hold later reads to it."""
        wrong = {
            record_id: (seen.get(record_id, ABSENT), sorted(self.legal.get(record_id, {ABSENT})))
            for record_id in {*seen, *self.legal}
            if seen.get(record_id, ABSENT) not in self.legal.get(record_id, {ABSENT})
        }
        assert not wrong, f"INV-1/2/6: id -> (seen, legal): {wrong}"
        for record_id in self.legal:
            self.legal[record_id] = {seen.get(record_id, ABSENT)}

    def live(self) -> dict[str, int]:
        """Return id -> version of what exists; every id must have been observed."""
        settled: dict[str, int] = {}
        for record_id, versions in self.legal.items():
            (version,) = versions
            if version != ABSENT:
                settled[record_id] = version
        return settled


def versions_of(records: RecordSet) -> dict[str, int]:
    """Return id -> version, after checking every part of every record against the version."""
    assert records.payloads is not None
    assert records.attributes is not None
    assert records.vectors is not None
    assert len(set(records.ids)) == len(records.ids), f"INV-3: {sorted(records.ids)}"
    seen: dict[str, int] = {}
    rows = zip(
        records.ids,
        records.payloads.to_pylist(),
        records.attributes.to_pylist(),
        records.vectors,
        strict=True,
    )
    for record_id, payload, attributes, vector in rows:
        version = int(payload[6:-1])
        assert payload == payload_of(record_id, version)
        assert attributes["colour"] == colour_of(record_id, version)
        assert attributes["size"] == size_of(record_id, version)
        np.testing.assert_array_equal(vector, vector_of(record_id, version))
        seen[record_id] = version
    return seen


def read_all(view: ShardView, *, page_rows: int = 3) -> dict[str, int]:
    """Return id -> version by a paged scan; checks its order and its end (INV-3)."""
    seen: dict[str, int] = {}
    order: list[tuple[int, str]] = []
    after_hash, after_id = -1, ""
    while True:
        page = scan_page(
            view,
            ScanRequest("c1", 0, page_rows, after_hash, after_id, projection=EVERYTHING),
        )
        found = versions_of(page.records) if len(page.records) else {}
        assert not found.keys() & seen.keys(), "INV-3: a scan returned an id twice"
        seen |= found
        order += [(hash_id(record_id), record_id) for record_id in page.records.ids]
        if page.finished:
            break
        assert len(page.records) == page_rows, "a page that is not the last is full"
        after_hash, after_id = page.last_hash, page.last_id
    assert order == sorted(order)
    return seen


def check_reads(view: ShardView, model: ShardModel) -> None:
    """INV-1, INV-2, INV-3, INV-6: scan, count and get agree with the model."""
    model.observe(read_all(view))
    live = model.live()
    assert count_rows(view, None) == len(live) == view.live_rows
    ids = (*sorted(model.legal), "never-written")
    records = get_records(view, ids, EVERYTHING)
    assert records.ids == [record_id for record_id in ids if record_id in live]
    if live:
        assert versions_of(records) == live


def check_search(
    shard: OwnedShard,
    model: ShardModel,
    queries: npt.NDArray[np.float32],
    *,
    k: int,
    filter: Filter | None = None,
    matches: Predicate = lambda record_id, version: True,
    exact: bool = True,
    searcher: Searcher | None = None,
) -> SearchAnswer:
    """INV-2, INV-3: an exact search is brute force over the model; any other holds its rows.

    `searcher` brings what it remembers of earlier searches along. INV-7: the answer says what it
    was made of (`check_honest`).
    """
    view = shard.view
    live = {i: v for i, v in model.live().items() if matches(i, v)}
    if filter is not None:
        assert count_rows(view, filter) == len(live)
    options = SearchOptions(k=k, filter=filter, exact=exact, explain=True)
    searcher = searcher or Searcher(shard.collection, FilterCache())
    answer = searcher.search([(0, view)], queries, options)
    check_honest(answer, view, matches=len(live))
    assert answer.counts.tolist() == [min(k, len(live))] * len(queries)
    ids = sorted(live)
    vectors = np.array([vector_of(i, live[i]) for i in ids], dtype=np.float32)
    start = 0
    for query, count in zip(queries, answer.counts.tolist(), strict=True):
        found = answer.records.ids[start : start + count]
        scores = answer.scores[start : start + count]
        start += count
        assert len(set(found)) == count, f"INV-3: {found}"
        assert set(found) <= live.keys(), f"INV-2: {set(found) - live.keys()}"
        if not count:
            continue
        truth = brute_force(vectors, query, metric=shard.collection.model.metric)
        own = truth[[ids.index(record_id) for record_id in found]]
        np.testing.assert_allclose(scores, own, atol=SCORE_TOLERANCE, err_msg="INV-2")
        if exact:
            best = np.sort(truth)[::-1][:count]
            np.testing.assert_allclose(scores, best, atol=SCORE_TOLERANCE)
    return answer


def check_honest(answer: SearchAnswer, view: ShardView, *, matches: int) -> None:
    """INV-7: the answer names the state that it is of, and every part of it, none left out."""
    assert answer.sequences == {0: view.sequence}
    assert not answer.missing_shards
    parts = [one.segment_id for one in answer.explain]
    assert parts == [
        *(held.segment.id for held in view.segments),
        *("growing" for _ in view.growing),
    ], f"INV-7: {parts}"
    assert sum(one.live_rows for one in answer.explain) == view.live_rows
    assert sum(one.matches for one in answer.explain) == matches


def brute_force(
    vectors: npt.NDArray[np.float32], query: npt.NDArray[np.float32], *, metric: Metric
) -> npt.NDArray[np.float32]:
    """Return the score of every vector, higher = better."""
    wide = vectors.astype(np.float64)
    if metric is Metric.L2:
        return (-((wide - query) ** 2).sum(axis=1)).astype(np.float32)
    return (wide @ query).astype(np.float32)


async def check_manifest(objects: ObjectStore, manifest: Manifest) -> None:
    """INV-5: everything that the manifest names exists and matches its checksum."""
    rows: dict[str, int] = {}
    for entry in manifest.segments:
        await _check_segment(objects, manifest.collection_id, manifest.shard, entry)
        rows[entry.segment_id] = entry.rows
    for vector in manifest.delete_vectors:
        found = await load_delete_vector(objects, vector, rows=rows[vector.segment_id])
        assert found.dead_count == vector.dead_rows


async def check_outputs(objects: ObjectStore, tasks: Iterable[CompactionTask]) -> None:
    """INV-5: what waits for its publication exists and matches its checksum, too."""
    for task in tasks:
        if task.phase is TaskPhase.BUILT and task.output is not None:
            await _check_segment(objects, task.collection_id, task.shard, task.output)


async def _check_segment(
    objects: ObjectStore, collection_id: str, shard: int, entry: SegmentEntry
) -> None:
    place = (collection_id, shard, entry.segment_id)
    body = await objects.get(segment_key(*place, META_FILE))
    assert checksum_of(body) == entry.meta_checksum, f"INV-5: {entry}"
    files = {
        segment_key(*place, file.name): file
        for file in decode_meta(body, segment_id=entry.segment_id).files
    }
    for part in entry.parts:
        body = await objects.get(part_key(*place, part.part_id, PART_META_FILE))
        assert checksum_of(body) == part.meta_checksum, f"INV-5: {part}"
        meta = decode_part_meta(body, segment_id=entry.segment_id, part_id=part.part_id)
        files |= {part_key(*place, part.part_id, file.name): file for file in meta.files}
    for key, file in files.items():
        data = await objects.get(key)
        assert len(data) == file.size_bytes, f"INV-5: {file}"
        assert checksum_of(data) == file.checksum, f"INV-5: {file}"


def check_no_orphans(listing: Iterable[ObjectStat], manifest: Manifest) -> None:
    """INV-5: what is neither named nor part of the log was collected."""
    segments = {entry.segment_id for entry in manifest.segments}
    parts = {(one.segment_id, part.part_id) for one in manifest.segments for part in one.parts}
    vectors = {entry.key for entry in manifest.delete_vectors}
    orphans = [
        stat.key
        for stat in listing
        if not stat.key.startswith("wal/")
        and stat.key not in vectors
        and not (stat.key.startswith("segments/") and stat.key.split("/")[3] in segments)
        and not (stat.key.startswith("vectors/") and tuple(stat.key.split("/")[3:5]) in parts)
    ]
    assert not orphans, f"INV-5: nothing names {orphans}"


def check_epochs(epochs: Iterable[int]) -> None:
    """INV-4: every owner has a greater epoch than the one before it."""
    listed = list(epochs)
    assert all(a < b for a, b in itertools.pairwise(listed)), f"INV-4: {listed}"


async def check_log(objects: ObjectStore, manifest: Manifest, *, epoch: int) -> None:
    """INV-4: epochs never fall along the log, and each slot of the owner's time is the owner's.

    INV-1: behind the checkpoint there is no gap. INV-8: the manifest is never ahead of the log.
    """
    prefix = wal_prefix(manifest.collection_id, manifest.shard)
    found = [
        decode_wal_object(await objects.get(stat.key), key=stat.key)
        async for stat in objects.list(prefix)
    ]
    epochs = [one.epoch for one in found]
    assert epochs == sorted(epochs), f"INV-4: {epochs}"
    assert epochs[-1] == epoch == manifest.epoch, f"INV-4: {epochs[-1]}, {epoch}, {manifest.epoch}"
    assert len({(one.epoch, one.writer) for one in found}) == len(set(epochs)), "INV-4: two writers"
    last = found[-1].slot
    assert manifest.checkpoint_slot <= last, "INV-8"
    behind = [one.slot for one in found if one.slot > manifest.checkpoint_slot]
    assert behind == list(range(manifest.checkpoint_slot + 1, last + 1)), f"INV-1: {behind}"


async def check_deposed(former: OwnedShard) -> None:
    """INV-4, INV-7: a former owner can neither write nor promise a reader that it is up to date."""
    for call in (former.verify_owner(), former.write(DeleteIds(("r0",)), timeout_s=5.0)):
        try:
            await call
        except Fenced:
            continue
        raise AssertionError(f"INV-4: epoch {former.epoch} does not know that it is deposed")


def check_durable(replayed: Shard, model: ShardModel) -> None:
    """INV-1: whoever opens the shard now, with the stores alone, has what was acknowledged."""
    seen = read_all(replayed.view, page_rows=100)
    assert seen == model.live(), f"INV-1: {seen.items() ^ model.live().items()}"


def check_limits(shard: OwnedShard, filters: FilterCache, *, entries_max: int) -> None:
    """INV-9: what gathers in memory stays within its limits."""
    assert len(filters) <= entries_max
    assert filters.size_bytes <= CACHE_BYTES_MAX
    assert shard.state().wal_slots <= CHECKPOINT_SLOTS_MAX
    settings = shard.collection.settings
    for growing in shard.view.growing:
        assert growing.rows < settings.seal_rows_max + GROUP_OPERATIONS_MAX * WRITE_ROWS_MAX
