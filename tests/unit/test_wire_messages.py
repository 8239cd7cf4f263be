from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.errors import Conflict, FailedPrecondition, InvalidArgument
from annheal.model.collection import (
    AttributeField,
    AttributeType,
    Collection,
    CollectionSettings,
    IndexSettings,
    Metric,
    ModelSpec,
    VectorStorage,
)
from annheal.model.filter import (
    And,
    Comparison,
    ComparisonOp,
    Exists,
    Filter,
    Membership,
    Not,
    Or,
    Prefix,
)
from annheal.model.records import EVERYTHING, IDS_ONLY, Projection, RecordSet
from annheal.model.search import Consistency, SearchAnswer, SearchOptions, SegmentExplain
from annheal.model.session import SessionToken
from annheal.model.topology.cluster import (
    ClusterStatus,
    CollectionStatus,
    NodeStatus,
    RecallOptions,
    RecallReport,
    ShardMove,
    ShardRecall,
    ShardStatus,
    TaskStatus,
)
from annheal.model.topology.manifest import IndexKind, SegmentEntry, Tier
from annheal.model.topology.shard import (
    Assignment,
    NodeRegistration,
    ShardId,
    WorkerRegistration,
    WorkerRole,
)
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskClaim, TaskPhase, TaskReason
from annheal.v1 import admin_pb2, collections_pb2, filter_pb2, records_pb2, search_pb2
from annheal.wire import admin, enums, internal, records, search
from annheal.wire.filters import decode_filter, encode_filter
from annheal.wire.lifecycle import collections
from annheal.wire.session import encode_session

COLLECTION = Collection(
    id="c1",
    name="things",
    models=(ModelSpec("m", 3, Metric.L2),),
    schema=(AttributeField("year", AttributeType.INT64),),
    shard_count=4,
    index=IndexSettings(m=24, ef_construction=200),
    settings=CollectionSettings(recall_objective=0.9, seal_age_s=2.5, storage=VectorStorage.INT8),
    created_at_s=1_700_000_000.25,
    revision=17,
)

FIELDS = st.sampled_from(["year", "tags", "größe"])
VALUES = (
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.booleans()
    | st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(fold=0))
)
LEAVES = (
    st.builds(Comparison, FIELDS, st.sampled_from(ComparisonOp), VALUES)
    | st.builds(Membership, FIELDS, st.lists(VALUES, max_size=4).map(tuple), st.booleans())
    | st.builds(Exists, FIELDS)
    | st.builds(Prefix, FIELDS, st.just("ab"))
)


