"""Records with vectors of several models, on random histories of one shard, against a dict.

Writes with vectors of one model or more, updates of one part, deletes, flushes, compactions,
backfilled parts and takeovers. After each of them every model finds exactly the records that have
a vector of it, with its own scores, and each record is read back with all its vectors.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal.compactor.attempt import Attempt
from annheal.compactor.build import build
from annheal.compactor.throttle import BuildSlots
from annheal.errors import Fenced, InvalidArgument, Unavailable
from annheal.index import build_flat
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.protocol import Put
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.records import (
    EVERYTHING,
    ModelVectors,
    RecordBatch,
    RecordPatch,
    lacking,
    vectors_of,
)
from annheal.model.search import SearchOptions, with_fallback
from annheal.model.topology.manifest import Manifest, Tier
from annheal.model.topology.task import CompactionTask, TaskReason
from annheal.model.write import DeleteIds, Update, Upsert
from annheal.segment import Segment
from annheal.segment.parts.files import upload_part
from annheal.segment.parts.write import write_part
from annheal.shard_node.owner.admission import checked
from annheal.shard_node.owner.shard_state import MeasuredSegment, with_recall
from annheal.shard_node.rows.view import ShardView
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.reads import get_records
from annheal.shard_node.search.searcher import Searcher, search_by_models
from tests.support.model_checker import check_manifest
from tests.support.shards import (
    DeadError,
    Mortal,
    Owner,
    ShardWorld,
    record_batch,
    shard_collection,
    size_of,
)

OLD = ModelSpec("m", 4, Metric.L2)
NEW = ModelSpec("new", 7, Metric.COSINE)
MODELS = (OLD, NEW)
ALL_VECTORS = replace(
    EVERYTHING,
    models=tuple(model.name for model in MODELS),
    dimensions=tuple(model.dimension for model in MODELS),
)
IDS = [f"r{number}" for number in range(40)]
HISTORIES = 3
STEPS = 45
LARGE = 5

Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """A record: the version that its attributes are made of, and its vectors by model."""

    version: int
    vectors: Mapping[str, Vector]


def vector(rng: np.random.Generator, model: ModelSpec) -> Vector:
    found = rng.standard_normal(model.dimension).astype(np.float32)
    return found / np.linalg.norm(found) if model.metric is Metric.COSINE else found


def as_matrices(rows: list[Mapping[str, Vector]]) -> list[ModelVectors]:
    """Return a matrix for each model that a row has a vector of; rows without one are NaN."""
    found: list[ModelVectors] = []
    for model in MODELS:
        if any(model.name in row for row in rows):
            nothing = np.full(model.dimension, np.nan, dtype=np.float32)
            matrix = np.array([row.get(model.name, nothing) for row in rows], dtype=np.float32)
            found.append(ModelVectors(model.name, matrix))
    return found


def batch_of(ids: list[str], rows: list[Mapping[str, Vector]], version: int) -> RecordBatch:
    first, *further = as_matrices(rows)
    batch = record_batch(ids, version=version)
    return replace(batch, vectors=first.vectors, model=first.model, further=tuple(further))


def scores(model: ModelSpec, query: Vector, vectors: npt.NDArray[np.float32]) -> Any:
    if model.metric is Metric.L2:
        return -((vectors - query) ** 2).sum(axis=1)
    return vectors @ query


def lacking_rows(segment: Segment) -> npt.NDArray[np.int64]:
    """Return the rows without a vector of the new model."""
    rows = np.arange(segment.rows)
    return rows[lacking(segment.vectors_of(NEW.name, rows, dimension=NEW.dimension))]


class History:
    """A shard and what it must hold."""

    def __init__(self, world: ShardWorld, owner: Owner, mortal: Mortal, seed: int) -> None:
        self.world, self.owner = world, owner
        self.mortal = mortal
        self.deaths = 0
        self.rng = np.random.default_rng(seed)
        self.random = random.Random(seed)
        self.records: dict[str, Expected] = {}
        self.version = 0
        self.tasks = self.compacted = self.backfilled = 0

    async def upsert(self) -> None:
        self.version += 1
        ids = self.random.sample(IDS, self.random.randint(1, 6))
        chosen = self.random.choice([(OLD,), (OLD,), (NEW,), MODELS, None])
        rows: list[Mapping[str, Vector]] = []
        for _ in ids:
            models = chosen or self.random.choice([(OLD,), (NEW,), MODELS])
            rows.append({model.name: vector(self.rng, model) for model in models})
        await self.owner.write(Upsert(batch_of(ids, rows, self.version)))
        for record_id, row in zip(ids, rows, strict=True):
            self.records[record_id] = Expected(self.version, row)

    async def update_vectors(self) -> None:
        ids = self.random.sample(IDS, self.random.randint(1, 4))
        model = self.random.choice(MODELS)
        vectors = np.array([vector(self.rng, model) for _ in ids])
        patch = RecordPatch(
            ids=pa.array(ids, type=pa.string()),
            attributes=pa.RecordBatch.from_arrays([], names=[]),
            vectors=vectors,
            model=model.name,
        )
        answer = await self.owner.write(Update(patch))
        assert set(answer.missing) == set(ids) - set(self.records)
        for record_id, one in zip(ids, vectors, strict=True):
            if record_id in self.records:
                held = self.records[record_id]
                self.records[record_id] = replace(held, vectors={**held.vectors, model.name: one})

    async def update_attributes(self) -> None:
        self.version += 1
        ids = self.random.sample(IDS, self.random.randint(1, 4))
        batch = record_batch(ids, version=self.version)
        await self.owner.write(Update(RecordPatch(batch.ids, batch.attributes, batch.payloads)))
        for record_id in set(ids) & set(self.records):
            self.records[record_id] = replace(self.records[record_id], version=self.version)

    async def delete(self) -> None:
        ids = self.random.sample(IDS, self.random.randint(1, 3))
        await self.owner.write(DeleteIds(tuple(ids)))
        for record_id in ids:
            self.records.pop(record_id, None)

    async def flush(self) -> None:
        await self.dying(self.owner.shard.flush())

    async def dying(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work, in which the owner may die at a call of a store; then another one opens."""
        self.mortal.arm(self.random.randint(0, 14) if self.random.random() < 0.4 else None)
        with contextlib.suppress(DeadError, Fenced, Unavailable):
            await work
            if not self.mortal.died:
                self.mortal.arm(None)
                return
        self.deaths += 1
        await self.owner.stop()
        await self.open()

    async def open(self) -> None:
        self.mortal = Mortal()
        self.owner = await self.world.open(
            hook=self.mortal, node_id=f"n{self.tasks}-{self.version}-{self.deaths}"
        )

    async def compact(self) -> None:
        segments = [held.segment.id for held in self.owner.shard.view.segments]
        if not segments:
            return
        self.tasks += 1
        chosen = self.random.sample(segments, self.random.randint(1, len(segments)))
        task = CompactionTask(
            f"t{self.tasks}", "c1", 0, tuple(chosen), Tier.WARM.value, TaskReason.MANUAL
        )
        attempt = Attempt(
            self.world.meta,
            self.world.objects,
            worker_dir=self.world.root / "worker",
            slots=BuildSlots(1),
        )
        await self.dying(self.owner.shard.publish_compaction(await attempt.run(task)))
        self.compacted += 1

    async def backfill(self) -> None:
        """Give some rows of a segment a vector of the new model, as a worker would."""
        views = [one for one in self.owner.shard.view.segments if len(lacking_rows(one.segment))]
        if not views:
            return
        view = self.random.choice(views)
        segment = view.segment
        rows = np.array(
            [row for row in lacking_rows(segment).tolist() if self.random.random() < 0.7]
        )
        if not len(rows):
            return
        self.tasks += 1
        made = np.array([vector(self.rng, NEW) for _ in rows])
        present = np.setdiff1d(np.arange(segment.rows), lacking_rows(segment))
        known = segment.vectors_of(NEW.name, present, dimension=NEW.dimension)
        part = write_part(
            self.world.root / f"part{self.tasks}",
            segment_id=segment.id,
            part_id=f"p{self.tasks}",
            model=NEW,
            index=build_flat(np.concatenate([made, known]), metric=NEW.metric),
            rows=np.concatenate([rows, present]),
            segment_rows=segment.rows,
            created_at_s=1.0,
            skipped={"no source": 1},
        )
        directory = self.world.root / f"part{self.tasks}"
        await upload_part(self.world.objects, "c1", 0, segment.id, directory, part)
        # Records that change now must not get the vectors that were made of what they were.
        doomed = self.random.choice(segment.ids_at(rows))
        live = ~view.deletes.is_dead(rows)
        ids = segment.ids_at(rows)
        await self.owner.write(DeleteIds((doomed,)))
        task = CompactionTask(
            f"t{self.tasks}",
            "c1",
            0,
            (segment.id,),
            "",
            TaskReason.BACKFILL,
            model=NEW.name,
            part=part,
        )
        await self.dying(self.owner.shard.publish_part(task))
        stored = [one.segment.parts.get(NEW.name) for one in self.owner.shard.view.segments]
        self.records.pop(doomed, None)
        if all(one is None or one.id != part.part_id for one in stored):
            return  # the owner died before the manifest had it
        self.backfilled += 1
        for record_id, one, alive in zip(ids, made, live.tolist(), strict=True):
            if alive and record_id in self.records:
                held = self.records[record_id]
                self.records[record_id] = replace(held, vectors={**held.vectors, NEW.name: one})

    async def take_over(self) -> None:
        if self.random.random() < 0.5:
            await self.owner.stop()
        await self.open()

    async def step(self) -> None:
        steps = (
            self.upsert,
            self.upsert,
            self.upsert,
            self.update_vectors,
            self.update_attributes,
            self.delete,
            self.flush,
            self.compact,
            self.backfill,
            self.take_over,
        )
        await self.random.choice(steps)()

    async def check(self) -> None:
        key = keys.manifest_key("c1", 0)
        item = await self.world.meta.get(key)
        if item is not None:
            await check_manifest(self.world.objects, decode_value(item.value, Manifest, key=key))
        view = self.owner.shard.view
        assert view.live_rows == len(self.records)
        for model in MODELS:
            self._check_search(view.of_model(model.name), model, set(self.records))
        # Each record from one model: the new one where it has a vector of it.
        new = view.of_model(NEW.name)
        rest = view.without_model(NEW.name).of_model(OLD.name)
        with_new = {i for i, one in self.records.items() if NEW.name in one.vectors}
        assert new.live_rows + rest.live_rows == len(self.records)
        self._check_search(new, NEW, with_new)
        self._check_search(rest, OLD, set(self.records) - with_new)
        self._check_both(view)
        self._check_reads(view)
        self._check_counts()

    def _check_search(self, view: ShardView, model: ModelSpec, among: set[str]) -> None:
        searcher = Searcher(self.owner.shard.collection, FilterCache())
        query = vector(self.rng, model)
        for filter in (None, Comparison("size", ComparisonOp.GE, LARGE)):
            options = SearchOptions(k=len(IDS), model=model.name, filter=filter, exact=True)
            answer = searcher.search([(0, view)], query[None], options)
            expected = {
                record_id: float(scores(model, query, one.vectors[model.name][None])[0])
                for record_id, one in self.records.items()
                if record_id in among
                and model.name in one.vectors
                and (filter is None or (size_of(record_id, one.version) or 0) >= LARGE)
            }
            assert sorted(answer.records.ids) == sorted(expected)
            found = dict(zip(answer.records.ids, answer.scores.tolist(), strict=True))
            for record_id, score in found.items():
                assert score == pytest.approx(expected[record_id], abs=1e-4), record_id

    def _check_both(self, view: ShardView) -> None:
        """One search by both models finds each record once, by the model that it is due to."""
        if not self.records:
            return
        searcher = Searcher(self.owner.shard.collection, FilterCache())
        queries = {model.name: vector(self.rng, model) for model in MODELS}
        query = np.concatenate([queries[NEW.name], queries[OLD.name]])
        options = SearchOptions(
            k=len(IDS),
            model=NEW.name,
            fallback=OLD.name,
            fallback_k=len(IDS),
            exact=True,
            projection=ALL_VECTORS,
        )
        found, _ = search_by_models(searcher, [(0, view)], query[None], options, (NEW, OLD))
        assert found.by_fallback is not None
        assert sorted(found.records.ids) == sorted(self.records)
        for record_id, score, by_fallback in zip(
            found.records.ids, found.scores.tolist(), found.by_fallback.tolist(), strict=True
        ):
            vectors = self.records[record_id].vectors
            assert by_fallback == (NEW.name not in vectors)
            model = OLD if by_fallback else NEW
            due = scores(model, queries[model.name], vectors[model.name][None])[0]
            assert score == pytest.approx(float(due), abs=1e-4)
        for model in MODELS:
            read = vectors_of(found.records, model.name)
            assert read is not None
            for row, record_id in enumerate(found.records.ids):
                stored = self.records[record_id].vectors.get(model.name)
                if stored is None:
                    assert lacking(read)[row]
                else:
                    np.testing.assert_allclose(read[row], stored, atol=1e-6)
        own, rest = found.of_fallback(False), found.of_fallback(True)
        for part in (own, rest):
            assert (np.diff(part.scores) <= 0).all()
        joined = with_fallback(own, rest)
        assert joined.records.ids == found.records.ids
        np.testing.assert_array_equal(joined.by_fallback, found.by_fallback)

    def _check_reads(self, view: ShardView) -> None:
        if not self.records:
            return
        ids = tuple(self.records)
        records = get_records(view, ids, ALL_VECTORS)
        assert tuple(records.ids) == ids
        assert records.vectors is not None
        assert records.attributes is not None
        given = [ModelVectors(records.model, records.vectors), *records.further]
        assert [one.model for one in given] == [model.name for model in MODELS]
        for row, record_id in enumerate(ids):
            one = self.records[record_id]
            for matrix in given:
                stored = one.vectors.get(matrix.model)
                if stored is None:
                    assert lacking(matrix.vectors)[row], (record_id, matrix.model)
                else:
                    np.testing.assert_allclose(matrix.vectors[row], stored, atol=1e-6)
            batch = record_batch([record_id], version=one.version)
            assert records.attributes.slice(row, 1).to_pylist() == batch.attributes.to_pylist()

    def _check_counts(self) -> None:
        states = self.owner.shard.state().segments
        for model in MODELS:
            facts = [one for state in states for one in state.models if one.model == model.name]
            having = sum(model.name in one.vectors for one in self.records.values())
            assert sum(one.rows for one in facts) == having
            assert sum(one.lacking for one in facts) == len(self.records) - having


