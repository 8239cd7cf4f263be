"""The steps of a migration: pure functions from a state and an order to the next state.

Each step returns the new state, the same state where it was done already, or raises
`FailedPrecondition` that names the phase and what is possible in it instead.
tests/golden/migration-transitions.txt lists every phase with every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from annheal.errors import FailedPrecondition, InvalidArgument
from annheal.model.topology.migration.checks import (
    WHY_CHARACTERS_MAX,
    check_settings,
    checked_order,
)
from annheal.model.topology.migration.gate import GateReport, GateThresholds
from annheal.model.topology.migration.state import (
    ENDED,
    HISTORY_MAX,
    Migration,
    MigrationPhase,
    MigrationSettings,
    Transition,
)

LEADER: Final = "leader"
"""Who asks for the steps that no operator asked for."""
GATE_REFUSED: Final = "GATE_NOT_PASSED"
WRONG_PHASE: Final = "MIGRATION_PHASE"


class Event(StrEnum):
    """What may happen to a migration. The first group is asked for by operators."""

    START = "start"
    PAUSE = "pause"
    RESUME = "resume"
    UPDATE = "update"
    VALIDATE = "validate"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    ABORT = "abort"
    PURGE = "purge"

    PREPARED = "prepared"
    COVERED = "covered"
    VALIDATED = "validated"
    FINISHED = "finished"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class Order:
    """Who asks for a step, when (seconds since the epoch), and why."""

    who: str
    at_s: float
    why: str = ""


_P = MigrationPhase
_OPEN: Final = tuple(phase for phase in MigrationPhase if phase not in ENDED)
_SAME: Final[dict[MigrationPhase, MigrationPhase]] = {phase: phase for phase in _OPEN}

MOVES: Final[Mapping[Event, Mapping[MigrationPhase, MigrationPhase]]] = {
    Event.PAUSE: _SAME,
    Event.RESUME: _SAME,
    Event.UPDATE: _SAME,
    Event.STOP: _SAME,
    Event.PREPARED: {_P.PREPARE: _P.BACKFILL},
    Event.COVERED: {_P.BACKFILL: _P.VALIDATE},
    Event.VALIDATE: dict.fromkeys((_P.VALIDATE, _P.READY, _P.ROLLED_BACK), _P.VALIDATE),
    Event.VALIDATED: {_P.VALIDATE: _P.READY},
    Event.COMMIT: dict.fromkeys((_P.VALIDATE, _P.READY, _P.ROLLED_BACK), _P.COMMITTED),
    Event.ROLLBACK: {_P.COMMITTED: _P.ROLLED_BACK},
    Event.ABORT: dict.fromkeys(
        (_P.PREPARE, _P.BACKFILL, _P.VALIDATE, _P.READY, _P.COMMITTED, _P.ROLLED_BACK), _P.ABORTING
    ),
    Event.PURGE: {_P.COMMITTED: _P.PURGING},
    Event.FINISHED: {_P.PURGING: _P.PURGED, _P.ABORTING: _P.ABORTED},
}
"""To which phase a step leads from which phase."""

DONE_IN: Final[Mapping[Event, frozenset[MigrationPhase]]] = {
    Event.PREPARED: frozenset({_P.BACKFILL}),
    Event.COVERED: frozenset({_P.VALIDATE}),
    Event.COMMIT: frozenset({_P.COMMITTED}),
    Event.ROLLBACK: frozenset({_P.ROLLED_BACK}),
    Event.ABORT: frozenset({_P.ABORTING, _P.ABORTED}),
    Event.PURGE: frozenset({_P.PURGING, _P.PURGED}),
    Event.FINISHED: frozenset({_P.PURGED, _P.ABORTED}),
}
"""Phases in which a step is done already: asking for it again changes nothing."""

OPERATOR_EVENTS: Final = (
    Event.PAUSE, Event.RESUME, Event.UPDATE, Event.VALIDATE, Event.COMMIT, Event.ROLLBACK,
    Event.PURGE, Event.ABORT,
)  # fmt: skip
WORK_EVENTS: Final = frozenset({Event.PREPARED, Event.COVERED, Event.FINISHED})
"""Steps of the leader's own work, which a pause holds up."""


