from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.coordinator.compaction.plan import (
    CompactionSettings,
    ShardObservation,
    plan_compactions,
    plan_manual,
)
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.topology.manifest import IndexKind, SegmentEntry, Tier
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

RULES = CompactionSettings()
COLLECTION = Collection(
    id="c1",
    name="packages",
    models=(ModelSpec("m", 8, Metric.COSINE),),
    schema=(),
    shard_count=2,
)


def new_ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"t{next(numbers)}"


def segment(
    name: str, rows: int, *, dead: int = 0, kind: str = "flat", tier: str = "", model: str = "m"
) -> SegmentState:
    return SegmentState(
        shard=0,
        segment_id=name,
        tier=tier or ("hot" if kind == "flat" else "warm"),
        model=model,
        index_kind=kind,
        rows=rows,
        dead_rows=dead,
        size_bytes=rows * 32,
        generation=0,
        created_at_s=0.0,
        min_sequence=1,
        max_sequence=rows,
    )


def state(*segments: SegmentState, shard: int = 0, phase: str = "serving") -> ShardState:
    return ShardState(
        collection_id="c1",
        shard=shard,
        node_id="a",
        phase=phase,
        epoch=1,
        live_rows=0,
        dead_rows=0,
        unindexed_rows=0,
        applied_sequence=0,
        wal_slots=0,
        memory_bytes=0,
        segments=segments,
    )


def plan(
    *segments: SegmentState,
    quiet_s: float = 0.0,
    tasks: Sequence[CompactionTask] = (),
    collection: Collection = COLLECTION,
    now_s: float = 1_000.0,
) -> list[tuple[TaskReason, set[str]]]:
    found = plan_compactions(
        collection,
        [ShardObservation(state(*segments), quiet_s)],
        tasks,
        now_s=now_s,
        settings=RULES,
        new_id=new_ids(),
    )
    return [(task.reason, set(task.sources)) for task in found]


def hot(number: int, rows: int = 16_384) -> list[SegmentState]:
    return [segment(f"h{n}", rows) for n in range(number)]


def limited(rows: int) -> Collection:
    return replace(COLLECTION, settings=replace(COLLECTION.settings, segment_rows_max=rows))


MERGE, DEGRADED = TaskReason.MERGE, TaskReason.TOMBSTONES


def test_while_writing_three_flat_segments_wait_and_four_merge():
    assert plan(*hot(3)) == []
    assert plan(*hot(4)) == [(MERGE, {"h0", "h1", "h2", "h3"})]


def test_when_quiet_two_flat_segments_or_one_large_one_become_a_graph():
    assert plan(*hot(2), quiet_s=5.0) == [(MERGE, {"h0", "h1"})]
    assert plan(segment("h", 2_000), quiet_s=5.0) == [(MERGE, {"h"})]
    assert plan(segment("h", 2_000), quiet_s=1.0) == []


def test_a_small_collection_of_one_flat_segment_is_left_alone():
    assert plan(segment("h", 1_999), quiet_s=1e6) == []
    assert plan(segment("h", 100), segment("g", 50), quiet_s=1e6) == [(MERGE, {"h", "g"})]


def test_many_unindexed_rows_merge_however_few_segments():
    assert plan(segment("h", 100_001)) == [(MERGE, {"h"})]
    assert plan(segment("h", 99_999)) == []


def test_rows_that_no_graph_serves_are_not_built_again_and_again():
    refused = segment("f", 200_000, tier="warm")
    assert plan(refused, quiet_s=1e6) == []
    assert plan(refused, segment("h", 10), quiet_s=1e6) == []
    assert plan(refused, *hot(4)) == [(MERGE, {"h0", "h1", "h2", "h3"})]
    assert plan(segment("f", 1_000, tier="warm"), segment("h", 1_500), quiet_s=5.0) == [
        (MERGE, {"f", "h"})
    ]
    assert manual(refused) == [{"f"}], "an operator may try again"


def test_a_large_graph_is_not_rewritten_for_a_few_rows():
    large = segment("g", 400_000, kind="hnsw")
    assert plan(large, *hot(4)) == [(MERGE, {"h0", "h1", "h2", "h3"})]
    assert plan(large, *hot(4), quiet_s=60.0) == [(MERGE, {"h0", "h1", "h2", "h3"})]
    assert plan(large, segment("h", 10), quiet_s=1e6) == []


