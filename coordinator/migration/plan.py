"""What a migration needs next: backfill and purge tasks, or a step of its own. Pure.

A segment gets a backfill task when flushed rows of it lack a vector of one of the two models and no
task before it has found that they cannot have one. Both models are filled until the purge: rows
that a client writes with the new model alone must be there after a rollback. Only a model whose
embedder has a source template can be filled here; vectors of others come from clients.

A purge rewrites the segments with vectors of the model that goes, and ends when none has any.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from annheal.coordinator.compaction.rules import (
    CompactionSettings,
    NewId,
    Rewrite,
    busy_segments,
    task_for,
)
from annheal.coordinator.migration.coverage import Coverage, SegmentCoverage
from annheal.model.collection import Collection
from annheal.model.topology.migration.checks import WHY_CHARACTERS_MAX
from annheal.model.topology.migration.progress import Backfilled, observed
from annheal.model.topology.migration.state import (
    SEGMENTS_COUNTED_MAX,
    Migration,
    MigrationPhase,
    SegmentProgress,
    UnfitRecords,
)
from annheal.model.topology.migration.transitions import Event
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

PRIORITY_BACKFILL: Final = 3
PRIORITY_PURGE: Final = 2
FILLING: Final = frozenset(
    {
        MigrationPhase.BACKFILL,
        MigrationPhase.VALIDATE,
        MigrationPhase.READY,
        MigrationPhase.COMMITTED,
        MigrationPhase.ROLLED_BACK,
    }
)
"""Phases in which rows that lack a vector of one of the models get one."""
NOT_MEASURED: Final = "the validation failed, and is tried again"
"""How the error of a migration begins that could not be measured."""
_UNFINISHED: Final = (TaskPhase.PENDING, TaskPhase.BUILT)


@dataclass(frozen=True, slots=True)
class MigrationRound:
    """What one round leads to.

    Attributes:
        seen: the migration with what was seen.
        tasks: new tasks.
        cancel: ids of tasks that nothing needs any more.
        advance: the step of its own that the migration takes now, if any.
        stop: why it must be paused; "" if it need not.
    """

    seen: Migration
    tasks: tuple[CompactionTask, ...] = ()
    cancel: tuple[str, ...] = ()
    advance: Event | None = None
    stop: str = ""


def plan_round(
    migration: Migration,
    collection: Collection,
    coverage: Coverage,
    tasks: Iterable[CompactionTask],
    *,
    now_s: float,
    settings: CompactionSettings,
    new_id: NewId,
) -> MigrationRound:
    """Return what a migration needs.

    `tasks` are all known tasks of the collection, finished ones included; `now_s` is seconds since
    the epoch.
    """
    tasks = tuple(tasks)
    own = _own(migration, tasks)
    seen = _seen(migration, collection, coverage, own, now_s=now_s)
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=settings.failed_pause_s)
    unfinished = [one for one in own if one.phase in _UNFINISHED]
    doomed = doomed_model(migration)
    if doomed:
        return _plan_purge(seen, collection, coverage, busy, unfinished, now_s, new_id)
    stop = "" if migration.paused else _why_stop(migration, seen, collection)
    if stop or migration.paused:
        return MigrationRound(seen, stop=stop)
    left = segments_left(seen, collection, coverage)
    made: tuple[CompactionTask, ...] = ()
    if migration.phase in FILLING:
        made = _backfills(seen, collection, left, busy, unfinished, now_s, new_id)
    waits = bool(left or unfinished)
    return MigrationRound(seen, made, advance=_advance(seen, collection, coverage, waits=waits))


def _plan_purge(
    seen: Migration,
    collection: Collection,
    coverage: Coverage,
    busy: set[tuple[int, str]],
    unfinished: Sequence[CompactionTask],
    now_s: float,
    new_id: NewId,
) -> MigrationRound:
    """Return the rewrites without the vectors of one model.

    A segment with rows that can still get a vector of the new model gets them first: without the
    old one no search would find them any more.
    """
    doomed = doomed_model(seen)
    useless = [
        one for one in unfinished if one.reason is TaskReason.BACKFILL and one.model == doomed
    ]
    left: list[tuple[SegmentCoverage, str]] = []
    if seen.phase is MigrationPhase.PURGING:
        left = [one for one in segments_left(seen, collection, coverage) if one[1] != doomed]
    having = [one for one in coverage.segments if one.rows[doomed].having]
    waiting = {segment.key for segment, _ in left}
    tasks: tuple[CompactionTask, ...] = ()
    if not seen.paused:
        tasks = _backfills(seen, collection, left, busy, unfinished, now_s, new_id)
        taken = busy | waiting
        under_way = [*unfinished, *tasks]
        tasks += _purges(seen, collection, having, taken, under_way, now_s, new_id)
    at_rest = not (having or left or unfinished or coverage.shards_unreported or seen.paused)
    advance = Event.FINISHED if at_rest else None
    return MigrationRound(seen, tasks, tuple(one.id for one in useless), advance)


def doomed_model(migration: Migration) -> str:
    """Return the model whose vectors are being deleted; "" for none."""
    if migration.phase is MigrationPhase.PURGING:
        return migration.from_model
    return migration.to_model if migration.phase is MigrationPhase.ABORTING else ""


def is_filled_here(collection: Collection, model: str) -> bool:
    """Return whether the server can make vectors of `model` from stored records."""
    found = collection.text_model(model)
    return found is not None and bool(found.source)


def segments_left(
    migration: Migration, collection: Collection, coverage: Coverage
) -> list[tuple[SegmentCoverage, str]]:
    """Return the flushed segments with rows that can still get a vector, with the model.

    The model that is migrated to comes first, then the most rows. Rows without a vector of the
    segment's own model get none: a backfill adds a part, and that model has none.
    """
    skipped = {
        (one.shard, one.segment_id, one.model): one.rows_skipped for one in migration.segments
    }
    found = [
        (segment, model)
        for model in (migration.to_model, migration.from_model)
        if is_filled_here(collection, model)
        for segment in coverage.segments
        if not segment.growing
        and model != (segment.state.model or collection.models[0].name)
        and segment.rows[model].lacking
        > max(segment.rows[model].skipped, skipped.get((*segment.key, model), 0))
    ]
    order = (migration.to_model, migration.from_model)
    return sorted(found, key=lambda one: (order.index(one[1]), -one[0].rows[one[1]].lacking))


def _own(migration: Migration, tasks: Iterable[CompactionTask]) -> list[CompactionTask]:
    """Return the tasks of this migration, those that ended first at the front."""
    reasons = (TaskReason.BACKFILL, TaskReason.MODEL_PURGE)
    found = [
        one for one in tasks if one.reason in reasons and one.created_at_s >= migration.started_at_s
    ]
    return sorted(found, key=lambda one: (one.finished_at_s, one.id))


def _seen(
    migration: Migration,
    collection: Collection,
    coverage: Coverage,
    own: Sequence[CompactionTask],
    *,
    now_s: float,
) -> Migration:
    old, new = migration.from_model, migration.to_model
    all_here = not coverage.shards_unreported
    present = {one.key for one in coverage.segments} if all_here else None
    filled = [
        _backfilled(one)
        for one in own
        if one.reason is TaskReason.BACKFILL and one.phase is TaskPhase.PUBLISHED
    ]
    seen = observed(
        migration,
        coverage=coverage.totals(old=old, new=new, left=0, at_s=now_s),
        finished=filled,
        present=present,
    )
    in_memory = [
        one
        for one in coverage.segments
        if one.growing and one.rows[new].lacking and is_filled_here(collection, new)
    ]
    left = len(segments_left(seen, collection, coverage)) + len(in_memory)
    if seen.coverage is not None:
        seen = replace(seen, coverage=replace(seen.coverage, segments_left=left))
    if migration.paused or (migration.measuring and migration.error.startswith(NOT_MEASURED)):
        return seen
    failed = [one for one in own if one.phase is TaskPhase.FAILED]
    last = failed[-1] if failed else None
    error = "" if last is None else f"task {last.id} failed: {last.error}"
    return replace(seen, error=error[:WHY_CHARACTERS_MAX])


def _advance(
    migration: Migration, collection: Collection, coverage: Coverage, *, waits: bool
) -> Event | None:
    """Return the step that a migration takes by itself, None while it `waits` for tasks or rows."""
    if coverage.shards_unreported:
        return None
    if migration.phase is MigrationPhase.PREPARE:
        return Event.PREPARED
    if migration.phase is not MigrationPhase.BACKFILL:
        return None
    new = migration.to_model
    share = migration.lacking_share
    if share is not None and share <= migration.thresholds.lacking_share_max:
        return Event.COVERED
    # Where too many records cannot be embedded the gate says so, with their number.
    in_memory = any(one.growing and one.rows[new].lacking for one in coverage.segments)
    done = is_filled_here(collection, new) and not waits and not in_memory
    return Event.COVERED if done else None


def _why_stop(migration: Migration, seen: Migration, collection: Collection) -> str:
    if migration.to_model in collection.removed:
        return f"model {migration.to_model!r} was removed from the collection; abort"
    if len(seen.segments) >= SEGMENTS_COUNTED_MAX:
        return (
            f"{SEGMENTS_COUNTED_MAX} segments or more have records that cannot be embedded; mend"
            " the source template or the records, or merge the segments, and resume"
        )
    if migration.settings.unfit is not UnfitRecords.STOP:
        return ""
    known = {(one.shard, one.segment_id, one.model) for one in migration.segments}
    for one in seen.segments:
        if (one.shard, one.segment_id, one.model) not in known:
            reasons = ", ".join(f"{skip.rows} {skip.reason}" for skip in one.skipped)
            return (
                f"records of segment {one.segment_id} (shard {one.shard}) have no vector of"
                f" {one.model!r}: {reasons}; resume to go on without them"
            )
    return ""


def _backfilled(task: CompactionTask) -> Backfilled:
    progress = SegmentProgress(task.shard, task.sources[0], task.model, task.rows_out, task.skipped)
    return Backfilled(progress, task.skipped_records)


def _backfills(
    migration: Migration,
    collection: Collection,
    left: Sequence[tuple[SegmentCoverage, str]],
    busy: set[tuple[int, str]],
    unfinished: Sequence[CompactionTask],
    now_s: float,
    new_id: NewId,
) -> tuple[CompactionTask, ...]:
    room = migration.settings.tasks_max - len(unfinished)
    made: list[CompactionTask] = []
    taken = set(busy)
    for segment, model in left:
        if len(made) >= room:
            break
        if segment.key in taken:
            continue
        taken.add(segment.key)
        rows = segment.rows[model].lacking
        why = f"{rows} rows have no vector of {model!r}"
        made.append(
            _task(collection, segment, TaskReason.BACKFILL, PRIORITY_BACKFILL, why, model,
                  now_s, new_id)
        )  # fmt: skip
    return tuple(made)


def _purges(
    migration: Migration,
    collection: Collection,
    left: Sequence[SegmentCoverage],
    busy: set[tuple[int, str]],
    unfinished: Sequence[CompactionTask],
    now_s: float,
    new_id: NewId,
) -> tuple[CompactionTask, ...]:
    model = doomed_model(migration)
    room = migration.settings.tasks_max - len(unfinished)
    free = [one for one in left if not one.growing and one.key not in busy]
    return tuple(
        _task(
            collection, segment, TaskReason.MODEL_PURGE, PRIORITY_PURGE,
            f"the vectors of {model!r} are deleted", model, now_s, new_id,
        )
        for segment in free[: max(0, room)]
    )  # fmt: skip


def _task(
    collection: Collection,
    segment: SegmentCoverage,
    reason: TaskReason,
    priority: int,
    why: str,
    model: str,
    now_s: float,
    new_id: NewId,
) -> CompactionTask:
    rewrite = Rewrite((segment.state,), reason, priority, why)
    task = task_for(collection, segment.shard, rewrite, now_s=now_s, id=new_id())
    return replace(task, model=model, tier=segment.state.tier)