def start(
    present: Migration | None,
    *,
    collection_id: str,
    from_model: str,
    to_model: str,
    settings: MigrationSettings,
    thresholds: GateThresholds,
    order: Order,
) -> Migration:
    """Return a new migration, or `present` where it is the same one and has not ended.

    Raises `FailedPrecondition` while another migration of the collection has not ended, and
    `InvalidArgument` for the serving model itself or for settings out of range.
    """
    if from_model == to_model:
        raise InvalidArgument.of("to_model", f"{to_model!r} is the model that serves already")
    check_settings(settings, thresholds)
    if present is not None and not present.ended:
        if (present.from_model, present.to_model) == (from_model, to_model):
            return present
        raise _refused(present, Event.START)
    fresh = Migration(
        collection_id=collection_id,
        from_model=from_model,
        to_model=to_model,
        settings=settings,
        thresholds=thresholds,
    )
    return _recorded(fresh, Event.START, order)


def pause(migration: Migration, *, order: Order) -> Migration:
    """Hold the leader's work up: no new tasks, no step of its own. Searches do not change."""
    return _flagged(migration, Event.PAUSE, order, paused=True)


def resume(migration: Migration, *, order: Order) -> Migration:
    """Let the leader go on; forgets the error that had stopped it."""
    return _flagged(migration, Event.RESUME, order, paused=False)


def stop(migration: Migration, *, error: str, order: Order) -> Migration:
    """Pause because of `error`, such as a record that cannot be embedded under `unfit=stop`."""
    _target(migration, Event.STOP)
    if migration.paused:
        return migration
    error = error[:WHY_CHARACTERS_MAX]
    stopped = replace(migration, paused=True, error=error)
    return _recorded(stopped, Event.STOP, replace(order, why=error))


def update(
    migration: Migration,
    *,
    settings: MigrationSettings,
    thresholds: GateThresholds,
    order: Order,
) -> Migration:
    """Change settings and thresholds; the next decisions are made with the new ones."""
    check_settings(settings, thresholds)
    _target(migration, Event.UPDATE)
    changed = replace(migration, settings=settings, thresholds=thresholds)
    return migration if changed == migration else _recorded(changed, Event.UPDATE, order)


def prepared(migration: Migration, *, order: Order) -> Migration:
    """Everything that backfill needs is there."""
    return _moved(migration, Event.PREPARED, order)


def covered(migration: Migration, *, order: Order) -> Migration:
    """Backfill has nothing left to do; ask for the first measurement."""
    moved = _moved(migration, Event.COVERED, order)
    return moved if moved is migration else replace(moved, validations=moved.validations + 1)


def validate(migration: Migration, *, order: Order) -> Migration:
    """Ask for a measurement; the same state while one is outstanding."""
    if migration.phase is MigrationPhase.VALIDATE and migration.measuring:
        return migration
    asked = _recorded(
        replace(migration, phase=_target(migration, Event.VALIDATE)), Event.VALIDATE, order
    )
    return replace(asked, validations=asked.validations + 1)


def validated(migration: Migration, report: GateReport, *, order: Order) -> Migration:
    """Store a report: `ready` if it passes the gate; else the phase stays `validate`.

    Raises `FailedPrecondition` for a report that answers an earlier request.
    """
    if report == migration.report:
        return migration
    target = _target(migration, Event.VALIDATED)
    if report.number != migration.validations:
        raise FailedPrecondition(
            f"the report answers validation {report.number}; the latest that was asked for is"
            f" {migration.validations}",
            reason="STALE_REPORT",
        )
    reported = replace(migration, report=report)
    verdict = reported.verdict
    if verdict.passed:
        reported = replace(reported, phase=target)
    return _recorded(reported, Event.VALIDATED, replace(order, why=verdict.failures or "passed"))


def commit(migration: Migration, *, order: Order, force: bool = False) -> Migration:
    """Let the new model serve.

    Raises `FailedPrecondition` with the numbers when the gate is not passed, by the last report
    and the present thresholds and coverage. With `force` it is committed all the same, which is
    recorded; `InvalidArgument` when the order does not say why.
    """
    if migration.phase in DONE_IN[Event.COMMIT]:
        return migration
    target = _target(migration, Event.COMMIT)
    verdict = migration.verdict
    outstanding = migration.phase is MigrationPhase.VALIDATE and migration.measuring
    passed = verdict.passed and not outstanding
    if not passed and not force:
        failures = verdict.failures or "the validation that was asked for has not been reported"
        raise FailedPrecondition(
            f"the gate refuses the commit to {migration.to_model!r}: {failures}; mend it and"
            " validate again, change the thresholds, or force it and say why",
            reason=GATE_REFUSED,
            metadata={one.name: str(one) for one in verdict.findings if not one.passed},
        )
    if not passed and not order.why.strip():
        raise InvalidArgument.of("why", "is empty; a forced commit says why")
    return _recorded(replace(migration, phase=target), Event.COMMIT, order, forced=not passed)


