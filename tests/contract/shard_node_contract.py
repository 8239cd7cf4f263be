"""What every `ShardNode` must do: run over each implementation by `test_shard_node.py`.

The node under test serves shards 0 and 1 of collection `c1`: `tests.support.shards.SCHEMA`,
compared by inner product, empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from annheal.errors import AnnhealError, Fenced, InvalidArgument
from annheal.filters import validate_filter
from annheal.model.filter import And, Comparison, ComparisonOp, Exists, Filter, Membership, Not
from annheal.model.records import EVERYTHING, IDS_ONLY, Projection, RecordPatch
from annheal.model.search import Consistency, SearchOptions, SearchRequest
from annheal.model.topology.task import CompactionTask, TaskReason
from annheal.model.validation import id_array
from annheal.model.write import (
    ANY_VERSION,
    NO_RECORD,
    CountRequest,
    DeleteIds,
    DeleteWhere,
    GetRequest,
    ScanRequest,
    Update,
    Upsert,
    VersionConflict,
    WriteAnswer,
    WriteOperation,
    WriteRequest,
)
from annheal.rpc.port import ShardNode
from annheal.shards.routing import hash_id
from tests.support.shards import (
    SCHEMA,
    colour_of,
    payload_of,
    record_batch,
    record_patch,
    size_of,
    vector_of,
)

IDS = tuple(f"r{n}" for n in range(40))


def canonical(filter: Filter) -> Filter:
    """Return the form in which a coordinator sends a filter."""
    return validate_filter(filter, SCHEMA)


RED = canonical(Comparison("colour", ComparisonOp.EQ, "red"))
FILTERS: dict[str, tuple[Filter, Any]] = {
    "equal": (RED, lambda one: colour_of(one, 0) == "red"),
    "range": (
        canonical(Comparison("size", ComparisonOp.GE, 5)),
        lambda one: (size_of(one, 0) or 0) >= 5,
    ),
    "one of": (
        canonical(Membership("colour", ("red", "blue"))),
        lambda one: colour_of(one, 0) in ("red", "blue"),
    ),
    "missing": (canonical(Not(Exists("size"))), lambda one: size_of(one, 0) is None),
    "both": (
        canonical(And((RED, Exists("size")))),
        lambda one: colour_of(one, 0) == "red" and size_of(one, 0) is not None,
    ),
    "nothing": (canonical(Comparison("size", ComparisonOp.GT, 99)), lambda _: False),
}


async def upsert(node: ShardNode, *ids: str, shard: int = 0, version: int = 0) -> WriteAnswer:
    batch = record_batch(ids, version=version)
    return await node.write(WriteRequest("c1", shard, Upsert(batch)))


def query(*ids: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([vector_of(one, 7) for one in ids], dtype=np.float32)


def search(*shards: int, k: int = 5, **changes: Any) -> SearchRequest:
    request = SearchRequest("c1", shards or (0,), query("a", "b"), SearchOptions(k=k))
    options = {name: changes.pop(name) for name in ("filter", "projection") if name in changes}
    return replace(request, options=replace(request.options, **options), **changes)


def best(ids: Sequence[str], vector: Any, *, k: int) -> list[str]:
    """Return the `k` best of `ids`, the truth."""
    return sorted(ids, key=lambda one: (-float(vector_of(one, 0) @ vector), one))[:k]


async def ids_of(node: ShardNode, shard: int = 0) -> set[str]:
    page = await node.scan(ScanRequest("c1", shard, 10_000, projection=IDS_ONLY))
    return set(page.records.ids)


class ShardNodeContract:
    """The port's promises; a subclass gives the fixture `node`."""

    # ------------------------------------------------------------------------------ searching

    async def test_a_search_returns_the_best_of_each_query(self, node: ShardNode) -> None:
        await upsert(node, *IDS)
        answer = await node.search(search(k=5))
        assert answer.counts.tolist() == [5, 5]
        found = [answer.records.ids[:5], answer.records.ids[5:]]
        assert found == [best(IDS, vector, k=5) for vector in query("a", "b")]
        expected = [
            vector_of(one, 0) @ vector
            for ids, vector in zip(found, query("a", "b"), strict=True)
            for one in ids
        ]
        np.testing.assert_allclose(answer.scores, expected, rtol=1e-5)
        assert answer.missing_shards == ()

    @pytest.mark.parametrize("name", FILTERS)
    async def test_a_search_returns_only_what_matches(self, node: ShardNode, name: str) -> None:
        filter, holds = FILTERS[name]
        await upsert(node, *IDS)
        answer = await node.search(search(k=100, filter=filter))
        wanted = [one for one in IDS if holds(one)]
        assert answer.counts.tolist() == [len(wanted)] * 2
        assert set(answer.records.ids) == set(wanted)

    async def test_a_search_joins_the_shards_asked(self, node: ShardNode) -> None:
        first = await upsert(node, *IDS[:20])
        second = await upsert(node, *IDS[20:], shard=1)
        answer = await node.search(search(0, 1, k=7))
        assert answer.records.ids[:7] == best(IDS, query("a")[0], k=7)
        assert dict(answer.sequences) == {0: first.sequence, 1: second.sequence}

    async def test_a_search_returns_what_the_projection_asks_for(self, node: ShardNode) -> None:
        await upsert(node, *IDS)
        bare = (await node.search(search(k=3))).records
        assert (bare.attributes, bare.payloads, bare.vectors) == (None, None, None)
        full = (await node.search(search(k=3, projection=EVERYTHING))).records
        check_full(full, version=0)

    async def test_a_search_of_nothing_finds_nothing(self, node: ShardNode) -> None:
        answer = await node.search(search(0, 1))
        assert (answer.counts.tolist(), answer.records.ids) == ([0, 0], [])

    @pytest.mark.parametrize(
        "wrong", [search(k=0), replace(search(), shards=()), replace(search(), shards=(0, 0))]
    )
    async def test_a_search_that_means_nothing_is_refused(
        self, node: ShardNode, wrong: SearchRequest
    ) -> None:
        with pytest.raises(InvalidArgument):
            await node.search(wrong)

    # -------------------------------------------------------------------------------- writing

    async def test_writes_replace_by_id_and_count(self, node: ShardNode) -> None:
        first = await upsert(node, "a", "b")
        second = await upsert(node, "b", "c", version=1)
        assert (first.upserted, second.upserted) == (2, 2)
        assert second.sequence > first.sequence
        check_full(await node.get(GetRequest("c1", 0, ("b", "c"))), version=1)
        check_full(await node.get(GetRequest("c1", 0, ("a",))), version=0)
        assert await node.count(CountRequest("c1", 0)) == 3

    async def test_an_update_replaces_only_what_it_names(self, node: ShardNode) -> None:
        await upsert(node, "a", "b", "c")
        whole = record_patch(("b", "nobody"), version=1)
        answer = await node.write(WriteRequest("c1", 0, Update(whole)))
        assert (answer.upserted, answer.missing, answer.conflicts) == (1, ("nobody",), ())
        check_full(await node.get(GetRequest("c1", 0, ("b",))), version=1)
        size = RecordPatch(id_array(["a"]), whole.attributes.select(["size"]).slice(0, 1))
        await node.write(WriteRequest("c1", 0, Update(size)))
        found = await node.get(GetRequest("c1", 0, ("a",)))
        assert found.attributes is not None
        assert found.attributes.to_pylist() == [
            {"colour": colour_of("a", 0), "size": size_of("b", 1)}
        ]
        assert found.payloads is not None
        assert found.payloads.to_pylist() == [payload_of("a", 0)]
        assert found.vectors is not None
        np.testing.assert_array_equal(found.vectors[0], vector_of("a", 0))
        check_full(await node.get(GetRequest("c1", 0, ("c",))), version=0)

    async def test_versions_grow_with_writes_and_are_conditions(self, node: ShardNode) -> None:
        wanted = GetRequest("c1", 0, ("a", "b"), Projection(version=True))
        await upsert(node, "a", "b")
        first = (await node.get(wanted)).versions
        assert first is not None
        assert (first >= 1).all()
        await upsert(node, "b", version=1)
        second = (await node.get(wanted)).versions
        assert second is not None
        assert second[0] == first[0]
        assert second[1] > first[1]
        (hit,) = (await node.search(search(k=1, projection=Projection(version=True)))).records.ids[
            :1
        ]
        assert hit in ("a", "b")

        async def write(operation: WriteOperation) -> WriteAnswer:
            return await node.write(WriteRequest("c1", 0, operation))

        batch = record_batch(("a", "b", "c"), version=2)
        answer = await write(Upsert(batch, np.array([first[0], first[1], NO_RECORD])))
        assert answer.upserted == 2
        assert answer.conflicts == (VersionConflict("b", int(second[1])),)
        check_full(await node.get(GetRequest("c1", 0, ("a", "c"))), version=2)
        check_full(await node.get(GetRequest("c1", 0, ("b",))), version=1)
        answer = await write(Upsert(batch, np.zeros(3, dtype=np.int64)))
        assert (answer.upserted, len(answer.conflicts)) == (0, 3)
        patch = record_patch(("b", "nobody"), version=3)
        answer = await write(Update(patch, np.array([ANY_VERSION, 7])))
        assert answer.upserted == 1
        assert answer.conflicts == (VersionConflict("nobody", NO_RECORD),)
        answer = await write(DeleteIds(("a", "b"), np.array([first[0], ANY_VERSION])))
        assert answer.deleted == 1
        assert [one.id for one in answer.conflicts] == ["a"]
        assert await ids_of(node) == {"a", "c"}

    async def test_a_delete_counts_what_there_was(self, node: ShardNode) -> None:
        written = await upsert(node, "a", "b", "c")
        answer = await node.write(WriteRequest("c1", 0, DeleteIds(("a", "nobody", "c"))))
        assert (answer.upserted, answer.deleted) == (0, 2)
        assert answer.sequence > written.sequence
        assert await ids_of(node) == {"b"}

    @pytest.mark.parametrize("name", FILTERS)
    async def test_a_delete_by_filter_takes_what_matches(self, node: ShardNode, name: str) -> None:
        filter, holds = FILTERS[name]
        await upsert(node, *IDS)
        answer = await node.write(WriteRequest("c1", 0, DeleteWhere(filter)))
        assert answer.deleted == sum(map(holds, IDS))
        assert await ids_of(node) == {one for one in IDS if not holds(one)}

    async def test_a_flush_changes_nothing_that_is_read(self, node: ShardNode) -> None:
        await upsert(node, *IDS)
        await node.flush("c1", 0)
        await upsert(node, "r1", version=1)
        assert await ids_of(node) == set(IDS)
        check_full(await node.get(GetRequest("c1", 0, ("r1",))), version=1)

    # -------------------------------------------------------------------------------- reading

    async def test_records_come_in_the_order_asked(self, node: ShardNode) -> None:
        await upsert(node, *IDS)
        found = await node.get(GetRequest("c1", 0, ("r9", "nobody", "r2", "r9", "r30")))
        assert found.ids == ["r9", "r2", "r30"]
        check_full(found, version=0)

    async def test_a_projection_names_attributes(self, node: ShardNode) -> None:
        await upsert(node, "a")
        found = await node.get(GetRequest("c1", 0, ("a",), Projection(("size",))))
        assert found.attributes is not None
        assert found.attributes.schema.names == ["size"]
        assert (found.payloads, found.vectors) == (None, None)

    @pytest.mark.parametrize("name", FILTERS)
    async def test_a_count_counts_what_matches(self, node: ShardNode, name: str) -> None:
        filter, holds = FILTERS[name]
        await upsert(node, *IDS)
        assert await node.count(CountRequest("c1", 0, filter)) == sum(map(holds, IDS))

    @pytest.mark.parametrize("filter", [None, RED])
    async def test_a_scan_sees_every_record_once_in_order(
        self, node: ShardNode, filter: Filter | None
    ) -> None:
        await upsert(node, *IDS)
        wanted = [one for one in IDS if filter is None or colour_of(one, 0) == "red"]
        request = ScanRequest("c1", 0, 7, filter=filter)
        seen: list[str] = []
        while True:
            page = await node.scan(request)
            assert len(page.records) <= 7
            check_full(page.records, version=0)
            seen += page.records.ids
            if page.finished:
                break
            request = replace(request, after_hash=page.last_hash, after_id=page.last_id)
        assert seen == sorted(wanted, key=lambda one: (hash_id(one), one))

    @pytest.mark.parametrize("consistency", Consistency)
    async def test_reads_see_what_was_acknowledged(
        self, node: ShardNode, consistency: Consistency
    ) -> None:
        answer = await upsert(node, *IDS)
        how: dict[str, Any] = {"consistency": consistency, "min_sequence": answer.sequence}
        assert await node.count(CountRequest("c1", 0, **how)) == len(IDS)
        assert (await node.get(GetRequest("c1", 0, ("r1",), **how))).ids == ["r1"]
        found = await node.search(
            search(consistency=consistency, min_sequences={0: answer.sequence})
        )
        assert found.counts.tolist() == [5, 5]

    async def test_reads_ahead_of_the_node_are_refused(self, node: ShardNode) -> None:
        answer = await upsert(node, "a")
        ahead = answer.sequence + 1
        with pytest.raises(Fenced):
            await node.count(CountRequest("c1", 0, min_sequence=ahead))
        with pytest.raises(Fenced):
            await node.get(GetRequest("c1", 0, ("a",), min_sequence=ahead))
        with pytest.raises(Fenced):
            await node.search(search(min_sequences={0: ahead}))

    # --------------------------------------------------------------------------------- shards

    @pytest.mark.parametrize("place", [("c1", 7), ("c2", 0)])
    async def test_a_shard_that_is_not_here_is_refused(
        self, node: ShardNode, place: tuple[str, int]
    ) -> None:
        collection_id, shard = place
        task = CompactionTask("t1", collection_id, shard, ("s",), "warm", TaskReason.MERGE)
        calls = (
            node.search(replace(search(), collection_id=collection_id, shards=(shard,))),
            node.write(WriteRequest(collection_id, shard, DeleteIds(("a",)))),
            node.get(GetRequest(collection_id, shard, ("a",))),
            node.count(CountRequest(collection_id, shard)),
            node.scan(ScanRequest(collection_id, shard, 1)),
            node.flush(collection_id, shard),
            node.publish_compaction(task),
        )
        for call in calls:
            with pytest.raises(AnnhealError) as refused:
                await call
            assert isinstance(refused.value, Fenced)

    async def test_the_states_are_of_the_shards_held(self, node: ShardNode) -> None:
        answer = await upsert(node, "a", "b", shard=1)
        states = {one.shard: one for one in await node.shard_states("c1")}
        assert {number: one.phase for number, one in states.items()} == {
            0: "serving",
            1: "serving",
        }
        assert (states[0].live_rows, states[1].live_rows) == (0, 2)
        assert states[1].applied_sequence == answer.sequence
        assert len(await node.shard_states()) == 2
        assert await node.shard_states("c2") == ()

    async def test_recall_is_of_the_collections_held(self, node: ShardNode) -> None:
        (of_collection,) = await node.recall("c1")
        assert of_collection.collection_id == "c1"
        assert await node.recall() == (of_collection,)
        assert await node.recall("c2") == ()

    async def test_without_searches_no_query_is_sampled(self, node: ShardNode) -> None:
        assert await node.sampled_queries("c1") == ()
        assert await node.sampled_queries("c2") == ()

    async def test_an_audit_without_measurements_is_empty_and_needs_the_shard(
        self, node: ShardNode
    ) -> None:
        assert await node.audit_recall("c1", 0, queries_max=10, timeout_s=5.0) == ()
        with pytest.raises(Fenced):
            await node.audit_recall("c1", 99, queries_max=10, timeout_s=5.0)


def check_full(found: Any, *, version: int) -> None:
    """Assert that the records have everything that was written of this version of them."""
    ids = found.ids
    assert found.attributes.column("colour").to_pylist() == [colour_of(i, version) for i in ids]
    assert found.attributes.column("size").to_pylist() == [size_of(i, version) for i in ids]
    assert found.payloads.to_pylist() == [payload_of(i, version) for i in ids]
    vectors = [vector_of(i, version) for i in ids]
    np.testing.assert_array_equal(found.vectors, np.array(vectors).reshape(found.vectors.shape))
