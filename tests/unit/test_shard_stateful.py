"""INV-1 to INV-6 on random histories of one shard, against a dict and brute force.

`ANNHEAL_STATEFUL_EXAMPLES` and `ANNHEAL_STATEFUL_STEPS` make it longer, for a soak.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from annheal.errors import AnnhealError, FailedPrecondition, Fenced
from annheal.index import build_hnsw
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import manifest_key
from annheal.model.collection import IndexSettings, Metric
from annheal.model.filter import Comparison, ComparisonOp, Filter
from annheal.model.manifest import Manifest, SegmentEntry, Tier
from annheal.model.records import EVERYTHING
from annheal.model.task import CompactionTask, TaskPhase, TaskReason
from annheal.segment import (
    DeleteVector,
    Segment,
    SegmentRows,
    fetch_segment,
    load_delete_vector,
    upload_segment,
    write_segment,
)
from tests.support.model_checker import (
    ABSENT,
    Predicate,
    ShardModel,
    check_epochs,
    check_manifest,
    check_reads,
    check_search,
)
from tests.support.shards import (
    COLOURS,
    DIMENSION,
    DeadError,
    Mortal,
    Owner,
    ShardWorld,
    colour_of,
    shard_collection,
    size_of,
)

EXAMPLES = int(os.environ.get("ANNHEAL_STATEFUL_EXAMPLES", "100"))
STEPS = int(os.environ.get("ANNHEAL_STATEFUL_STEPS", "20"))
IDS = [f"r{number}" for number in range(12)]
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Case:
    """A filter and the same in Python."""

    filter: Filter
    matches: Predicate


def colour_case(colour: str) -> Case:
    return Case(
        Comparison("colour", ComparisonOp.EQ, colour), lambda i, v: colour_of(i, v) == colour
    )


def size_case(limit: int) -> Case:
    def matches(record_id: str, version: int) -> bool:
        size = size_of(record_id, version)
        return size is not None and size < limit

    return Case(Comparison("size", ComparisonOp.LT, limit), matches)


ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=8, unique=True)
cases = st.sampled_from(COLOURS).map(colour_case) | st.integers(0, 10).map(size_case)


class ShardMachine(RuleBasedStateMachine):
    """One shard, its owners one after another, and at most one compaction at a time."""

    def __init__(self) -> None:
        super().__init__()
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.root = Path(tempfile.mkdtemp(prefix="annheal-stateful-", dir=base))
        self.runner = asyncio.Runner()
        self.model = ShardModel()
        self.version = 0
        self.life = Mortal()
        self.epochs: list[int] = []
        self.former: list[Owner] = []
        self.task: CompactionTask | None = None
        self.queries = np.random.default_rng(0).standard_normal((2, DIMENSION)).astype(np.float32)

    @initialize(
        metric=st.sampled_from([Metric.L2, Metric.INNER_PRODUCT]),
        seal_rows=st.sampled_from([4, 99]),
    )
    def begin(self, metric: Metric, seal_rows: int) -> None:
        async def make() -> ShardWorld:
            return ShardWorld(
                self.root, collection=shard_collection(metric=metric, seal_rows_max=seal_rows)
            )

        self.world = self.do(make())
        self.reopen()

    def do(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return self.runner.run(work)

    def reopen(self) -> None:
        self.life = Mortal()
        self.owner = self.do(self.world.open(hook=self.life, node_id=f"n{len(self.epochs)}"))
        self.epochs.append(self.owner.shard.epoch)
        check_epochs(self.epochs)

    # ------------------------------------------------------------------------------ writes

    @rule(changed=ids)
    def upsert(self, changed: list[str]) -> None:
        self.version += 1
        answer = self.do(self.owner.upsert(*changed, version=self.version))
        assert answer.upserted == len(changed)
        self.model.acknowledge(dict.fromkeys(changed, self.version))
        self.check()

    @rule(gone=st.lists(st.sampled_from(IDS), min_size=1, max_size=5))
    def delete(self, gone: list[str]) -> None:
        existing = self.model.live().keys() & set(gone)
        answer = self.do(self.owner.delete(*gone))
        assert answer.deleted == len(existing)
        self.model.acknowledge(dict.fromkeys(gone, ABSENT))
        self.check()

    @rule(case=cases)
    def delete_where(self, case: Case) -> None:
        gone = [i for i, v in self.model.live().items() if case.matches(i, v)]
        answer = self.do(self.owner.delete_where(case.filter))
        assert answer.deleted == len(gone)
        self.model.acknowledge(dict.fromkeys(gone, ABSENT))
        self.check()

    @rule(first=ids, second=ids, case=cases)
    def write_at_once(self, first: list[str], second: list[str], case: Case) -> None:
        """Several writes in one group, ordered as they came."""
        one, two = self.version + 1, self.version + 2
        self.version = two

        async def together() -> None:
            await asyncio.gather(
                self.owner.upsert(*first, version=one),
                self.owner.delete_where(case.filter),
                self.owner.upsert(*second, version=two),
            )

        self.do(together())
        self.model.acknowledge(dict.fromkeys(first, one))
        gone = [i for i, v in self.model.live().items() if case.matches(i, v)]
        self.model.acknowledge(dict.fromkeys(gone, ABSENT))
        self.model.acknowledge(dict.fromkeys(second, two))
        self.check()

    # ------------------------------------------------------------------------------- reads

    @rule(k=st.integers(1, 15), case=st.none() | cases, exact=st.booleans())
    def search(self, k: int, case: Case | None, exact: bool) -> None:
        case_or_all: dict[str, Any] = {}
        if case is not None:
            case_or_all = {"filter": case.filter, "matches": case.matches}
        check_search(self.owner.shard, self.model, self.queries, k=k, exact=exact, **case_or_all)

    # ------------------------------------------------------------------- flush, compaction

    @rule()
    def flush(self) -> None:
        self.do(self.owner.shard.flush())
        assert self.owner.shard.state().wal_slots == 0
        self.check()

    @rule(chosen=st.integers(0, 255))
    def begin_compaction(self, chosen: int) -> None:
        """Build from some segments; nothing is drawn from how many there are: flushes race."""
        manifest = self.manifest()
        if self.task is not None or not manifest.segments:
            return
        names = [entry.segment_id for entry in manifest.segments]
        sources = [name for i, name in enumerate(names) if chosen >> (i % 8) & 1] or names
        output = self.do(self.build(manifest, sources))
        self.task = CompactionTask(
            id="t",
            collection_id="c1",
            shard=0,
            sources=tuple(sources),
            tier="warm",
            reason=TaskReason.MERGE,
            phase=TaskPhase.BUILT,
            output=output,
        )

    @rule(twice=st.booleans(), racing=ids)
    def publish_compaction(self, twice: bool, racing: list[str]) -> None:
        task, self.task = self.task, None
        if task is None:
            return

        async def publish() -> None:
            await asyncio.gather(
                self.owner.shard.publish_compaction(task), self.owner.delete(*racing)
            )
            if twice:
                await self.owner.shard.publish_compaction(task)

        self.model.attempt(dict.fromkeys(racing, ABSENT))
        self.do(publish())
        self.model.acknowledge(dict.fromkeys(racing, ABSENT))
        held = {entry.segment_id for entry in self.manifest().segments}
        assert not held & set(task.sources)
        self.check()

    # -------------------------------------------------------------------- ends and takeovers

    @rule()
    def crash_and_reopen(self) -> None:
        self.do(self.owner.stop())
        self.reopen()
        self.check()

    @rule(steps=st.integers(0, 25), changed=ids, flushes=st.booleans())
    def crash_inside(self, steps: int, changed: list[str], flushes: bool) -> None:
        """Die `steps` calls of the stores after now, while writing, flushing and compacting."""
        self.version += 1
        self.life.arm(steps)
        task, self.task = self.task, None

        async def work() -> None:
            await self.owner.upsert(*changed, version=self.version)
            if flushes:
                await self.owner.shard.flush()
            if task is not None:
                await self.owner.shard.publish_compaction(task)
            await self.owner.shard.flush()

        self.model.attempt(dict.fromkeys(changed, self.version))
        with contextlib.suppress(AnnhealError, DeadError):
            self.do(work())
        self.do(self.owner.stop())
        self.reopen()
        self.check()

    @rule(changed=ids)
    def take_over(self, changed: list[str]) -> None:
        """Another node takes the shard; the former owner does not know yet, and tries to write."""
        former = self.owner
        self.reopen()
        with pytest.raises(Fenced):
            self.do(former.upsert(*changed, version=self.version + 1))
        with contextlib.suppress(Fenced):  # it may have nothing to flush
            self.do(former.shard.flush())
        assert self.manifest().epoch == self.owner.shard.epoch
        self.check()

    # ------------------------------------------------------------------------------ checks

    def check(self) -> None:
        check_reads(self.owner.shard.view, self.model)
        self.do(check_manifest(self.world.objects, self.manifest()))

    def manifest(self) -> Manifest:
        key = manifest_key("c1", 0)
        stored = self.do(self.world.meta.get(key))
        assert stored is not None
        return decode_value(stored.value, Manifest, key=key)

    async def build(self, manifest: Manifest, sources: list[str]) -> SegmentEntry | None:
        """Rebuild as a compactor does: from the manifest alone, without the rows dead in it."""
        vectors = {entry.segment_id: entry for entry in manifest.delete_vectors}
        rows: list[SegmentRows] = []
        for entry in manifest.segments:
            if entry.segment_id not in sources:
                continue
            files = await fetch_segment(
                self.world.objects, "c1", 0, entry, cache_dir=self.root / "compactor"
            )
            segment = Segment.open(files, entry)
            deletes = DeleteVector.empty(segment.rows)
            if entry.segment_id in vectors:
                deletes = await load_delete_vector(
                    self.world.objects, vectors[entry.segment_id], rows=segment.rows
                )
            rows.append(live_rows(segment, deletes))
        joined = join_rows(rows)
        if not len(joined):
            return None
        model = self.world.collection.model
        directory = Path(tempfile.mkdtemp(dir=self.root))
        entry = write_segment(
            directory,
            segment_id=directory.name.replace("_", "-"),
            tier=Tier.WARM,
            model=model,
            schema=self.world.collection.schema,
            rows=joined,
            created_at_s=1.0,
            index=build_hnsw(
                joined.vectors, metric=model.metric, settings=IndexSettings(), threads=1
            ),
        )
        await upload_segment(self.world.objects, "c1", 0, directory, entry)
        return entry

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.do(self.world.close())
        self.runner.close()
        shutil.rmtree(self.root)


def live_rows(segment: Segment, deletes: DeleteVector) -> SegmentRows:
    live = deletes.live_rows()
    taken = segment.take(live, EVERYTHING)
    assert taken.attributes is not None
    assert taken.payloads is not None
    assert taken.vectors is not None
    return SegmentRows(
        ids=pa.array(taken.ids, type=pa.string()),
        sequences=segment.sequences[live],
        vectors=taken.vectors,
        attributes=taken.attributes,
        payloads=taken.payloads,
    )


def join_rows(parts: list[SegmentRows]) -> SegmentRows:
    attributes = pa.Table.from_batches([part.attributes for part in parts]).combine_chunks()
    batches = attributes.to_batches()
    return SegmentRows(
        ids=pa.concat_arrays([part.ids for part in parts]),
        sequences=np.concatenate([part.sequences for part in parts]),
        vectors=np.concatenate([part.vectors for part in parts]),
        attributes=batches[0] if batches else parts[0].attributes,
        payloads=pa.concat_arrays([part.payloads for part in parts]),
    )


ShardMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=EXAMPLES == 100,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.slow
@pytest.mark.timeout(max(120, EXAMPLES * STEPS // 10))
class TestShard(ShardMachine.TestCase):  # type: ignore[misc]
    """The machine above, as pytest finds it."""


async def test_a_compaction_that_lost_a_row_is_refused(tmp_path: Path) -> None:
    world = ShardWorld(tmp_path)
    owner = await world.open()
    await owner.upsert("a", "b", version=1)
    await owner.shard.flush()
    key = manifest_key("c1", 0)
    stored = await world.meta.get(key)
    assert stored is not None
    (source,) = decode_value(stored.value, Manifest, key=key).segments
    task = CompactionTask("t", "c1", 0, (source.segment_id,), "warm", TaskReason.MERGE)
    with pytest.raises(FailedPrecondition, match="0 live rows, its sources 2"):
        await owner.shard.publish_compaction(task)
    assert owner.shard.view.live_rows == 2
    await world.close()