def rollback(migration: Migration, *, order: Order) -> Migration:
    """Let the old model serve again. It can be committed again, validated or aborted."""
    return _moved(migration, Event.ROLLBACK, order)


def abort(migration: Migration, *, order: Order) -> Migration:
    """Let the old model serve and delete the new model's vectors; ends a pause."""
    return _moved(migration, Event.ABORT, order, unpaused=True)


def purge(migration: Migration, *, order: Order) -> Migration:
    """Delete the old model's vectors: from here there is no way back; ends a pause.

    Raises `FailedPrecondition` while records can still get a vector of the new model: without the
    old one no search would find them.
    """
    if migration.phase in MOVES[Event.PURGE]:
        seen = migration.coverage
        if seen is None or seen.shards_unreported or seen.segments_left:
            what = "not all shards have reported"
            if seen is not None and seen.segments_left:
                what = f"{seen.segments_left} segments have records that wait for a new vector"
            raise FailedPrecondition(
                f"the vectors of {migration.from_model!r} are still needed: {what}; purge when"
                " `annheal migrate status` says that none is left",
                reason="BACKFILL_NOT_DONE",
            )
    return _moved(migration, Event.PURGE, order, unpaused=True)


def finished(migration: Migration, *, order: Order) -> Migration:
    """Nothing is left of the vectors that are purged."""
    return _moved(migration, Event.FINISHED, order)


def possible(migration: Migration) -> tuple[Event, ...]:
    """Return what an operator may ask for in this phase."""
    return tuple(event for event in OPERATOR_EVENTS if _applies(migration, event))


def _applies(migration: Migration, event: Event) -> bool:
    if event in (Event.PAUSE, Event.RESUME) and migration.paused is (event is Event.PAUSE):
        return False
    return migration.phase in MOVES[event]


def _moved(
    migration: Migration, event: Event, order: Order, *, unpaused: bool = False
) -> Migration:
    if migration.phase in DONE_IN.get(event, ()):
        return migration
    moved = replace(migration, phase=_target(migration, event))
    if unpaused:
        moved = replace(moved, paused=False, error="")
    return _recorded(moved, event, order)


def _flagged(migration: Migration, event: Event, order: Order, *, paused: bool) -> Migration:
    _target(migration, event)
    if migration.paused is paused:
        return migration
    error = migration.error if paused else ""
    return _recorded(replace(migration, paused=paused, error=error), event, order)


def _target(migration: Migration, event: Event) -> MigrationPhase:
    """Return the phase that `event` leads to; raises `FailedPrecondition` where it is refused."""
    target = MOVES[event].get(migration.phase)
    if target is None or (migration.paused and event in WORK_EVENTS):
        raise _refused(migration, event)
    return target


def _refused(migration: Migration, event: Event) -> FailedPrecondition:
    names = [one.value for one in possible(migration)]
    instead = f"possible is {', '.join(names)}" if names else "it has ended; start another"
    phase = f"{migration.phase.value}, paused" if migration.paused else migration.phase.value
    return FailedPrecondition(
        f"the migration from {migration.from_model!r} to {migration.to_model!r} is in phase"
        f" {phase}: {event.value} is not possible; {instead}",
        reason=WRONG_PHASE,
        metadata={"phase": migration.phase.value, "possible": ",".join(names)},
    )


def _recorded(
    migration: Migration, event: Event, order: Order, *, forced: bool = False
) -> Migration:
    """Return the migration with one more transition in its history."""
    who, why = checked_order(
        order.who, order.why[:WHY_CHARACTERS_MAX] if order.who == LEADER else order.why
    )
    step = Transition(event.value, migration.phase, order.at_s, who, why, forced)
    history = (*migration.history, step)
    if len(history) > HISTORY_MAX:
        history = (history[0], *history[len(history) - HISTORY_MAX + 1 :])
    return replace(migration, history=history)