def two_models() -> Collection:
    collection = shard_collection()
    return replace(collection, models=MODELS)


@pytest.mark.parametrize("seed", range(HISTORIES))
@pytest.mark.parametrize("serving", ["m", "new"])
async def test_every_model_finds_what_has_a_vector_of_it(
    tmp_path: Path, seed: int, serving: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "HNSW_ROWS_MIN", 10)
    world = ShardWorld(tmp_path, collection=replace(two_models(), serving=serving))
    await world.meta.commit(
        [Put(keys.collection_key(world.collection.name), encode_value(world.collection))]
    )
    try:
        history = History(world, await world.open(), Mortal(), seed)
        await history.open()
        for number in range(STEPS):
            await history.step()
            await history.check()
            if number % 15 == 14:
                for work in (history.flush, history.backfill, history.compact):
                    await work()
                    await history.check()
        assert history.compacted >= 1
        assert history.backfilled >= 1
        assert history.deaths >= 1
    finally:
        await world.close()


async def test_a_second_model_comes_while_the_collection_lives(tmp_path: Path) -> None:
    """Segments and a log of one model are read on when there are two, and the other way round."""
    world = ShardWorld(tmp_path)
    try:
        owner = await world.open()
        await owner.upsert("a", "b")
        await owner.shard.flush()
        await owner.upsert("c")
        rng = np.random.default_rng(1)
        both = {OLD.name: vector(rng, OLD), NEW.name: vector(rng, NEW)}
        with pytest.raises(InvalidArgument, match=r"'new'; the models of collection .* are 'm'"):
            await owner.write(Upsert(replace(batch_of(["d"], [both], 0), model=NEW.name)))
        world.collection = replace(world.collection, models=MODELS)
        owner.shard.change_settings(world.collection)
        await owner.write(Upsert(batch_of(["d"], [both], 0)))
        for serving in (OLD.name, NEW.name):
            world.collection = replace(world.collection, serving=serving)
            for each in (owner, await world.open(node_id=serving)):
                each.shard.change_settings(world.collection)
                view = each.shard.view
                assert view.of_model(OLD.name).live_rows == 4
                assert view.of_model(NEW.name).live_rows == 1
                assert each.shard.serving_view.live_rows == (4 if serving == OLD.name else 1)
            owner = world.owners[-1]
    finally:
        await world.close()


