"""What the leader plans for a migration, from reported segments and known tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from annheal.coordinator.compaction.rules import CompactionSettings, busy_segments
from annheal.coordinator.migration.coverage import (
    Coverage,
    ModelRows,
    SegmentCoverage,
    coverage_of,
    model_rows,
)
from annheal.coordinator.migration.plan import MigrationRound, plan_round
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.texts.spec import EmbedderSpec, TextModel
from annheal.model.topology.migration import transitions as steps
from annheal.model.topology.migration.gate import GateThresholds
from annheal.model.topology.migration.state import (
    Migration,
    MigrationPhase,
    MigrationSettings,
    SkipCount,
    SkippedRecord,
    UnfitRecords,
)
from annheal.model.topology.migration.transitions import Event, Order
from annheal.model.topology.state import ModelCoverage, SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

RULES = CompactionSettings()
TEXTS = TextModel("new", EmbedderSpec("minilm_l6"), source="{name}")
COLLECTION = Collection(
    id="c1",
    name="papers",
    models=(ModelSpec("old", 8, Metric.COSINE), ModelSpec("new", 12, Metric.COSINE)),
    schema=(),
    shard_count=2,
    text_models=(TEXTS,),
)


def migration(phase: MigrationPhase = MigrationPhase.BACKFILL, **changed: Any) -> Migration:
    fresh = steps.start(
        None,
        collection_id="c1",
        from_model="old",
        to_model="new",
        settings=changed.pop("settings", MigrationSettings()),
        thresholds=GateThresholds(),
        order=Order("ada", 1.0),
    )
    return replace(fresh, phase=phase, **changed)


def segment(
    name: str, *, shard: int = 0, lacking: int = 100, having: int = 0, lacking_old: int = 0,
    tier: str = "hot", own: str = "old",
) -> SegmentCoverage:  # fmt: skip
    rows = lacking + having
    state = SegmentState(
        shard=shard, segment_id=name, tier=tier, model=own, index_kind="flat", rows=rows,
        dead_rows=0, size_bytes=rows * 32, generation=0, created_at_s=0.0, min_sequence=1,
        max_sequence=1,
    )  # fmt: skip
    by_model = {
        "new": ModelRows(having, lacking),
        "old": ModelRows(rows - lacking_old, lacking_old),
    }
    return SegmentCoverage(shard, state, by_model)


def planned(
    of: Migration,
    segments: Sequence[SegmentCoverage],
    tasks: Sequence[CompactionTask] = (),
    *,
    collection: Collection = COLLECTION,
    unreported: int = 0,
) -> MigrationRound:
    numbers = itertools.count(1)
    return plan_round(
        of,
        collection,
        Coverage(tuple(segments), unreported),
        tasks,
        now_s=50.0,
        settings=RULES,
        new_id=lambda: f"t{next(numbers)}",
    )


def task(source: str, phase: TaskPhase = TaskPhase.PENDING, **changed: Any) -> CompactionTask:
    base = CompactionTask(
        f"task-{source}", "c1", 0, (source,), "hot", TaskReason.BACKFILL, phase,
        created_at_s=10.0, model="new",
    )  # fmt: skip
    return replace(base, **changed)


def sources(of: MigrationRound) -> list[tuple[str, str, str]]:
    return [(one.reason.value, one.model, one.sources[0]) for one in of.tasks]


def test_the_segments_that_lack_most_are_filled_first_and_few_at_a_time() -> None:
    segments = [segment("a", lacking=10), segment("b", lacking=30), segment("c", lacking=20)]
    first = planned(migration(), segments)
    assert sources(first) == [("backfill", "new", "b"), ("backfill", "new", "c")]
    assert first.tasks[0].why == "30 rows have no vector of 'new'"
    assert first.tasks[0].estimated_bytes > 0
    wide = migration(settings=MigrationSettings(tasks_max=5))
    assert len(planned(wide, segments).tasks) == 3
    assert planned(migration(), segments, [task("b"), task("c")]).tasks == ()
    assert sources(planned(migration(), segments, [task("b")])) == [("backfill", "new", "c")]


def test_no_segment_is_in_two_tasks_of_any_kind() -> None:
    merge = task("a", reason=TaskReason.MERGE, model="")
    assert planned(migration(), [segment("a")], [merge]).tasks == ()
    backfill = planned(migration(), [segment("a")]).tasks
    assert busy_segments(backfill, now_s=50.0, failed_pause_s=1.0) == {(0, "a")}
    both = segment("a", lacking=5, lacking_old=5)
    texts = (TEXTS, replace(TEXTS, model="old"))
    one = planned(migration(), [both], collection=replace(COLLECTION, text_models=texts))
    assert sources(one) == [("backfill", "new", "a")]


def test_a_failed_segment_waits_before_it_is_tried_again_and_the_state_says_why() -> None:
    failed = task("a", TaskPhase.FAILED, finished_at_s=40.0, error="the embedder is away")
    found = planned(migration(), [segment("a")], [failed])
    assert found.tasks == ()
    assert found.advance is None
    assert found.seen.error == "task task-a failed: the embedder is away"


def test_rows_in_memory_and_paused_migrations_get_no_task() -> None:
    assert planned(migration(), [segment("a", tier="growing")]).tasks == ()
    assert planned(migration(paused=True), [segment("a")]).tasks == ()
    assert planned(migration(MigrationPhase.PREPARE), [segment("a")]).tasks == ()


@pytest.mark.parametrize("text_models", [(), (replace(TEXTS, source=""),)])
def test_a_model_that_the_server_cannot_embed_is_left_to_clients(
    text_models: tuple[TextModel, ...],
) -> None:
    external = replace(COLLECTION, text_models=text_models)
    waiting = planned(migration(), [segment("a")], collection=external)
    assert waiting.tasks == ()
    assert waiting.advance is None
    full = planned(migration(), [segment("a", lacking=0, having=100)], collection=external)
    assert full.advance is Event.COVERED


def test_both_models_are_filled_after_the_commit_too() -> None:
    texts = (TEXTS, replace(TEXTS, model="old"))
    found = planned(
        migration(MigrationPhase.COMMITTED),
        [segment("a", lacking=0, having=9, lacking_old=9, own="new"), segment("b", lacking=3)],
        collection=replace(COLLECTION, text_models=texts),
    )
    assert sources(found) == [("backfill", "new", "b"), ("backfill", "old", "a")]


def test_rows_without_a_vector_of_the_segments_own_model_get_no_task() -> None:
    assert planned(migration(), [segment("a", lacking=3, own="new")]).tasks == ()
    in_memory = planned(migration(), [segment("a", lacking=3, tier="growing")])
    assert in_memory.seen.coverage is not None
    assert in_memory.seen.coverage.segments_left == 1


def test_skipped_records_are_counted_and_their_segment_is_not_filled_again() -> None:
    done = task(
        "a", TaskPhase.PUBLISHED, finished_at_s=20.0, rows_out=60,
        skipped=(SkipCount("empty", 30), SkipCount("refused", 10)),
        skipped_records=(SkippedRecord("x", 0, "new", "empty"),),
    )  # fmt: skip
    now = segment("a", lacking=40, having=60)
    found = planned(migration(), [now], [done])
    assert found.tasks == ()
    assert found.seen.segments[0].rows_skipped == 40
    assert [one.id for one in found.seen.skipped] == ["x"]
    # Nothing is left to do; that too many lack a vector is for the gate to refuse.
    assert found.advance is Event.COVERED
    assert found.seen.coverage is not None
    assert (found.seen.coverage.rows, found.seen.coverage.rows_lacking) == (100, 40)
    again = planned(found.seen, [now], [done])
    assert again.seen == found.seen
    merged = segment("m", lacking=40, having=60)
    assert sources(planned(found.seen, [merged], [done])) == [("backfill", "new", "m")]
    said = replace(merged, rows={**merged.rows, "new": ModelRows(60, 40, skipped=40)})
    assert planned(found.seen, [said], [done]).tasks == ()


def test_with_unfit_stop_it_is_paused_once_for_each_segment() -> None:
    stopping = migration(settings=MigrationSettings(unfit=UnfitRecords.STOP))
    done = task("a", TaskPhase.PUBLISHED, finished_at_s=20.0, skipped=(SkipCount("empty", 3),))
    segments = [segment("a", lacking=3, having=97), segment("b")]
    found = planned(stopping, segments, [done])
    assert found.tasks == ()
    assert found.stop == (
        "records of segment a (shard 0) have no vector of 'new': 3 empty;"
        " resume to go on without them"
    )
    resumed = steps.resume(
        steps.stop(found.seen, error=found.stop, order=Order("leader", 2.0)),
        order=Order("ada", 3.0),
    )
    on = planned(resumed, segments, [done])
    assert (on.stop, sources(on)) == ("", [("backfill", "new", "b")])


def test_it_goes_on_by_itself_when_all_shards_have_answered() -> None:
    begun = migration(MigrationPhase.PREPARE)
    assert planned(begun, [segment("a")], unreported=1).advance is None
    assert planned(begun, [segment("a")]).advance is Event.PREPARED
    few = [segment("a", lacking=1, having=199)]
    assert planned(migration(), few, unreported=1).advance is None
    assert planned(migration(), few).advance is Event.COVERED
    assert planned(migration(), [segment("a", lacking=9)]).advance is None
    assert planned(migration(), []).advance is Event.COVERED
    memory = [segment("a", tier="growing", lacking=9, having=9)]
    assert planned(migration(), memory).advance is None
    assert planned(migration(MigrationPhase.READY), few).advance is None


@pytest.mark.parametrize(
    ("phase", "doomed"),
    [(MigrationPhase.ABORTING, "new"), (MigrationPhase.PURGING, "old")],
)
def test_the_vectors_of_one_model_are_deleted_by_rewrites(
    phase: MigrationPhase, doomed: str
) -> None:
    both = [segment("a", lacking=0, having=50), segment("b", lacking=0, having=50)]
    found = planned(migration(phase), both, [task("b", model=doomed)])
    assert found.cancel == ("task-b",)
    assert sources(found) == [("model_purge", doomed, "a")]
    assert found.advance is None
    gone = [segment("a", lacking=50) if doomed == "new" else segment("a", lacking=0, having=50,
                                                                     lacking_old=50)]  # fmt: skip
    assert planned(migration(phase), gone, unreported=1).advance is None
    assert planned(migration(phase), gone, [task("a")]).advance is None
    assert planned(migration(phase), gone).advance is Event.FINISHED
    assert planned(migration(phase, paused=True), gone).advance is None


def test_records_get_their_new_vector_before_the_purge_takes_the_old_one() -> None:
    purging = migration(MigrationPhase.PURGING)
    segments = [segment("a", lacking=3, having=97), segment("b", lacking=0, having=50)]
    found = planned(purging, segments)
    assert sources(found) == [("backfill", "new", "a"), ("model_purge", "old", "b")]
    assert planned(purging, segments, found.tasks).cancel == ()
    assert planned(purging, segments, found.tasks).tasks == ()
    done = task(
        "a", TaskPhase.PUBLISHED, finished_at_s=20.0, rows_out=1, skipped=(SkipCount("empty", 2),)
    )
    after = [segment("a", lacking=2, having=98), *segments[1:]]
    assert ("model_purge", "old", "a") in sources(planned(purging, after, [done]))
    aborting = planned(migration(MigrationPhase.ABORTING), segments)
    assert [one[0] for one in sources(aborting)] == ["model_purge", "model_purge"]


def test_a_segment_without_further_models_has_vectors_of_its_own_model_only() -> None:
    own = segment("a", lacking=90).state
    dead = replace(own, dead_rows=10)
    assert model_rows(COLLECTION, dead, "old") == ModelRows(80, 0)
    assert model_rows(COLLECTION, dead, "new") == ModelRows(0, 80)
    assert model_rows(COLLECTION, replace(own, model=""), "old") == ModelRows(90, 0)
    reported = replace(dead, models=(ModelCoverage("new", 30, 50, skipped=7),))
    assert model_rows(COLLECTION, reported, "new") == ModelRows(30, 50, 7)
    state = ShardState("c1", 1, "a", "serving", 1, 90, 0, 0, 1, 0, 0, (own,))
    states = [state, replace(state, shard=0, phase="loading"), replace(state, collection_id="c2")]
    found = coverage_of(COLLECTION, states, models=("old", "new"), rows_of=model_rows)
    assert (found.shards_unreported, found.lacking("new"), found.having("old")) == (1, 90, 90)


def test_tasks_that_an_earlier_version_stored_are_readable() -> None:
    stored = (
        b'{"id":"t1","collection_id":"c1","shard":0,"sources":["s0"],"tier":"warm",'
        b'"reason":"merge","phase":"pending","rows_in":0}'
    )
    found = decode_value(stored, CompactionTask, key=keys.task_key("t1"))
    assert (found.model, found.skipped, found.skipped_records) == ("", (), ())
    filled = task("a", skipped=(SkipCount("empty", 1),))
    key = keys.task_key(filled.id)
    assert decode_value(encode_value(filled), CompactionTask, key=key) == filled
