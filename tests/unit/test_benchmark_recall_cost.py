"""What the cost benchmark concludes; the monitor works when it is allowed to, and only then."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.harness.options import REPOSITORY
from benchmarks.harness.pairs import PairedRatio
from benchmarks.impact.recall_cost import COLUMNS, Cost, cost_of, judged, schedule_of, sentences
from benchmarks.systems.monitored_node import OFF, ON, GatedLanes, Turns


def test_turns_are_as_long_as_the_slices_are_due() -> None:
    short = schedule_of(0.01, share=0.02, seconds=1.0)
    assert short.slices == 2
    assert short.cpu_s == pytest.approx(1.0)
    long = schedule_of(0.1, share=0.02, seconds=1.0)
    assert long.slices == 1
    assert long.cpu_s == pytest.approx(5.0), "one slice at least, whatever was asked for"
    for schedule, cpu_s in ((short, 0.01), (long, 0.1)):
        assert schedule.slices * cpu_s / schedule.cpu_s == pytest.approx(0.02)


def test_the_cost_is_in_proportion_to_the_monitors_share_and_noting_is_not() -> None:
    measured = PairedRatio(0.78, 0.74, 0.80)
    same = cost_of(measured, noting=0.01, monitor=0.2, at=0.2)
    assert same.share == pytest.approx(0.22)
    assert (same.low, same.high) == (pytest.approx(0.20), pytest.approx(0.26))
    tenth = cost_of(measured, noting=0.01, monitor=0.2, at=0.02)
    assert tenth.share == pytest.approx(0.01 + 0.021)
    assert tenth.high - tenth.low == pytest.approx((same.high - same.low) / 10)
    assert cost_of(measured, noting=0.01, monitor=0.2, at=0.0).share == pytest.approx(0.01)


def test_only_a_whole_interval_proves_something() -> None:
    assert judged(Cost(0.010, 0.005, 0.0199)) == "pass"
    assert judged(Cost(0.030, 0.0201, 0.040)) == "fail"
    assert judged(Cost(0.020, 0.015, 0.025)).startswith("unclear")


def test_cores_taken_away_by_others_make_nothing_cheaper() -> None:
    assert Turns(cpu_s=18.0, took_s=10.0).cores == pytest.approx(1.8)
    assert Turns(cpu_s=3.0, took_s=10.0).cores == 1.0


async def test_slices_begin_only_when_they_are_allowed() -> None:
    lanes = GatedLanes()
    ran: list[int] = []
    try:
        waiting = [
            asyncio.create_task(lanes.monitor(lambda n=n: ran.append(n)))  # type: ignore[misc]
            for n in range(3)
        ]
        await lanes.finish()
        assert ran == []
        lanes.allow(2)
        await lanes.finish()
        assert ran == [0, 1]
        assert len(lanes.slices_cpu_s) == 2
        lanes.forget()
        assert lanes.slices_cpu_s == []
        lanes.allow(1)
        await asyncio.wait_for(lanes.finish(), 10.0)
        await asyncio.gather(*waiting)
        assert len(lanes.slices_cpu_s) == 1
    finally:
        lanes.close()


def test_keys_are_documented_and_told() -> None:
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert not [one.key for one in COLUMNS if f"`{one.key}`" not in manual]
    assert OFF != ON
    row = {
        "share": 0.2, "cores": 1.7,
        "cost": 0.006, "cost_low": 0.005, "cost_high": 0.007,
        "cost_budget": 0.021, "cost_budget_low": 0.0205, "cost_budget_high": 0.022,
    }  # fmt: skip
    told, default, budget = sentences([row], slice_cpu_s=0.1, scale=1.0)
    assert "0.67 % of a core" in told
    assert default.startswith("from a share of 0.20: default interval: costs 0.60 %")
    assert default.endswith("pass")
    assert budget.endswith("fail")