def test_a_graph_of_comparable_size_joins_the_merge():
    graph = segment("g", 60_000, kind="hnsw")
    assert plan(graph, *hot(4)) == [(MERGE, {"g", "h0", "h1", "h2", "h3"})]
    bigger = segment("g", 200_000, kind="hnsw")
    assert plan(bigger, *hot(4)) == [(MERGE, {"h0", "h1", "h2", "h3"})]
    assert plan(bigger, *hot(4), quiet_s=9.0) == [(MERGE, {"g", "h0", "h1", "h2", "h3"})]


def test_a_few_rows_beside_a_small_graph_join_it_when_quiet():
    graph = segment("g", 3_000, kind="hnsw")
    assert plan(graph, segment("h", 1_000), quiet_s=9.0) == [(MERGE, {"g", "h"})]


def test_merges_stay_below_the_largest_segment_size():
    found = plan(*hot(10), collection=limited(50_000))
    assert found == [(MERGE, {"h0", "h1", "h2"})]


def test_too_many_graphs_merge_the_smallest():
    graphs = [segment(f"g{n}", 50_000 + n, kind="hnsw") for n in range(9)]
    assert plan(*graphs[:8]) == []
    assert plan(*graphs) == [(MERGE, {one.segment_id for one in graphs})]
    assert plan(*graphs, segment("large", 900_000, kind="hnsw")) == [
        (MERGE, {one.segment_id for one in graphs})
    ]


def test_degraded_segments_are_rewritten_alone():
    worn = segment("g", 10_000, dead=2_000, kind="hnsw")
    assert plan(worn) == [(DEGRADED, {"g"})]
    assert plan(segment("g", 10_000, dead=1_999, kind="hnsw")) == []
    assert plan(segment("g", 2_000, dead=900, kind="hnsw")) == []


def test_a_segment_without_live_rows_is_always_rewritten():
    assert plan(segment("g", 10, dead=10, kind="hnsw")) == [(DEGRADED, {"g"})]
    assert plan(segment("h", 10, dead=10), quiet_s=9.0) == [(DEGRADED, {"h"})]


def test_segments_without_live_rows_are_dropped_by_one_task():
    dead = [segment(f"d{n}", 10, dead=10) for n in range(3)]
    worn = segment("g", 10_000, dead=2_000, kind="hnsw")
    assert plan(*dead, worn) == [(DEGRADED, {"d0", "d1", "d2"}), (DEGRADED, {"g"})]


def test_a_degraded_segment_in_a_merge_is_not_rewritten_twice():
    worn = segment("g", 20_000, dead=5_000, kind="hnsw")
    assert plan(worn, *hot(4)) == [(MERGE, {"g", "h0", "h1", "h2", "h3"})]


def task(*sources: str, phase: TaskPhase, finished_at_s: float = 0.0) -> CompactionTask:
    return CompactionTask(
        id="old",
        collection_id="c1",
        shard=0,
        sources=sources,
        tier="warm",
        reason=MERGE,
        phase=phase,
        finished_at_s=finished_at_s,
    )


def test_segments_of_unfinished_tasks_are_left_alone():
    for phase in (TaskPhase.PENDING, TaskPhase.BUILT):
        assert plan(*hot(5), tasks=[task("h0", "h1", phase=phase)]) == []
        assert plan(*hot(6), tasks=[task("h0", "h1", phase=phase)]) == [
            (MERGE, {"h2", "h3", "h4", "h5"})
        ]


def test_failed_tasks_hold_their_segments_for_a_while():
    failed = task("h0", phase=TaskPhase.FAILED, finished_at_s=900.0)
    assert plan(*hot(4), tasks=[failed]) == []
    assert plan(*hot(4), tasks=[failed], now_s=900.0 + RULES.failed_pause_s) != []
    assert plan(*hot(4), tasks=[task("h0", phase=TaskPhase.CANCELLED)]) != []


def low(name: str, *, stuck: bool = False, rebuild: bool = True) -> SegmentState:
    """Return a graph whose recall on live queries is below the objective at the limit of ef."""
    graph = segment(name, 50_000, kind="hnsw")
    return replace(graph, recall=0.8, ef=1_024, rebuild=rebuild, stuck=stuck)


def test_a_graph_that_stays_below_its_recall_objective_is_rebuilt_alone():
    assert plan(low("a"), segment("b", 50_000, kind="hnsw")) == [(TaskReason.RECALL, {"a"})]
    assert plan(low("a", rebuild=False)) == []
    worn = replace(low("a"), dead_rows=25_000)
    assert plan(worn) == [(TaskReason.RECALL, {"a"})]
    merged = plan(low("a"), *hot(4))  # a merge builds it anew as well
    assert merged == [(MERGE, {"h0", "h1", "h2", "h3", "a"})]