async def test_what_no_model_of_the_collection_can_have_is_refused(tmp_path: Path) -> None:
    world = ShardWorld(tmp_path, collection=two_models())
    rng = np.random.default_rng(1)
    try:
        owner = await world.open()
        good = {OLD.name: vector(rng, OLD), NEW.name: vector(rng, NEW)}
        batch = batch_of(["a", "b"], [good, good], 0)
        nan = np.full_like(batch.vectors, np.nan)
        for wrong, message in [
            (replace(batch, model="other"), "'other'; the models of collection .* are 'm', 'new'"),
            (replace(batch, model=NEW.name, further=()), "dimension 4, but model 'new'"),
            (replace(batch, vectors=nan, further=()), "send a vector of at least one of"),
            (replace(batch, further=(*batch.further, *batch.further)), "twice for model 'new'"),
            (
                replace(batch, further=(ModelVectors(NEW.name, batch.further[0].vectors[:1]),)),
                "1 of model 'new' for 2 ids",
            ),
        ]:
            with pytest.raises(InvalidArgument, match=message):
                await owner.write(Upsert(wrong))
        assert owner.shard.view.live_rows == 0
    finally:
        await world.close()


async def test_what_is_measured_of_a_part_is_reported_of_its_segment(tmp_path: Path) -> None:
    world = ShardWorld(tmp_path, collection=replace(two_models(), serving=NEW.name))
    rng = np.random.default_rng(1)
    try:
        owner = await world.open()
        both = {OLD.name: vector(rng, OLD), NEW.name: vector(rng, NEW)}
        await owner.write(Upsert(batch_of(["a", "b"], [both, both], 0)))
        await owner.shard.flush()
        (part,) = owner.shard.serving_view.segments
        (segment,) = owner.shard.view.segments
        assert part.segment.id != segment.segment.id
        measured = {part.segment.id: MeasuredSegment(0.5, 64, rebuild=True, stuck=False)}
        (state,) = with_recall(owner.shard.state(), measured, owner.shard.serving_view).segments
        assert (state.segment_id, state.recall, state.rebuild) == (segment.segment.id, 0.5, True)
    finally:
        await world.close()


def test_vectors_of_a_model_that_was_just_removed_are_left_out() -> None:
    collection = replace(two_models(), serving=NEW.name, removed=(OLD.name,))
    rng = np.random.default_rng(1)
    good = {OLD.name: vector(rng, OLD), NEW.name: vector(rng, NEW)}
    batch = batch_of(["a", "b"], [good, good], 0)
    (new,) = batch.further
    # A coordinator tags vectors of the first model with nothing.
    swapped = replace(
        batch, vectors=new.vectors, model=NEW.name, further=(ModelVectors("", batch.vectors),)
    )
    for given in (batch, swapped):
        kept = checked(Upsert(given), collection=collection)
        assert isinstance(kept, Upsert)
        assert (kept.batch.model, kept.batch.further) == (NEW.name, ())
        np.testing.assert_array_equal(kept.batch.vectors, new.vectors)
    with pytest.raises(InvalidArgument, match=r"the models of collection .* are 'new'"):
        checked(Upsert(replace(batch, further=())), collection=collection)
