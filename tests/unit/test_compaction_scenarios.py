"""Runs the files of tests/unit/scenarios; its README says how they are written."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from annheal.coordinator.compaction.plan import (
    CompactionSettings,
    ShardObservation,
    plan_compactions,
    plan_manual,
    plan_named,
)
from annheal.errors import NotFound
from annheal.model.collection import Collection, CollectionSettings, Metric, ModelSpec
from annheal.model.topology.manifest import Tier
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

FOLDER = Path(__file__).parent / "scenarios"
NOW_S = 10_000.0
ROW_BYTES = 1_600
TIERS = {"flat": "hot", "hnsw": "warm", "growing": "growing"}


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    segments: list[str]
    expect: list[str]
    quiet_s: float = 0.0
    tasks: list[str] = field(default_factory=list)
    collection: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    manual: str = ""
    why: str = ""
    tier: str = ""
    priority: int | None = None


def scenarios() -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.toml")):
        for one in tomllib.loads(path.read_text())["scenario"]:
            checked = msgspec.convert(one, Scenario, strict=False)
            assert set(one) <= set(Scenario.__slots__), f"{path.name}: {one}"
            found.append(pytest.param(checked, id=f"{path.stem}: {checked.name}"))
    return found


def segment(text: str) -> SegmentState:
    name, kind, rows, *rest = text.split()
    known = {"dead", "bytes", "generation", "walks", "built_for", "recall", "ef", "model"}
    facts = dict(word.split("=") for word in rest if "=" in word)
    words = {word for word in rest if "=" not in word}
    assert not set(facts) - known, text
    assert not words - {"rebuild", "stuck"}, text
    visited, _, baseline = facts.get("walks", "0/0").partition("/")
    return SegmentState(
        shard=0,
        segment_id=name,
        tier="warm" if facts.get("generation") else TIERS[kind],
        model=facts.get("model", "m"),
        index_kind="hnsw" if kind == "hnsw" else "flat",
        rows=int(rows),
        dead_rows=int(facts.get("dead", 0)),
        size_bytes=int(facts.get("bytes", int(rows) * ROW_BYTES)),
        generation=int(facts.get("generation", kind == "hnsw")),
        created_at_s=0.0,
        min_sequence=1,
        max_sequence=int(rows),
        recall=float(facts.get("recall", -1.0)),
        ef=int(facts.get("ef", 0)),
        rebuild="rebuild" in words,
        stuck="stuck" in words,
        visited=float(visited),
        visited_baseline=float(baseline),
        built_for=facts.get("built_for", ""),
    )


def shard_state(segments: list[SegmentState]) -> ShardState:
    return ShardState(
        collection_id="c1",
        shard=0,
        node_id="a",
        phase="serving",
        epoch=1,
        live_rows=0,
        dead_rows=0,
        unindexed_rows=0,
        applied_sequence=0,
        wal_slots=0,
        memory_bytes=0,
        segments=tuple(segments),
    )


def task(text: str) -> CompactionTask:
    phase, *rest = text.split()
    facts = dict(word.split("=") for word in rest if "=" in word)
    return CompactionTask(
        id="old",
        collection_id="c1",
        shard=0,
        sources=tuple(word for word in rest if "=" not in word),
        tier="warm",
        reason=TaskReason(facts.get("reason", "merge")),
        phase=TaskPhase(phase),
        finished_at_s=float(facts.get("finished_s", 0.0)),
    )


def new_ids() -> Callable[[], str]:
    numbers = count(1)
    return lambda: f"t{next(numbers)}"


def planned(scenario: Scenario) -> tuple[CompactionTask, ...]:
    collection = Collection(
        id="c1",
        name="packages",
        models=(ModelSpec("m", 384, Metric.COSINE),),
        schema=(),
        shard_count=1,
        settings=replace(CollectionSettings(), **scenario.collection),
    )
    state = shard_state([segment(text) for text in scenario.segments])
    tasks = [task(text) for text in scenario.tasks]
    how, *names = scenario.manual.split() or ["rules"]
    asked = {
        "now_s": NOW_S,
        "settings": replace(CompactionSettings(), **scenario.rules),
        "new_id": new_ids(),
    }
    match how:
        case "rules":
            seen = [ShardObservation(state, scenario.quiet_s)]
            return plan_compactions(collection, seen, tasks, **asked)
        case "named":
            return plan_named(collection, [state], tasks, segment_ids=names, **asked)
        case "full":
            return plan_manual(collection, [state], tasks, **asked)
        case "tier":
            return plan_manual(collection, [state], tasks, tier=Tier(names[0]), **asked)
    raise AssertionError(how)


@pytest.mark.parametrize("scenario", scenarios())
def test_scenario(scenario: Scenario) -> None:
    found = planned(scenario)
    wanted = [(text.split()[0], set(text.split()[1:])) for text in scenario.expect]
    said = [(one.reason.value, set(one.sources)) for one in found]
    assert sorted(said, key=str) == sorted(wanted, key=str), [one.why for one in found]
    for one in found:
        assert one.why
        assert one.estimated_bytes > 0
        assert one.estimated_disk_bytes > 0
    for name in ("why", "tier", "priority"):
        value = getattr(scenario, name)
        if value not in ("", None):
            (only,) = found
            shown = getattr(only, name)
            assert value in shown if name == "why" else value == shown


def test_a_segment_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(NotFound, match="packages has no segment 'x'; there are: a, b"):
        planned(Scenario("", ["a flat 10", "b flat 10", "y growing 5"], [], manual="named a x"))