def test_a_rebuild_for_recall_is_not_repeated_when_it_failed_or_did_not_help():
    task = CompactionTask("t0", "c1", 0, ("a",), "warm", TaskReason.RECALL)
    assert plan(low("a"), tasks=[task]) == []
    failed = replace(task, phase=TaskPhase.FAILED, finished_at_s=900.0)
    assert plan(low("a"), tasks=[failed]) == []
    assert plan(low("a"), tasks=[failed], now_s=9_000.0) == [(TaskReason.RECALL, {"a"})]
    entry = SegmentEntry("n", Tier.WARM, "m", IndexKind.HNSW, 50_000, 1, "x", 1, 2)
    done = replace(task, phase=TaskPhase.PUBLISHED, output=entry)
    assert plan(low("n"), tasks=[done]) == []
    assert plan(low("n", stuck=True, rebuild=False)) == []


def test_growing_rows_and_shards_that_are_not_served_are_skipped():
    growing = [segment(f"x{n}", 16_384, tier="growing") for n in range(5)]
    assert plan(*growing, quiet_s=60.0) == []
    loading = ShardObservation(state(*hot(6), phase="loading"))
    assert not plan_compactions(
        COLLECTION, [loading], [], now_s=0.0, settings=RULES, new_id=new_ids()
    )


def test_tasks_say_what_they_cost_and_which_tier_they_make():
    (small,) = plan_compactions(
        COLLECTION,
        [ShardObservation(state(*hot(4)))],
        [],
        now_s=7.0,
        settings=RULES,
        new_id=new_ids(),
    )
    assert (small.id, small.tier, small.created_at_s) == ("t1", "warm", 7.0)
    assert small.estimated_bytes > 4 * 16_384 * (8 * 4 * 2)
    (large,) = plan_compactions(
        COLLECTION,
        [ShardObservation(state(*hot(4, rows=70_000)))],
        [],
        now_s=7.0,
        settings=RULES,
        new_id=new_ids(),
    )
    assert large.tier == "cold"
    assert large.estimated_bytes > small.estimated_bytes


def manual(*segments: SegmentState, shard: int | None = None) -> list[set[str]]:
    found = plan_manual(
        COLLECTION,
        [state(*segments)],
        [],
        now_s=0.0,
        new_id=new_ids(),
        settings=RULES,
        shard=shard,
    )
    assert all(task.reason is TaskReason.MANUAL for task in found)
    return [set(task.sources) for task in found]


def test_manual_compaction_merges_everything_that_can_become_better():
    assert manual(*hot(2), segment("g", 400_000, kind="hnsw")) == [{"h0", "h1", "g"}]
    assert manual(segment("g", 10, dead=1, kind="hnsw")) == [{"g"}]
    assert manual(segment("g", 10_000, kind="hnsw")) == []
    assert manual(segment("h", 10)) == []
    assert manual(*hot(2), shard=1) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 300_000), st.integers(0, 100), st.sampled_from(["flat", "hnsw"])),
        max_size=20,
    ),
    st.sampled_from([0.0, 60.0]),
    st.sampled_from([20_000, 1_000_000]),
)
def test_no_segment_is_in_two_tasks_and_merges_fit(
    shapes: list[tuple[int, int, str]], quiet_s: float, rows_max: int
):
    segments = [
        segment(f"s{n}", rows, dead=rows * percent // 100, kind=kind)
        for n, (rows, percent, kind) in enumerate(shapes)
    ]
    by_id = {one.segment_id: one for one in segments}
    collection = limited(rows_max)
    for full in (False, True):
        if full:
            found = plan_manual(
                collection, [state(*segments)], [], now_s=0.0, new_id=new_ids(), settings=RULES
            )
        else:
            found = plan_compactions(
                collection,
                [ShardObservation(state(*segments), quiet_s)],
                [],
                now_s=0.0,
                settings=RULES,
                new_id=new_ids(),
            )
        named = [source for one in found for source in one.sources]
        assert len(named) == len(set(named))
        for one in found:
            live = sum(by_id[s].rows - by_id[s].dead_rows for s in one.sources)
            assert len(one.sources) == 1 or live <= rows_max
        again = plan_compactions(
            collection,
            [ShardObservation(state(*segments), quiet_s)],
            found,
            now_s=0.0,
            settings=RULES,
            new_id=new_ids(),
        )
        assert not set(named) & {source for one in again for source in one.sources}
