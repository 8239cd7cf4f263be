from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from annheal.cli.operator_commands.migrate import (
    assigned,
    duration,
    render_list,
    render_plan,
    render_status,
)
from annheal.model.topology.migration.gate import GateReport
from annheal.model.topology.migration.state import (
    CoverageTotals,
    Migration,
    MigrationPhase,
    SegmentProgress,
    SkipCount,
    SkippedRecord,
    Transition,
)
from annheal.model.topology.migration.view import MigrationEstimate, MigrationStatus

RUNNING = Migration(
    collection_id="c1",
    from_model="old",
    to_model="new",
    phase=MigrationPhase.BACKFILL,
    history=(Transition("start", MigrationPhase.PREPARE, 1e9, "ada", "it is [bold]better[/]"),),
    coverage=CoverageTotals(1e9, rows=1_000, rows_lacking=400, segments=4, segments_left=2,
                            rows_per_s=10.0),
    segments=(
        SegmentProgress(0, "s1", "new", 90, (SkipCount("empty", 70), SkipCount("refused", 30))),
        SegmentProgress(0, "s1", "old", 90, (SkipCount("empty", 5),)),
    ),
    skipped=(SkippedRecord("doi:1", 0, "new", "empty"),),
)  # fmt: skip


def text_of(renderable: object) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def status(migration: Migration) -> MigrationStatus:
    return MigrationStatus.of(migration, collection="papers")


def test_the_status_says_how_far_it_is_and_why_records_lack_a_vector() -> None:
    text = text_of(render_status(status(RUNNING)))
    assert "600 of 1,000 have a new vector" in text
    assert "2 of 4" in text
    assert "10.0 records/s" in text
    assert "30 s" in text.split("time left")[1].splitlines()[0]  # 300 can still get one
    assert "70 empty, 30 refused" in text
    assert "doi:1" in text
    assert "it is [bold]better[/]" in text
    assert "pause, update, abort" in text
    assert "old serves" in text


def test_the_gate_is_shown_figure_by_figure() -> None:
    report = GateReport(3, 1.0, 100, 10, recall=0.5, overlap=0.4, latency_ratio=1.0)
    waiting = replace(
        RUNNING, phase=MigrationPhase.VALIDATE, validations=3, report=report, paused=True
    )
    lines = text_of(render_status(status(waiting))).splitlines()
    assert any("Gate, validation 3" in line for line in lines)
    (recall,) = [line.split() for line in lines if line.startswith("recall ")]
    assert recall == ["recall", "0.5", "at", "least", "0.95", "no"]
    assert any("validate, paused" in line for line in lines)


def test_an_estimate_and_a_list_are_readable() -> None:
    estimate = MigrationEstimate(
        "papers", "old", "new", 1_000, 1_000, 100, 10, (SkipCount("no_source", 10),), "onnx",
        120_000, 30_000, 50.0, 18_000.0, 4 << 20, 4 << 20, ("a shard did not report",),
    )  # fmt: skip
    text = text_of(render_plan(estimate))
    for part in (
        "1,000, 1,000 without a new vector", "120,000 characters, about 30,000 tokens",
        "50 records/s", "5.0 h", "4.0 MiB", "10.0% of the sample: 10 no_source",
        "! a shard did not report",
    ):  # fmt: skip
        assert part in text
    assert "60.0%" in text_of(render_list([status(RUNNING)]))


def test_percents_are_shares() -> None:
    assert assigned(["canary_share=5%", "unfit=stop", "tasks-max=3"]) == {
        "canary_share": 0.05, "unfit": "stop", "tasks_max": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "text"), [(42, "42 s"), (300, "5 min"), (11_520, "3.2 h"), (216_000, "2.5 days")]
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
