"""The benchmarks of healing: what they change, how they judge, what they require and draw."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import generate_latest
from prometheus_client.registry import CollectorRegistry

from annheal.runtime.metrics import Metrics
from benchmarks.churn import Run, parse
from benchmarks.datasets.population import Churn, Population
from benchmarks.harness.churn_figures import FAISS, FRESH, HEALING, check, draw
from benchmarks.harness.dataset import Dataset
from benchmarks.harness.drawing import Line, Panel, drawing, ticks
from benchmarks.harness.options import REPOSITORY
from benchmarks.harness.report import Report
from benchmarks.impact import compaction as compaction_impact
from benchmarks.impact import write_amplification
from benchmarks.impact.write_amplification import BATCH_ROWS_MAX, batch_sizes
from benchmarks.systems.in_process import INDEXES, FaissTombstones, HnswlibReplace, hnswlib_is_there
from benchmarks.systems.servers import stored_bytes

ROWS, DIMENSION, K = 3_000, 16, 10
# A server builds graphs from 2,000 rows on.
KEYS = (
    "system cycle live_rows dead_rows recall p50_ms p99_ms p99_ratio visited ghosts memory_mb"
    " disk_mb segments failures"
)


@pytest.fixture
def dataset() -> Dataset:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((ROWS + 40, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Dataset(
        name="noise",
        ids=[f"id-{row}" for row in range(ROWS)],
        vectors=vectors[:ROWS],
        queries=vectors[ROWS:],
        attributes=pa.table({"row": pa.array(range(ROWS), type=pa.int64())}),
        schema={"row": "int64"},
        payloads=None,
    )


def exact(
    population: Population, dataset: Dataset
) -> tuple[list[list[str]], list[np.ndarray[Any, Any]]]:
    ids, rows = population.records()
    scores = dataset.queries @ dataset.vectors[rows].T
    best = np.argsort(-scores, axis=1)[:, :K]
    found = [[ids[at] for at in row] for row in best]
    return found, list(np.take_along_axis(scores, best, axis=1))


# -------------------------------------------------------------------------------- population


def test_a_cycle_deletes_replaces_and_adds_what_it_says(dataset: Dataset) -> None:
    population = Population(dataset)
    for _ in range(3):
        before = dict(zip(*map(list, population.records()), strict=True))
        change = population.change(Churn(deletes=0.05, upserts=0.1, new_share=0.2))
        after = dict(zip(*map(list, population.records()), strict=True))
        upserts = round(len(before) * 0.1)
        new = [id for id in change.upserted_ids if id not in before]
        assert len(change.deleted_ids) == round(len(before) * 0.05)
        assert len(change.upserted_ids) == len(set(change.upserted_ids)) == upserts
        assert len(new) == round(upserts * 0.2)
        assert not set(change.deleted_ids) & (set(change.upserted_ids) | set(after))
        assert len(set(after.values())) == len(after) == population.live_rows
        for id, row in zip(change.upserted_ids, change.upserted_rows.tolist(), strict=True):
            assert after[id] == row != before.get(id)
        assert len(change.dead_versions) == len(change.deleted_ids) + upserts - len(new)
        assert not any(population.lives(version) for version in change.dead_versions.tolist())
        assert all(population.lives(version) for version in change.new_versions.tolist())
        assert [population.id_of(n) for n in change.new_versions.tolist()] == change.upserted_ids


def test_a_cycle_that_needs_more_rows_than_are_free_says_so(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="300 are free"):
        Population(dataset).change(Churn(deletes=0.0, upserts=0.5))


def test_exact_answers_are_perfect_and_every_kind_of_ghost_is_seen(dataset: Dataset) -> None:
    population = Population(dataset)
    stale, old_scores = exact(population, dataset)
    change = population.change(Churn(deletes=0.3, upserts=0.1, new_share=0.0))
    truth = population.truth(dataset.queries, K)
    judged = population.judge(dataset.queries, *exact(population, dataset), truth)
    assert (judged.recall, judged.ghosts) == (1.0, 0)
    ended = set(change.deleted_ids) | set(change.upserted_ids)
    expected = sum(id in ended for ids in stale for id in ids)
    judged = population.judge(dataset.queries, stale, old_scores, truth)
    assert judged.ghosts == expected > 0
    # New records may be nearer than what is left of the old answers.
    assert 0.4 < judged.recall <= 1 - expected / (K * len(dataset.queries))
    replaced = [[id for id in ids if id in change.upserted_ids] for ids in stale]
    scores = [s[[i in c for i in ids]] for s, ids, c in zip(old_scores, stale, replaced)]  # noqa: B905
    assert sum(map(len, replaced)) > 0
    judged = population.judge(dataset.queries, replaced, scores, truth)
    assert judged.ghosts == sum(map(len, replaced))
    assert judged.recall == 0.0


def test_the_same_hit_twice_counts_once(dataset: Dataset) -> None:
    population = Population(dataset)
    found, scores = exact(population, dataset)
    twice = [[ids[0]] * K for ids in found]
    same = [np.repeat(row[:1], K) for row in scores]
    truth = population.truth(dataset.queries, K)
    assert population.judge(dataset.queries, twice, same, truth).recall == pytest.approx(1 / K)


# --------------------------------------------------------------------------------- libraries


@pytest.mark.parametrize("kind", sorted(INDEXES))
def test_libraries_return_what_lives_and_nothing_else(kind: str, dataset: Dataset) -> None:
    if kind == "hnswlib" and not hnswlib_is_there():
        pytest.skip("hnswlib is not installed")
    index: FaissTombstones | HnswlibReplace = INDEXES[kind](DIMENSION)
    population = Population(dataset)
    none = np.empty(0, dtype=np.int64)
    rows = np.arange(population.first_rows)
    index.change(dead=none, new=rows, vectors=dataset.vectors[rows])
    dead = 0
    for _ in range(3):
        change = population.change(Churn())
        index.change(
            dead=change.dead_versions,
            new=change.new_versions,
            vectors=dataset.vectors[change.upserted_rows],
        )
        dead += len(change.dead_versions)
        dead -= len(change.new_versions) if kind == "hnswlib" else 0
        assert index.dead == dead
        numbers, scores, _ = index.search(dataset.queries, k=K, ef=512)
        assert all(population.lives(number) for number in numbers.ravel().tolist())
        found = [[population.id_of(number) for number in row] for row in numbers.tolist()]
        truth = population.truth(dataset.queries, K)
        judged = population.judge(dataset.queries, found, list(scores), truth)
        assert judged.ghosts == 0
        assert judged.recall > 0.95


# ------------------------------------------------------------------- requirements and picture


def row(system: str = HEALING, cycle: int = 0, **changed: float) -> dict[str, Any]:
    usual = {
        "live_rows": 100,
        "recall": 0.97,
        "p99_ms": 2.0,
        "p99_ratio": 1.0,
        "ghosts": 0,
        "memory_mb": 400.0,
        "disk_mb": 200.0,
        "failures": 0,
    }
    return {"system": system, "cycle": cycle, **usual, **changed}


def failed(*rows: dict[str, Any]) -> list[str]:
    return [one.name for one in check([*rows, row(FRESH, 2)]) if not one.holds]


def test_what_is_required_can_be_met() -> None:
    slower = row(cycle=1, recall=0.961, p99_ratio=1.25)
    assert failed(row(), slower, row(cycle=2, disk_mb=299)) == []
    assert len(check([row(), row(FRESH)])) == 7


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recall": 0.959}, "falls"),
        ({"p99_ratio": 1.35}, "p99"),
        ({"ghosts": 1}, "ghosts"),
        ({"failures": 1}, "failed"),
        ({"memory_mb": 601.0}, "memory"),
        ({"disk_mb": 301.0}, "disk"),
    ],
)
def test_each_requirement_can_fail(changed: dict[str, float], words: str) -> None:
    names = failed(row(), row(cycle=1, **changed))
    assert len(names) == 1
    assert words in names[0]


def test_one_low_cycle_is_no_loss_but_a_trend_is() -> None:
    recalls = [0.967, 0.952, 0.963, 0.962, 0.957, 0.964, 0.965, 0.964]
    assert failed(*(row(cycle=n, recall=value) for n, value in enumerate(recalls))) == []
    fading = [row(cycle=n, recall=0.975 - 0.0015 * n) for n in range(8)]
    assert any("falls" in name for name in failed(*fading))


def test_recall_below_the_objective_fails_whatever_it_was() -> None:
    assert any("0.95" in name for name in failed(row(recall=0.94), row(cycle=1, recall=0.94)))


def test_nothing_is_required_without_annheal() -> None:
    assert check([row(FAISS)]) == []


def test_the_picture_is_xml_with_a_line_for_every_system() -> None:
    rows = [row(name, cycle, p99_ms=1.0 + cycle) for name in (HEALING, FAISS) for cycle in (0, 1)]
    root = ElementTree.fromstring(draw([*rows, row(FRESH, 1)]))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{name}polyline")) == 2 * 4
    texts = [element.text for element in root.iter(f"{name}text")]
    assert {HEALING, FAISS, "recall@10"} <= set(texts)
    assert FRESH not in texts


def test_titles_are_escaped() -> None:
    panel = Panel("a < b & c", "", (Line("l<1>", "#000000", ((0.0, 1.0), (1.0, 1.0))),))
    ElementTree.fromstring(drawing([panel], title="<t>", subtitle="&", x_title="x"))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0]),
        (0.0, 380.0, [0.0, 100.0, 200.0, 300.0, 400.0]),
        (0.943, 0.98, [0.94, 0.95, 0.96, 0.97, 0.98]),
        (5.0, 5.0, [4.0, 6.0]),
    ],
)
def test_ticks_are_round_and_cover_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert len(found) >= 2
    if low != high:
        assert found == pytest.approx(expected)


# ----------------------------------------------------------------------- load and its impact


def test_batches_of_every_magnitude_add_up() -> None:
    sizes = batch_sizes(100_000)
    assert sum(sizes) == 100_000
    assert 1 <= min(sizes) < 10
    assert BATCH_ROWS_MAX / 2 < max(sizes) <= BATCH_ROWS_MAX
    assert batch_sizes(100_000) == sizes


def test_amplification_above_the_limit_fails() -> None:
    rows = [{"pace": "at once", "write_amplification": value} for value in (6.0, 6.1)]
    assert [one.holds for one in write_amplification.check(rows)] == [True, False]


def test_latency_and_failures_during_compaction_are_checked() -> None:
    def holds(ratio: float, failed: int) -> list[bool]:
        rows = [
            {"phase": compaction_impact.WITHOUT, "ratio": 1.0, "failed": 0},
            {"phase": compaction_impact.DURING, "ratio": ratio, "failed": failed},
        ]
        return [one.holds for one in compaction_impact.check(rows)]

    assert holds(2.0, 0) == [True, True]
    assert holds(2.1, 0) == [False, True]
    assert holds(1.0, 1) == [True, False]


def test_bytes_stored_are_read_from_metrics() -> None:
    metrics = Metrics()
    metrics.store_bytes.add(12_345_678, "put", "segments")
    metrics.store_bytes.add(7, "put", "wal")
    metrics.store_bytes.add(9, "get", "segments")
    registry = CollectorRegistry()
    registry.register(metrics.store_bytes)
    text = generate_latest(registry).decode()
    assert stored_bytes(text) == {"segments": 12_345_678, "wal": 7}


# ------------------------------------------------------------------------------------- whole


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_servers_and_libraries_go_through_a_cycle(dataset: Dataset, tmp_path: Path) -> None:
    options, own = parse(
        [
            *("--cycles", "1", "--cycle-seconds", "0.5", "--systems", "annheal,faiss"),
            *("--repeats", "1"),
        ]
    )
    report = Report("churn", options, dataset)
    await Run(dataset, options, own, report, print).run()
    found = [(one["system"], one["cycle"]) for one in report.rows]
    assert found == [(HEALING, 0), (FAISS, 0), (HEALING, 1), (FAISS, 1), (FRESH, 1)]
    for one in report.rows:
        assert set(one) == set(KEYS.split())
        assert one["recall"] >= 0.9
        assert one["ghosts"] == one["failures"] == 0
        assert one["live_rows"] == (2_700 if one["cycle"] == 0 else 2_565)
        assert one["memory_mb"] > 10
        assert one["disk_mb"] > 0.1
    assert report.rows[3]["dead_rows"] == 405
    assert len(check(report.rows)) == 7


def test_keys_and_options_are_documented() -> None:
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert not [key for key in KEYS.split() if f"`{key}`" not in manual]
    flags = ("cycles", "systems", "deletes", "upserts", "cycle-seconds", "svg")
    assert not [flag for flag in flags if f"`--{flag}" not in manual]
    for columns in (write_amplification.COLUMNS, compaction_impact.COLUMNS):
        assert not [column.key for column in columns if f"`{column.key}`" not in manual]


@pytest.mark.parametrize(
    "arguments", [["--cycles", "-1"], ["--systems", "moon"], ["--deletes", "0.9"], ["--cycle", "1"]]
)
def test_bad_options_end_with_a_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse([*arguments, *(["--upserts", "0.2"] if arguments[0] == "--deletes" else [])])
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
