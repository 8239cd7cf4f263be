"""The steps of a migration: a golden table of all of them, and laws over random histories.

`UPDATE_GOLDEN=1 pytest tests/unit/test_migration_steps.py` rewrites the table.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.errors import FailedPrecondition, InvalidArgument
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.limits import VALUE_BYTES_MAX
from annheal.model.topology.migration import transitions as steps
from annheal.model.topology.migration.checks import (
    WHO_CHARACTERS_MAX,
    WHY_CHARACTERS_MAX,
    check_migration,
)
from annheal.model.topology.migration.gate import GateReport, GateThresholds
from annheal.model.topology.migration.progress import Backfilled, observed
from annheal.model.topology.migration.state import (
    HISTORY_MAX,
    NEW_SERVES,
    SEGMENTS_COUNTED_MAX,
    SKIP_REASONS_MAX,
    SKIPPED_NAMED_MAX,
    CoverageTotals,
    Migration,
    MigrationPhase,
    MigrationSettings,
    SegmentProgress,
    SkipCount,
    SkippedRecord,
)
from annheal.model.topology.migration.transitions import Order

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "migration-transitions.txt"
OPERATOR = Order("ada", 100.0, "because")
LEADER = Order(steps.LEADER, 100.0)
FULL = CoverageTotals(at_s=90.0, rows=1_000, rows_lacking=0)
GOOD = GateReport(1, 95.0, 200, 10, recall=0.99, overlap=0.4, latency_ratio=1.0)
BAD = replace(GOOD, recall=0.5)

Step = Callable[[Migration], Migration]


def started(**changed: object) -> Migration:
    fresh = steps.start(
        None,
        collection_id="c1",
        from_model="old",
        to_model="new",
        settings=MigrationSettings(),
        thresholds=GateThresholds(),
        order=Order("ada", 1.0),
    )
    return replace(fresh, **changed)  # type: ignore[arg-type]


def report(good: bool) -> Step:
    def reported(migration: Migration) -> Migration:
        found = replace(GOOD if good else BAD, number=migration.validations)
        return steps.validated(migration, found, order=LEADER)

    return reported


def updated(migration: Migration) -> Migration:
    settings = replace(migration.settings, tasks_max=3)
    return steps.update(
        migration, settings=settings, thresholds=migration.thresholds, order=OPERATOR
    )


def started_again(to_model: str) -> Step:
    def again(migration: Migration) -> Migration:
        return steps.start(
            migration,
            collection_id="c1",
            from_model="old",
            to_model=to_model,
            settings=MigrationSettings(),
            thresholds=GateThresholds(),
            order=OPERATOR,
        )

    return again


STEPS: Final[dict[str, Step]] = {
    "start the same": started_again("new"),
    "start another": started_again("third"),
    "pause": lambda m: steps.pause(m, order=OPERATOR),
    "resume": lambda m: steps.resume(m, order=OPERATOR),
    "update": updated,
    "validate": lambda m: steps.validate(m, order=OPERATOR),
    "commit": lambda m: steps.commit(m, order=OPERATOR),
    "commit by force": lambda m: steps.commit(m, order=OPERATOR, force=True),
    "rollback": lambda m: steps.rollback(m, order=OPERATOR),
    "abort": lambda m: steps.abort(m, order=OPERATOR),
    "purge": lambda m: steps.purge(m, order=OPERATOR),
    "prepared": lambda m: steps.prepared(m, order=LEADER),
    "covered": lambda m: steps.covered(m, order=LEADER),
    "report that passes": report(good=True),
    "report that fails": report(good=False),
    "finished": lambda m: steps.finished(m, order=LEADER),
    "stop": lambda m: steps.stop(m, error="a record has no source", order=LEADER),
}


def outcome(migration: Migration, step: Step) -> str:
    try:
        after = step(migration)
    except FailedPrecondition as error:
        return f"refused: {error.message.partition(': ')[2]}"
    if after is migration:
        return "no change"
    return after.phase.value + (", paused" if after.paused else "")


def table() -> str:
    """Return every phase with every step, with a report that passes, that fails, and none."""
    lines: list[str] = []
    for phase in MigrationPhase:
        for paused in (False, True):
            for kind, found in (("passing", GOOD), ("failing", BAD), ("no", None)):
                if found is not GOOD and phase not in (
                    MigrationPhase.VALIDATE, MigrationPhase.READY, MigrationPhase.ROLLED_BACK
                ):  # fmt: skip
                    continue
                present = started(
                    phase=phase, paused=paused, report=found, coverage=FULL, validations=1
                )
                flag = ", paused" if paused else ""
                lines.append(f"\n{phase.value}{flag}, {kind} report")
                for name, step in STEPS.items():
                    lines.append(f"    {name:20} {outcome(present, step)}")
    return "\n".join(lines).lstrip("\n") + "\n"


def test_every_phase_and_step_is_in_the_golden_table() -> None:
    present = table()
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.write_text(present)
    assert present == GOLDEN.read_text()


def test_the_whole_way_to_the_end() -> None:
    m = steps.prepared(started(), order=LEADER)
    m = observed(m, coverage=FULL, finished=[])
    m = steps.covered(m, order=LEADER)
    assert (m.phase, m.measuring, m.serving) == (MigrationPhase.VALIDATE, True, "old")
    m = report(good=True)(m)
    assert m.phase is MigrationPhase.READY
    m = steps.commit(m, order=OPERATOR)
    assert m.serving == "new"
    assert steps.rollback(m, order=OPERATOR).serving == "old"
    m = steps.finished(steps.purge(m, order=OPERATOR), order=LEADER)
    assert (m.phase, m.ended, m.serving) == (MigrationPhase.PURGED, True, "new")
    assert [one.event for one in m.history] == [
        "start", "prepared", "covered", "validated", "commit", "purge", "finished",
    ]  # fmt: skip
    assert {one.who for one in m.history} == {"ada", "leader"}


# -------------------------------------------------------------------------------------- the gate


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"recall": 0.9}, "recall is 0.9, needed is at least 0.95"),
        ({"recall": None}, "recall is not measured"),
        ({"recall": float("nan")}, "recall is not measured"),
        ({"overlap": 0.01}, "overlap is 0.01, needed is at least 0.1"),
        ({"latency_ratio": 2.0}, "latency_ratio is 2, needed is at most 1.5"),
        ({"ndcg_gain": -0.1}, "ndcg_gain is -0.1, needed is at least -0.02"),
        ({"recall_gain": -0.1}, "recall_gain is -0.1"),
        ({"bridge_error": 0.6}, "bridge_error is 0.6, needed is at most 0.5"),
    ],
)
def test_a_commit_below_a_threshold_is_refused_with_the_number(
    changed: dict[str, float], said: str
) -> None:
    limits = GateThresholds(bridge_error_max=0.5)
    waiting = started(
        phase=MigrationPhase.VALIDATE, coverage=FULL, validations=1, thresholds=limits
    )
    m = steps.validated(waiting, replace(GOOD, **changed), order=LEADER)  # type: ignore[arg-type]
    assert m.phase is MigrationPhase.VALIDATE
    with pytest.raises(FailedPrecondition) as refused:
        steps.commit(m, order=OPERATOR)
    assert refused.value.reason == steps.GATE_REFUSED
    assert said in refused.value.message


@pytest.mark.parametrize(
    ("coverage", "said"),
    [
        (None, "lacking_share is not measured"),
        (replace(FULL, rows_lacking=400), "lacking_share is 0.4, needed is at most 0.01"),
        (replace(FULL, shards_unreported=1), "lacking_share is not measured"),
    ],
)
def test_records_without_the_new_vector_are_a_reason_to_refuse(
    coverage: CoverageTotals | None, said: str
) -> None:
    """Also when they came after the report: the present coverage counts."""
    ready = started(phase=MigrationPhase.READY, report=GOOD, validations=1, coverage=coverage)
    with pytest.raises(FailedPrecondition, match=said):
        steps.commit(ready, order=OPERATOR)


@pytest.mark.parametrize(
    ("coverage", "said"),
    [
        (None, "not all shards have reported"),
        (replace(FULL, shards_unreported=1), "not all shards have reported"),
        (replace(FULL, segments_left=2), "2 segments have records that wait"),
    ],
)
def test_a_purge_waits_for_records_that_can_get_a_new_vector(
    coverage: CoverageTotals | None, said: str
) -> None:
    m = started(phase=MigrationPhase.COMMITTED, report=GOOD, validations=1, coverage=coverage)
    with pytest.raises(FailedPrecondition, match=said):
        steps.purge(m, order=OPERATOR)
    purging = replace(m, phase=MigrationPhase.PURGING)
    assert steps.purge(purging, order=OPERATOR) is purging


def test_a_forced_commit_says_who_and_why() -> None:
    m = started(phase=MigrationPhase.VALIDATE, report=BAD, validations=1, coverage=FULL)
    with pytest.raises(InvalidArgument, match="why"):
        steps.commit(m, order=Order("ada", 1.0), force=True)
    forced = steps.commit(m, order=OPERATOR, force=True).history[-1]
    assert (forced.who, forced.why, forced.forced) == ("ada", "because", True)
    good = started(phase=MigrationPhase.READY, report=GOOD, validations=1, coverage=FULL)
    assert not steps.commit(good, order=OPERATOR, force=True).history[-1].forced


def test_stricter_thresholds_count_for_an_old_report() -> None:
    ready = started(phase=MigrationPhase.READY, report=GOOD, validations=1, coverage=FULL)
    strict = steps.update(
        ready,
        settings=ready.settings,
        thresholds=replace(ready.thresholds, recall_min=0.999),
        order=OPERATOR,
    )
    with pytest.raises(FailedPrecondition, match=r"0\.999"):
        steps.commit(strict, order=OPERATOR)


def test_a_report_of_an_earlier_request_is_refused() -> None:
    m = started(phase=MigrationPhase.VALIDATE, validations=2, coverage=FULL)
    with pytest.raises(FailedPrecondition, match="latest that was asked for is 2"):
        steps.validated(m, GOOD, order=LEADER)


@pytest.mark.parametrize(
    ("settings", "thresholds", "field"),
    [
        ({"rows_per_second": -1.0}, {}, "rows_per_second"),
        ({"tasks_max": 0}, {}, "tasks_max"),
        ({"canary_share": 1.5}, {}, "canary_share"),
        ({}, {"recall_min": float("nan")}, "recall_min"),
        ({}, {"lacking_share_max": 2.0}, "lacking_share_max"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(
    settings: dict[str, float], thresholds: dict[str, float], field: str
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        steps.update(
            started(),
            settings=replace(MigrationSettings(), **settings),  # type: ignore[arg-type]
            thresholds=replace(GateThresholds(), **thresholds),  # type: ignore[arg-type]
            order=OPERATOR,
        )
    assert [one.field for one in refused.value.violations] == [field]


# --------------------------------------------------------------------------- laws, random orders

NAMES = st.sampled_from(sorted(STEPS))
HISTORIES = st.lists(NAMES, max_size=30)


def applied(migration: Migration, name: str) -> Migration:
    try:
        return STEPS[name](migration)
    except FailedPrecondition:
        return migration


def ways_out(migration: Migration) -> set[str]:
    """Return the phases that can be reached from here."""
    seen: dict[tuple[MigrationPhase, bool, bool], Migration] = {}
    open_states = [migration]
    while open_states:
        one = open_states.pop()
        shape = (one.phase, one.paused, one.measuring)
        if shape not in seen:
            seen[shape] = one
            open_states += [applied(one, name) for name in STEPS if name != "start another"]
    return {phase.value for phase, _, _ in seen}


@given(HISTORIES)
def test_every_state_has_a_way_out(names: list[str]) -> None:
    m = started(coverage=FULL)
    for name in names:
        m = applied(m, name)
    if not m.ended:
        assert {"purged", "aborted"} & ways_out(m)
        assert steps.possible(m) or m.phase in (MigrationPhase.PURGING, MigrationPhase.ABORTING)


@given(HISTORIES)
def test_a_step_repeated_changes_nothing_more(names: list[str]) -> None:
    """Except a second request to measure after the first was answered, which is another one."""
    m = started(coverage=FULL)
    for name in names:
        m = applied(m, name)
        assert applied(m, name) == m


@given(HISTORIES)
def test_commits_below_the_thresholds_are_forced_and_recorded(names: list[str]) -> None:
    m = started(coverage=FULL)
    for name in names:
        before, m = m, applied(m, name)
        assert (m.serving == "new") is (m.phase in NEW_SERVES)
        assert decode_value(encode_value(m), Migration, key=keys.migration_key("c1")) == m
        if m.phase is MigrationPhase.COMMITTED and before.phase is not MigrationPhase.COMMITTED:
            step = m.history[-1]
            assert step.event == "commit"
            passed = before.verdict.passed and not (
                before.phase is MigrationPhase.VALIDATE and before.measuring
            )
            assert step.forced is not passed
            assert step.who == "ada"
            assert step.why
        if before.phase in (MigrationPhase.PURGING, MigrationPhase.PURGED):
            assert m.serving == "new" or m.phase is MigrationPhase.PREPARE  # started once more


# ------------------------------------------------------------------------------- what it stores


def test_the_largest_state_fits_into_one_value() -> None:
    wide = "\u4f60"
    m = started(
        error="e" * WHY_CHARACTERS_MAX,
        history=tuple(
            steps.Transition("commit", MigrationPhase.COMMITTED, 1e9 + n, wide * WHO_CHARACTERS_MAX,
                             wide * WHY_CHARACTERS_MAX, forced=True)
            for n in range(HISTORY_MAX)
        ),
    )  # fmt: skip
    finished = [
        Backfilled(
            SegmentProgress(
                99_999, f"{n:064}", "m" * 64, 10**9,
                tuple(SkipCount(f"{r:064}", 10**9) for r in range(SKIP_REASONS_MAX + 4)),
            ),
            tuple(SkippedRecord(wide * 170, 99_999, "m" * 64, f"{r}" * 64) for r in range(2)),
        )
        for n in range(SEGMENTS_COUNTED_MAX + 10)
    ]  # fmt: skip
    m = observed(m, coverage=FULL, finished=finished)
    assert len(m.segments) == SEGMENTS_COUNTED_MAX
    assert {len(one.skipped) for one in m.segments} == {SKIP_REASONS_MAX}
    assert m.segments[0].rows_skipped == (SKIP_REASONS_MAX + 4) * 10**9
    assert len(m.skipped) <= SKIPPED_NAMED_MAX
    assert len(encode_value(m)) < VALUE_BYTES_MAX
    check_migration(m)


def test_the_history_keeps_its_first_step_and_the_newest() -> None:
    m = started()
    for _ in range(HISTORY_MAX):
        m = steps.resume(steps.pause(m, order=OPERATOR), order=OPERATOR)
    assert len(m.history) == HISTORY_MAX
    assert m.started_at_s == 1.0
    assert m.history[-1].event == "resume"


def test_what_was_seen_is_counted_once_and_gives_the_pace() -> None:
    done = Backfilled(
        SegmentProgress(0, "s1", "new", 90, (SkipCount("empty", 10),)),
        (SkippedRecord("a", 0, "new", "empty"),),
    )
    first = observed(
        started(), coverage=CoverageTotals(at_s=0.0, rows=1_000, rows_lacking=1_000), finished=[]
    )
    seen = CoverageTotals(at_s=10.0, rows=1_000, rows_lacking=900)
    second = observed(first, coverage=seen, finished=[done])
    assert second.coverage is not None
    assert second.coverage.rows_per_s == 10.0
    assert observed(second, coverage=seen, finished=[done]) == second
    assert [one.rows_skipped for one in second.segments] == [10]
    gone = observed(second, coverage=seen, finished=[], present={(0, "s2")})
    assert gone.segments == ()
