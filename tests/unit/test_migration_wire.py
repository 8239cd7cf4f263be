from __future__ import annotations

from dataclasses import fields, replace

import pytest

from annheal.errors import InvalidArgument
from annheal.model.topology.migration.gate import GateReport, GateThresholds
from annheal.model.topology.migration.state import (
    CoverageTotals,
    Migration,
    MigrationPhase,
    MigrationSettings,
    SegmentProgress,
    SkipCount,
    SkippedRecord,
    Transition,
    UnfitRecords,
)
from annheal.model.topology.migration.view import MigrationEstimate, MigrationStatus
from annheal.wire.lifecycle.migration import (
    PHASE,
    UNFIT,
    apply_settings,
    apply_thresholds,
    decode_estimate,
    decode_migration,
    encode_changes,
    encode_estimate,
    encode_migration,
)

FULL = Migration(
    collection_id="c1",
    from_model="old",
    to_model="new/v2",
    phase=MigrationPhase.COMMITTED,
    paused=True,
    settings=MigrationSettings(20.0, 3, 0.05, 0.01, UnfitRecords.STOP),
    thresholds=GateThresholds(0.9, 0.2, 0.03, 1.2, 0.4, -0.1, 0.1),
    history=(
        Transition("start", MigrationPhase.PREPARE, 1.5, "ada", "why"),
        Transition("commit", MigrationPhase.COMMITTED, 2.5, "bob", "must", forced=True),
    ),
    validations=4,
    report=GateReport(4, 3.5, 100, 10, 0.9, 0.3, 0.2, 1.1, 0.5, 0.1, -0.01, 0.02),
    coverage=CoverageTotals(4.5, 100, 7, 3, 5, 2, 1, 12.5),
    segments=(SegmentProgress(1, "s1", "new/v2", 90, (SkipCount("empty", 4),)),),
    skipped=(SkippedRecord("id", 1, "new/v2", "empty"),),
    error="it failed",
)


def test_everything_of_a_migration_survives() -> None:
    assert all(getattr(FULL, one.name) != one.default for one in fields(Migration)), (
        "the example leaves a field out"
    )
    status = MigrationStatus.of(FULL, collection="papers")
    assert status.possible == ("resume", "update", "rollback", "purge", "abort")
    assert decode_migration(encode_migration(status)) == status


def test_what_was_not_measured_stays_unknown() -> None:
    bare = replace(
        FULL, report=GateReport(1, 2.0, 0, 10), coverage=None, thresholds=GateThresholds()
    )
    status = MigrationStatus.of(bare, collection="papers")
    found = decode_migration(encode_migration(status))
    assert found == status
    assert found.findings[0].value is None
    assert found.migration.thresholds.bridge_error_max is None
    fresh = MigrationStatus.of(replace(bare, report=None), collection="papers")
    assert decode_migration(encode_migration(fresh)) == fresh


def test_an_estimate_survives() -> None:
    estimate = MigrationEstimate(
        "papers", "old", "new", 100, 90, 50, 5, (SkipCount("no_source", 5),), "onnx", 1_000, 250,
        33.5, 2.5, 4_096, 8_192, ("a warning",),
    )  # fmt: skip
    assert decode_estimate(encode_estimate(estimate)) == estimate


def test_changes_touch_nothing_else() -> None:
    settings, thresholds = encode_changes(
        {"rows_per_second": 0.0, "unfit": "stop", "ndcg_gain_min": 0.0}
    )
    assert apply_settings(settings, present=FULL.settings) == replace(
        FULL.settings, rows_per_second=0.0
    )
    assert apply_settings(settings, present=MigrationSettings()) == MigrationSettings(
        unfit=UnfitRecords.STOP
    )
    assert apply_thresholds(thresholds, present=FULL.thresholds) == replace(
        FULL.thresholds, ndcg_gain_min=0.0
    )


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"rows_per_secnd": 1}, "rows_per_secnd", "did you mean rows_per_second"),
        ({"tasks_max": "many"}, "tasks_max", "'many'"),
        ({"tasks_max": -1}, "tasks_max", "-1"),
        ({"unfit": "ignore"}, "unfit", "none of skip, stop"),
    ],
)
def test_changes_that_are_none_are_refused_by_name(
    changes: dict[str, object], field: str, said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said) as refused:
        encode_changes(changes)
    assert refused.value.violations[0].field == field


def test_every_phase_and_word_has_a_number() -> None:
    for phase in MigrationPhase:
        assert PHASE.decode(PHASE.encode(phase), field="phase") is phase
    for word in UnfitRecords:
        assert UNFIT.decode(UNFIT.encode(word), field="unfit") is word