def trees(children: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    operands = st.lists(children, min_size=1, max_size=3).map(tuple)
    return st.builds(And, operands) | st.builds(Or, operands) | st.builds(Not, children)


@settings(max_examples=150, deadline=None)
@given(st.recursive(LEAVES, trees, max_leaves=12))
def test_filter_round_trip(tree: Filter) -> None:
    packed = encode_filter(tree).SerializeToString()
    # repr too: True == 1 == 1.0 would hide a value that changed its type.
    copy = decode_filter(filter_pb2.Filter.FromString(packed))
    assert copy == tree
    assert repr(copy) == repr(tree)


def test_deepest_allowed_filter_travels() -> None:
    tree: Filter = Exists("year")
    for _ in range(31):
        tree = And((tree,))
    packed = encode_filter(tree).SerializeToString()
    assert decode_filter(filter_pb2.Filter.FromString(packed)) == tree


EMPTY_VALUE = filter_pb2.Filter(comparison=filter_pb2.Comparison(field="a", op=1))


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (filter_pb2.Filter(), "filter"),
        (filter_pb2.Filter(all_of={}), "filter.all_of"),
        (
            filter_pb2.Filter(all_of={"operands": [{"exists": {"field": "a"}}, EMPTY_VALUE]}),
            "filter.all_of[1].comparison.value",
        ),
        (
            filter_pb2.Filter(comparison={"field": "a", "value": {"bool_value": True}}),
            "filter.comparison.op",
        ),
        (
            filter_pb2.Filter(comparison={"field": "a", "op": 99, "value": {"bool_value": True}}),
            "filter.comparison.op",
        ),
        (filter_pb2.Filter(negation={}), "filter.negation"),
        (
            filter_pb2.Filter(membership={"field": "a", "values": [{}]}),
            "filter.membership.values[0]",
        ),
        (
            filter_pb2.Filter(
                comparison={"field": "a", "op": 1, "value": {"float64_value": float("nan")}}
            ),
            "filter.comparison.value",
        ),
        (
            filter_pb2.Filter(
                comparison={
                    "field": "a",
                    "op": 1,
                    "value": {"timestamp_value": {"seconds": 10**12}},
                }
            ),
            "filter.comparison.value",
        ),
    ],
)
def test_wrong_filters_name_the_node(message: filter_pb2.Filter, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode_filter(message)
    assert caught.value.violations[0].field == field


def test_integers_beyond_64_bits_travel_as_floats_that_equal_them_or_not_at_all() -> None:
    message = encode_filter(Comparison("a", ComparisonOp.EQ, 2**64))
    assert message.comparison.value.float64_value == 2.0**64
    for wrong in (2**64 + 1, 10**400):
        with pytest.raises(InvalidArgument, match="does not fit into 64 bits"):
            encode_filter(Comparison("a", ComparisonOp.EQ, wrong))


@pytest.mark.parametrize("name", [n for n in dir(enums) if n.isupper()])
def test_every_enum_value_travels(name: str) -> None:
    codec: enums.EnumCodec[str] = getattr(enums, name)
    for value, number in codec._numbers.items():
        assert number > 0
        assert codec.decode(number, field="x") == value
    with pytest.raises(InvalidArgument, match=r"metric: has the unknown value 77; it is one of "):
        codec.decode(77, field="metric")
    with pytest.raises(InvalidArgument, match="x: is not set"):
        codec.decode(0, field="x")


# ------------------------------------------------------------------------------------ collections


def test_collection_round_trip() -> None:
    message = collections.encode_collection(COLLECTION)
    packed = collections_pb2.Collection.FromString(message.SerializeToString())
    assert collections.decode_collection(packed) == dataclasses.replace(COLLECTION, serving="m")


def test_create_takes_defaults_for_what_is_not_set() -> None:
    request = collections.encode_create_collection(
        "things", models=COLLECTION.models, schema=COLLECTION.schema
    )
    request.settings.recall_objective = 0.5
    created = collections.decode_create_collection(request, collection_id="c9", created_at_s=5.0)
    assert created == Collection(
        id="c9",
        name="things",
        models=COLLECTION.models,
        schema=COLLECTION.schema,
        shard_count=1,
        settings=CollectionSettings(recall_objective=0.5),
        created_at_s=5.0,
    )
    request.shard_count = 0
    assert (
        collections.decode_create_collection(
            request, collection_id="c9", created_at_s=5.0
        ).shard_count
        == 0
    ), "an explicit 0 is for validation to refuse, not to be read as the default"


def test_create_names_what_is_not_set() -> None:
    request = collections_pb2.CreateCollectionRequest(models=[{"name": "m", "dimension": 3}])
    with pytest.raises(InvalidArgument, match=r"models\[0\].metric: is not set; it is one of cos"):
        collections.decode_create_collection(request, collection_id="c", created_at_s=0)


def test_update_changes_what_the_mask_names_and_no_more() -> None:
    request = collections.encode_update_collection(
        "things", changes={"settings.recall_k": 20, "settings.seal_age_s": None, "index.m": 8}
    )
    request.settings.recall_objective = 0.1  # set, but not in the mask
    updated = collections.apply_update(request, collection=COLLECTION)
    assert updated == dataclasses.replace(
        COLLECTION,
        index=IndexSettings(m=8, ef_construction=200),
        settings=dataclasses.replace(
            COLLECTION.settings, recall_k=20, seal_age_s=CollectionSettings().seal_age_s
        ),
    )


def test_storage_is_named_in_updates_and_unknown_names_are_refused() -> None:
    request = collections.encode_update_collection(
        "things", changes={"settings.storage": "fp16", "settings.recall_k": 20}
    )
    updated = collections.apply_update(request, collection=COLLECTION)
    assert updated.settings.storage is VectorStorage.FP16
    reset = collections.encode_update_collection("things", changes={"settings.storage": None})
    updated = collections.apply_update(reset, collection=COLLECTION)
    assert updated.settings.storage is VectorStorage.FLOAT32
    choices = r"settings\.storage: 'fp17' is none of float32, fp16, int8"
    with pytest.raises(InvalidArgument, match=choices):
        collections.encode_update_collection("things", changes={"settings.storage": "fp17"})
    wrong: Any = CollectionSettings()
    wrong = dataclasses.replace(wrong, storage="fp17")
    with pytest.raises(InvalidArgument, match=choices):
        collections.encode_create_collection("things", models=COLLECTION.models, settings=wrong)
    strange = collections_pb2.CreateCollectionRequest(name="things", settings={"storage": 77})
    with pytest.raises(InvalidArgument, match=r"settings\.storage: has the unknown value 77"):
        collections.decode_create_collection(strange, collection_id="c", created_at_s=0)


def test_update_without_mask_changes_what_is_set() -> None:
    request = collections_pb2.UpdateCollectionRequest(settings={"recall_k": 3})
    updated = collections.apply_update(request, collection=COLLECTION)
    assert updated.settings == dataclasses.replace(COLLECTION.settings, recall_k=3)


def test_update_of_a_whole_group_resets_the_rest() -> None:
    request = collections_pb2.UpdateCollectionRequest(
        settings={"recall_k": 3}, update_mask={"paths": ["settings"]}
    )
    updated = collections.apply_update(request, collection=COLLECTION)
    assert updated.settings == CollectionSettings(recall_k=3)
    assert updated.index == COLLECTION.index


def test_update_refuses_unknown_paths_and_other_revisions() -> None:
    request = collections_pb2.UpdateCollectionRequest(update_mask={"paths": ["shard_count"]})
    with pytest.raises(InvalidArgument, match="update_mask: 'shard_count' cannot be changed"):
        collections.apply_update(request, collection=COLLECTION)
    with pytest.raises(InvalidArgument, match=r"'settings\.x' cannot be changed"):
        collections.encode_update_collection("things", changes={"settings.x": 1})
    with pytest.raises(InvalidArgument, match=r"settings\.recall_k"):
        collections.encode_update_collection("things", changes={"settings.recall_k": "many"})
    with pytest.raises(Conflict, match="at revision 17, the update is for 16"):
        collections.apply_update(
            collections_pb2.UpdateCollectionRequest(if_revision=16), collection=COLLECTION
        )


# ----------------------------------------------------------------------------------------- search


def answer(scores: list[float], **parts: object) -> SearchAnswer:
    base: dict[str, object] = {
        "counts": np.array([2, 0, 1], dtype=np.int32),
        "scores": np.array(scores, dtype=np.float32),
        "records": RecordSet(ids=["a", "b", "c"]),
    }
    return SearchAnswer(**(base | parts))  # type: ignore[arg-type]


def test_search_round_trip() -> None:
    token = SessionToken("c1", {0: 5, 3: 9})
    queries = np.arange(6, dtype=np.float64).reshape(2, 3)
    request = search.encode_search(
        "things",
        k=7,
        queries=queries,
        model="m",
        filter=Exists("year"),
        projection=Projection(("year",), True, False),
        session=token,
        exact=True,
        ef=64,
        timeout_s=1.5,
        allow_partial=True,
        explain=True,
    )
    parsed = search_pb2.SearchRequest.FromString(request.SerializeToString())
    decoded = search.decode_search(parsed, collection=COLLECTION)
    assert decoded.queries is not None
    assert decoded.queries.dtype == np.float32
    assert np.array_equal(decoded.queries, queries)
    assert decoded.options == SearchOptions(
        k=7,
        filter=Exists("year"),
        exact=True,
        ef=64,
        projection=Projection(("year",), True, False),
        explain=True,
    )
    assert decoded.consistency is Consistency.SESSION
    assert decoded.min_sequences == {0: 5, 3: 9}
    assert decoded.timeout_s == 1.5
    assert decoded.allow_partial


def test_plain_search_takes_the_defaults() -> None:
    request = search.encode_search("things", k=1, query_ids=["a", "b"])
    decoded = search.decode_search(request, collection=COLLECTION)
    assert decoded.queries is None
    assert decoded.query_ids == ("a", "b")
    assert decoded.options == SearchOptions(k=1)
    assert decoded.consistency is Consistency.EVENTUAL
    assert decoded.timeout_s is None


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (search_pb2.SearchRequest(k=1), "queries"),
        (search_pb2.SearchRequest(query_ids={}), "query_ids.ids"),
        (search_pb2.SearchRequest(vectors={"packed": b"123"}), "vectors.packed"),
        (
            search_pb2.SearchRequest(query_ids={"ids": ["a"]}, ef=3, recall_objective=0.5),
            "ef",
        ),
        (search_pb2.SearchRequest(query_ids={"ids": ["a"]}, consistency=9), "consistency"),
    ],
)
def test_wrong_searches_name_the_field(request_: search_pb2.SearchRequest, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        search.decode_search(request_, collection=COLLECTION)
    assert caught.value.violations[0].field == field


def test_sessions_of_a_dropped_collection_are_refused() -> None:
    request = search.encode_search(
        "things", k=1, query_ids=["a"], session=SessionToken("old", {0: 1})
    )
    with pytest.raises(FailedPrecondition, match="dropped and created anew"):
        search.decode_search(request, collection=COLLECTION)


def test_l2_scores_become_squared_distances_at_the_edge_and_only_there() -> None:
    inside = answer([-0.0, -1.5, -4.0])
    public = search.decode_search_response(search.encode_search_response(inside, metric=Metric.L2))
    assert public.scores.tolist() == [0.0, 1.5, 4.0]
    assert not np.signbit(public.scores).any()
    assert public.counts.tolist() == [2, 0, 1]
    assert public.records == RecordSet(["a", "b", "c"])
    for metric in (Metric.COSINE, Metric.INNER_PRODUCT):
        same = search.encode_search_response(answer([0.5, -0.25, 1.0]), metric=metric)
        assert search.decode_search_response(same).scores.tolist() == [0.5, -0.25, 1.0]
    internally = internal.decode_shard_answer(
        internal.encode_shard_answer(inside), collection_id="c1"
    )
    assert internally.scores.tolist() == [0.0, -1.5, -4.0]


def test_plain_answers_carry_nothing_more() -> None:
    message = search.encode_search_response(answer([3.0, 2.0, 1.0]), metric=Metric.COSINE)
    assert {field.name for field, _ in message.ListFields()} == {"counts", "scores", "ids"}


def test_full_answers_round_trip() -> None:
    explain = SegmentExplain(1, "s", "graph", 10, 9, 8, 64, 333, 0.25)
    full = answer(
        [3.0, 2.0, 1.0],
        records=RecordSet(["a", "b", "c"], vectors=np.ones((3, 3), dtype=np.float32)),
        explain=(explain,),
        missing_shards=(ShardId("c1", 2),),
    )
    token = SessionToken("c1", {1: 5})
    message = search.encode_search_response(full, metric=Metric.COSINE, model="m", session=token)
    public = search.decode_search_response(message, projection=Projection(vector=True))
    assert public.explain == (explain,)
    assert public.missing_shards == (2,)
    assert public.session == token
    assert public.records.vectors is not None
    assert public.records.vectors.shape == (3, 3)
    assert message.records.vectors[0].model == "m"


def test_inv7_an_answer_below_its_objective_says_so_on_both_wires() -> None:
    for below in (False, True):
        inside = answer([3.0, 2.0, 1.0], below_objective=below)
        message = search.encode_search_response(inside, metric=Metric.COSINE)
        assert search.decode_search_response(message).below_objective is below
        between = internal.decode_shard_answer(
            internal.encode_shard_answer(inside), collection_id="c1"
        )
        assert between.below_objective is below
    # Parts of an older version do not say it.
    assert not search.decode_search_response(search_pb2.SearchResponse()).below_objective


def test_a_collection_of_an_older_version_has_the_default_budget() -> None:
    older = collections.encode_collection(COLLECTION)
    older.settings.ClearField("recall_budget")
    assert collections.decode_collection(older).settings.recall_budget == 16.0


# ---------------------------------------------------------------------------------------- records


def test_reads_and_deletes_round_trip() -> None:
    token = SessionToken("c1", {2: 4})
    get = records.decode_get(
        records.encode_get("things", ids=["a"], projection=IDS_ONLY, session=token),
        collection_id="c1",
    )
    assert get == records.PublicGet(("a",), IDS_ONLY, Consistency.SESSION, {2: 4})
    bare = records.decode_get(records_pb2.GetRequest(ids=["a"]), collection_id="c1")
    assert bare.projection == EVERYTHING
    count = records.decode_count(
        records.encode_count("things", filter=Exists("y"), consistency=Consistency.STRONG),
        collection_id="c1",
    )
    assert count == records.PublicCount(Exists("y"), Consistency.STRONG, {})
    scan = records.decode_scan(records.encode_scan("things", cursor="x", page_size=7))
    assert scan == records.PublicScan(None, EVERYTHING, 7, "x")
    assert records.decode_scan(records_pb2.ScanRequest()).rows_max == 1_000
    with pytest.raises(InvalidArgument, match="page_size: 10001 is not between 0 and 10000"):
        records.decode_scan(records_pb2.ScanRequest(page_size=10_001))
    where = records.encode_delete_where("things", filter=Exists("y"))
    assert records.decode_delete_where(where) == Exists("y")
    with pytest.raises(InvalidArgument, match="drop the collection"):
        records.decode_delete_where(records_pb2.DeleteByFilterRequest())


def test_write_answers_carry_the_session() -> None:
    token = SessionToken("c1", {1: 2})
    session = encode_session(token)
    responses: list[records.WriteResponse] = [
        records_pb2.UpsertResponse(upserted=3, session=session),
        records_pb2.UpdateResponse(updated=3, session=session),
        records_pb2.UpsertIfResponse(upserted=3, session=session),
        records_pb2.DeleteIfResponse(deleted=3, session=session),
        records_pb2.DeleteByIdsResponse(deleted=3, session=session),
        records_pb2.DeleteByFilterResponse(deleted=3, session=session),
    ]
    for response in responses:
        assert records.decode_write_response(response) == records.Written(3, token)


def test_sessions_merge_to_what_either_sees() -> None:
    left, right = SessionToken("c1", {0: 5, 1: 1}), SessionToken("c1", {1: 9, 2: 3})
    assert left.merged(right) == SessionToken("c1", {0: 5, 1: 9, 2: 3})
    assert left.merged(SessionToken("c2", {0: 1})) == SessionToken("c2", {0: 1})


# ------------------------------------------------------------------------------------------ admin

STATE = ShardState(
    collection_id="c1",
    shard=2,
    node_id="n1",
    phase="serving",
    epoch=4,
    live_rows=10,
    dead_rows=2,
    unindexed_rows=3,
    applied_sequence=99,
    wal_slots=5,
    memory_bytes=1 << 40,
    segments=(
        SegmentState(2, "s1", "hot", "m", "flat", 12, 2, 4096, 1, 1_700_000_000.5, 1, 99),
        SegmentState(2, "s0", "warm", "m", "hnsw", 9, 0, 99, 1, 5.0, 1, 99, 0.75, 128, True, True),
        SegmentState(2, "growing", "growing", "m", "flat", 1, 0, 12, 0, 0.0, 100, 100),
    ),
    error="slow",
)
TASK = CompactionTask(
    id="t1",
    collection_id="c1",
    shard=2,
    sources=("s1", "s2"),
    tier="warm",
    reason=TaskReason.TOMBSTONES,
    phase=TaskPhase.BUILT,
    priority=-3,
    estimated_bytes=123,
    created_at_s=5.5,
    finished_at_s=6.5,
    attempts=2,
    worker="w",
    error="was killed",
    output=SegmentEntry(
        "s3",
        Tier.WARM,
        "m",
        IndexKind.HNSW,
        8,
        999,
        "ab" * 16,
        1,
        99,
        generation=2,
        created_at_s=6.25,
    ),
    rows_in=12,
    rows_out=8,
)


def test_shards_states_and_compactions_round_trip() -> None:
    assert internal.decode_shard_state(internal.encode_shard_state(STATE)) == STATE
    recall = dataclasses.replace(TASK, reason=TaskReason.RECALL)
    for task in (TASK, recall, dataclasses.replace(TASK, output=None)):
        assert internal.decode_publish(internal.encode_publish(task)) == task
    shard = ShardStatus.of(
        Assignment("c1", 2, owner="n1", epoch=4, target="n2"), STATE, collection="things"
    )
    assert (shard.live_rows, shard.segments, shard.error) == (10, 3, "slow")
    silent = ShardStatus.of(Assignment("c1", 3), None, collection="things", error="away")
    for status in (shard, silent):
        assert admin.decode_shard(admin.encode_shard(status)) == status


def test_tasks_say_who_works_on_them() -> None:
    claimed = TaskStatus.of(TASK, collection="things", claim=TaskClaim("t1", "w9", 1, "build", 0.5))
    assert (claimed.worker, claimed.step, claimed.progress) == ("w9", "build", 0.5)
    assert admin.decode_task(admin.encode_task(claimed)) == claimed


def test_cluster_status_round_trip() -> None:
    status = ClusterStatus(
        version="1",
        leader="c0",
        nodes=(NodeStatus(NodeRegistration("n1", "h:1", "z", 2.0, 7.0, "1"), True, 3, 2, 9, 8),),
        workers=(WorkerRegistration("w", WorkerRole.COMPACTOR, started_at_s=3.0),),
        collections=1,
        shards=4,
        totals=CollectionStatus(3, 10, 2, 1, 6, 1 << 33),
        tasks_pending=2,
        tasks_failed=1,
        warnings=("shard 3 has no owner",),
    )
    assert admin.decode_cluster_status(admin.encode_cluster_status(status)) == status


def test_recall_moves_and_task_lists_round_trip() -> None:
    options = RecallOptions(sample_size=50, k=5, ef=32, filter=Exists("y"), seed=9)
    assert admin.decode_measure_recall(admin.encode_measure_recall("t", options=options)) == options
    assert admin.decode_measure_recall(admin_pb2.MeasureRecallRequest()) == RecallOptions()
    with pytest.raises(InvalidArgument, match="ef: is 0"):
        admin.decode_measure_recall(admin_pb2.MeasureRecallRequest(ef=0))
    report = RecallReport(0.9, 0.8, 0.95, 50, 5, 0.95, 0.5, 2.5, (ShardRecall(0, 0.75, 12),))
    assert admin.decode_recall_report(admin.encode_recall_report(report)) == report
    moves = (ShardMove("things", 1, "", "n2"),)
    assert admin.decode_moves(admin.encode_moves(moves)) == moves
    assert admin.decode_task_phase(admin.encode_list_tasks(phase=TaskPhase.FAILED)) == "failed"
    assert admin.decode_task_phase(admin.encode_list_tasks()) is None


def test_datetimes_keep_their_microseconds_before_1970_too() -> None:
    moment = datetime(1912, 6, 23, 1, 2, 3, 999_999, tzinfo=UTC)
    tree = Comparison("born", ComparisonOp.GE, moment)
    assert decode_filter(encode_filter(tree)) == tree
