"""The benchmark of published recall: truth with ties and writes, windows, times; one tiny run."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from annheal.model.collection import Metric
from annheal.model.measures.recall import RecallEstimate, SegmentRecall, SelectivityBand
from annheal.model.measures.recall_summary import RecallSlice, RecallSummary, RecallVerdict
from benchmarks.datasets.conditions import (
    BY_NAME,
    CONDITIONS,
    REPORT,
    TUNE,
    Ask,
    Before,
    Condition,
    Phase,
)
from benchmarks.datasets.planted import DATA, OUTSIDE, PLAIN, plant
from benchmarks.harness.dataset import Dataset
from benchmarks.harness.exact_truth import Given, Question, RecordHistory
from benchmarks.harness.finished import FinishedParts
from benchmarks.harness.options import REPOSITORY
from benchmarks.harness.recall_figures import draw, panel_of
from benchmarks.harness.recall_windows import (
    OVERALL,
    SPAN_TOLERANCE_S,
    Answers,
    Published,
    apart,
    falls,
    met_while_below_s,
    seconds_to_notice,
    seconds_to_objective,
    windows_of,
    with_truth,
)
from benchmarks.harness.report import Row
from benchmarks.recall_truth import (
    Judged,
    TruthOptions,
    parse,
    requirements,
    restored_panel,
    result_of,
    run,
)

ROWS, DIMENSION = 2_300, 16
KEYS = (
    "condition window true_recall estimate low high contained verdict seconds_to_notice"
    " seconds_to_objective cost_ratio"
)
MET, MISSED = RecallVerdict.MET, RecallVerdict.MISSED


def noise(rows: int) -> Dataset:
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((rows + 60, DIMENSION)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Dataset(
        name="noise",
        ids=[f"id-{row}" for row in range(rows)],
        vectors=vectors[:rows],
        queries=vectors[rows:],
        attributes=pa.table({}),
        schema={},
        payloads=None,
    )


# ----------------------------------------------------------------------------------------- truth


def line(*values: float) -> RecordHistory:
    """Return records on a line, compared by distance; their parts are 0, 1, 2, and so on."""
    vectors = np.array([[value] for value in values], dtype=np.float32)
    return RecordHistory(vectors, np.arange(len(values)))


def recalls(
    history: RecordHistory, question: Question, *found: Sequence[int], writes: int = 0
) -> list[float]:
    given = [Given(0, np.array(one, dtype=np.int32), writes, writes) for one in found]
    return history.recalls(Metric.L2, [question], given).tolist()


def at(value: float, k: int, part_max: int | None = None) -> Question:
    return Question(np.array([value], dtype=np.float32), k, part_max)


def test_whichever_of_equal_records_was_found_is_right() -> None:
    history = line(0.0, 1.0, 1.0, 1.0, 5.0)
    found = recalls(history, at(0.0, 2), (0, 1), (0, 3), (2, 3), (0, 4), (4,), (0, 0, 0))
    assert found == [1.0, 1.0, 1.0, 0.5, 0.0, 0.5]


def test_fewer_matches_than_k_are_all_that_is_wanted() -> None:
    history = line(0.0, 1.0, 2.0)
    assert recalls(history, at(0.0, 10), (0, 1, 2), (0,)) == [1.0, 1 / 3]
    matching = at(0.0, 10, part_max=2)
    assert recalls(history, matching, (0, 1), (0, 2)) == [1.0, 0.5], "record 2 does not match"
    assert np.isnan(recalls(history, at(0.0, 10, part_max=0), ())).all()


def test_truth_is_that_of_the_records_that_lived_when_the_query_was_asked() -> None:
    history = line(0.0, 1.0, 2.0)
    history.delete(np.array([0]))
    history.upsert(np.array([2, 3]), np.array([[-5.0], [0.5]], dtype=np.float32), np.array([7, 8]))
    assert recalls(history, at(0.0, 2), (0, 1), (1, 2), writes=0) == [1.0, 0.5]
    assert recalls(history, at(0.0, 2), (0, 1), (1, 2), writes=1) == [0.5, 1.0], "0 is deleted"
    assert recalls(history, at(0.0, 2), (1, 2), (3, 1), writes=2) == [0.5, 1.0], "2 has moved"
    assert history.live().tolist() == [1, 2, 3]
    assert history.matching_share(7) == pytest.approx(1 / 3)
    between = [Given(0, np.array([3, 1], dtype=np.int32), acknowledged=1, sent=2)]
    assert np.isnan(history.recalls(Metric.L2, [at(0.0, 2)], between)).all()


@pytest.mark.parametrize("metric", list(Metric))
def test_answers_of_brute_force_in_float32_are_perfect_far_from_the_origin(metric: Metric) -> None:
    rng = np.random.default_rng(1)
    vectors = (rng.standard_normal((500, 24)) + 30.0).astype(np.float32)
    queries = (rng.standard_normal((40, 24)) + 30.0).astype(np.float32)
    products = queries @ vectors.T
    if metric is Metric.L2:
        products = -np.square(queries[:, np.newaxis] - vectors).sum(axis=2)
    if metric is Metric.COSINE:
        products = products / np.linalg.norm(vectors, axis=1)
    best = np.argsort(-products, axis=1)[:, :10].astype(np.int32)
    history = RecordHistory(vectors, np.zeros(500, dtype=np.int64))
    questions = [Question(query, 10) for query in queries]
    given = [Given(number, hits) for number, hits in enumerate(best)]
    assert history.recalls(metric, questions, given).min() == 1.0
    worst = np.argsort(products, axis=1)[:, :10].astype(np.int32)
    given = [Given(number, hits) for number, hits in enumerate(worst)]
    assert history.recalls(metric, questions, given).max() == 0.0


# --------------------------------------------------------------------------------------- windows


def estimate(recall: float, *, begin_s: float, end_s: float, queries: int = 64) -> RecallEstimate:
    return RecallEstimate(
        10, recall, recall - 0.02, recall + 0.01, queries, end_s, {},
        window_begin_s=begin_s, window_end_s=end_s, valid_until_s=end_s + 600, distinct=queries,
    )  # fmt: skip


def published(
    seen_s: float,
    verdict: RecallVerdict,
    found: RecallEstimate | None = None,
    served: RecallEstimate | None = None,
    *,
    ef: int = 40,
) -> Published:
    overall = RecallSlice("", verdict, found, served=served)
    known = found or estimate(0.9, begin_s=0, end_s=1)
    segment = SegmentRecall(
        0, "s", "warm", "m", SelectivityBand.UNFILTERED, known, ef, ef_limit=1_000
    )
    return Published(seen_s, RecallSummary("bench", "c1", 0.95, 1.0, overall, segments=(segment,)))


def answers(*parts: tuple[float, float, float]) -> Answers:
    """Return ten answers a second from, until, of the same recall."""
    times = [np.arange(begin_s, end_s, 0.1) for begin_s, end_s, _ in parts]
    recalls = [np.full(len(one), part[2]) for one, part in zip(times, parts, strict=True)]
    return Answers(np.concatenate(times), np.concatenate(recalls))


def test_an_estimate_is_one_window_however_often_it_is_seen() -> None:
    first = estimate(0.96, begin_s=0, end_s=60)
    served = estimate(0.90, begin_s=0, end_s=60)
    second = estimate(0.97, begin_s=60, end_s=120)
    found = windows_of(
        [
            published(10, RecallVerdict.UNMEASURED),
            published(61, MET, first, served),
            published(62, MET, first, served),
            published(121, MET, second),
        ]
    )
    assert [(one.seen_s, one.recall, one.is_served) for one in found] == [
        (61, 0.90, True),
        (121, 0.97, False),
    ]
    assert found[0].now_recall == 0.96
    known = answers((0.0, 60.0, 0.9), (60.0, 120.0, 0.5))
    right, wrong = (with_truth(one, known) for one in found)
    assert right.true_recall == pytest.approx(0.9, abs=0.002)
    assert right.contained
    assert not wrong.contained
    assert right.answers == pytest.approx(600, abs=10 * SPAN_TOLERANCE_S + 1)


def test_bands_that_are_joined_by_other_weights_are_no_new_window() -> None:
    one = published(61, MET, estimate(0.96, begin_s=0, end_s=60))
    changed = replace(one.summary.overall, estimate=estimate(0.97, begin_s=0, end_s=60))
    later = Published(62, replace(one.summary, overall=changed))
    assert len(windows_of([one, later])) == 1


def test_windows_are_apart_if_they_have_no_query_in_common() -> None:
    said = [
        published(end_s + 1, MET, estimate(0.9, begin_s=end_s - 60, end_s=end_s))
        for end_s in (60.0, 75.0, 90.0, 120.0, 150.0, 180.0)
    ]
    windows = windows_of(said)
    assert [round(one.end_s) for one in apart(windows)] == [60, 120, 180]
    bands = [replace(one, slice="band 1-10%") for one in windows]
    own = [replace(one, slice="own 0.99") for one in windows[:1]]
    assert apart([*windows, *bands, *own]) == [windows[0], own[0], windows[3], windows[5]]


def test_the_weights_of_the_sample_prefer_what_is_new() -> None:
    found = windows_of([published(61, MET, estimate(0.8, begin_s=0, end_s=60))])
    one = with_truth(found[0], answers((0.0, 30.0, 1.0), (30.0, 60.0, 0.6)))
    assert one.true_recall == pytest.approx(0.8, abs=0.01)
    new = 1.0 / (1.0 + np.exp(-1.0))
    assert one.weighted_recall == pytest.approx(0.6 * new + 1.0 * (1 - new), abs=0.01)


def test_met_is_wrong_while_the_last_minute_is_below() -> None:
    known = answers((0.0, 100.0, 0.96), (100.0, 300.0, 0.80))
    said = [published(second, MET, estimate(0.96, begin_s=0, end_s=50)) for second in range(300)]
    found = met_while_below_s(said, lambda _: known, begin_s=0.0, end_s=250.0)
    # After 0.02 / 0.16 of a minute the mean of the last minute is 0.94.
    assert found[OVERALL] == pytest.approx(150 - 7.5, abs=1.5)
    late = [replace(one, summary=published(0, MISSED).summary) for one in said]
    assert met_while_below_s(late, lambda _: known, begin_s=0.0, end_s=250.0) == {OVERALL: 0.0}


def test_it_is_noticed_by_a_verdict_or_by_a_larger_ef() -> None:
    before = [published(float(second), MET) for second in range(10)]
    same = [published(10.0 + second, MET) for second in range(10)]

    def noticed(one: Published) -> float | None:
        return seconds_to_notice([*before, *same, one], change_s=10.0, end_s=40.0)

    new = estimate(0.9, begin_s=5, end_s=24)
    assert noticed(published(25, MET, new)) is None
    assert noticed(published(25, MISSED, new)) == 15
    assert noticed(published(25, MISSED, estimate(0.9, begin_s=0, end_s=9))) is None, "known before"
    assert noticed(published(25, RecallVerdict.UNKNOWN)) == 15
    assert noticed(published(25, MET, ef=57)) == 15
    assert noticed(published(45, MISSED, new)) is None, "the phase is over"
    unknown = [published(5.0, RecallVerdict.UNKNOWN), published(15.0, RecallVerdict.UNKNOWN)]
    assert seconds_to_notice(unknown, change_s=10.0, end_s=40.0) is None


def test_the_objective_is_kept_from_the_last_fall_on() -> None:
    def kept(known: Answers) -> float | None:
        return seconds_to_objective(known, change_s=100.0, end_s=200.0, objective=0.95)

    falling = answers((0.0, 100.0, 1.0), (100.0, 140.0, 0.7), (140.0, 200.0, 0.955))
    assert falls(falling, change_s=100.0, end_s=200.0, objective=0.95)
    assert kept(falling) == pytest.approx(40, abs=5)
    assert kept(answers((100.0, 200.0, 0.951))) == 0.0
    assert not falls(answers((100.0, 200.0, 0.951)), change_s=100.0, end_s=200.0, objective=0.95)
    assert kept(answers((100.0, 140.0, 0.99), (140.0, 200.0, 0.8))) is None
    assert kept(answers((100.0, 195.0, 0.7), (195.0, 200.0, 1.0))) is None, "too few to say it"


def test_an_objective_that_every_answer_says_is_missed_is_as_good_as_kept() -> None:
    times = np.arange(0.0, 100.0, 0.1)
    recalls = np.where(times < 60.0, 0.7, 0.96)

    def kept(flags: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> float | None:
        known = Answers(times, recalls, flags)
        return seconds_to_objective(known, change_s=0.0, end_s=100.0, objective=0.95)

    assert kept(times < 0.0) == pytest.approx(60.0, abs=5.0)
    flags = (times >= 20.0) & (times < 60.0)
    assert kept(flags) == pytest.approx(20.0, abs=5.0)
    assert Answers(times, recalls, flags).flagged(0.0, 100.0) == pytest.approx(400, abs=1)
    assert kept(flags & (np.arange(1_000) % 2 == 0)) == pytest.approx(60.0, abs=5.0), "every answer"


def test_the_picture_of_nothing_published_has_the_truth_only() -> None:
    panel = panel_of("new", answers((0.0, 5.0, 0.9)), [], phases=[("plain", 0.0)], end_s=5.0)
    assert [len(one.points) for one in panel.lines] == [1, 0, 0, 0]


def test_the_picture_has_what_was_true_and_what_was_said() -> None:
    known = answers((0.0, 60.0, 0.9), (60.0, 100.0, 0.7))
    said = windows_of(
        [
            published(61, MET, estimate(0.9, begin_s=0, end_s=60)),
            published(95, MISSED, estimate(0.8, begin_s=40, end_s=94)),
        ]
    )
    panel = panel_of("steady", known, said, phases=[("plain", 0.0), ("negated", 60.0)], end_s=100.0)
    true, said_line, low, high = panel.lines
    assert true.points[0] == (0.0, pytest.approx(0.9))
    assert true.points[-1] == (90.0, pytest.approx(0.7))
    assert said_line.points == ((61, 0.9), (95, 0.9), (95, 0.8), (100.0, 0.8))
    assert low.points[0][1] < said_line.points[0][1] < high.points[0][1]
    assert "negated from 60 s" in panel.note
    ElementTree.fromstring(draw([panel]))


# ------------------------------------------------------------------------------------ conditions


def test_there_are_enough_conditions_and_half_of_them_are_for_reports() -> None:
    assert len(CONDITIONS) == len(BY_NAME) >= 24
    sets = [one.set_name for one in CONDITIONS]
    assert sets.count(TUNE) == sets.count(REPORT)


def test_every_condition_asks_what_its_data_has() -> None:
    dataset = noise(600)
    planted = {name: plant(name, dataset) for name in DATA}
    for condition in CONDITIONS:
        data = planted[condition.data]
        for phase in condition.phases:
            assert not phase.shares_end or len(phase.shares_end) == len(phase.asks)
            for ask in phase.asks:
                pool = data.pools[ask.pool]
                assert len(pool) > 0
                assert pool.shape[1] == data.vectors.shape[1]
                assert pool.dtype == data.vectors.dtype == np.float32
    wide = planted["blind"].vectors
    assert wide[:, -1].std() > 100 * wide[:, :-1].std()
    assert not planted["blind"].pools[PLAIN][:, -1].any()
    _, counts = np.unique(planted["groups"].vectors, axis=0, return_counts=True)
    assert counts.max() >= 20
    outside = planted["split"].pools[OUTSIDE]
    assert not (outside[:, np.newaxis] == planted["split"].vectors).all(axis=2).any()


def test_conditions_are_chosen_by_name_and_set() -> None:
    _, own = parse(["--conditions", "steady,k-1", "--rate", "20"])
    assert [one.name for one in own.conditions] == ["steady", "k-1"]
    assert own.rate == 20
    options, own = parse(["--set", "report", "--rows", "700", "--at-once", "3"])
    assert {one.set_name for one in own.conditions} == {REPORT}
    assert (options.limit, own.at_once) == (700, 3)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--conditions", "moon"],
        ["--rate", "0"],
        ["--rows", "0"],
        ["--intervals", "60,0"],
        ["--any-commit"],
        ["--conditions", "k-1", "--set", "tune"],
    ],
)
def test_bad_options_end_with_a_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_list_names_every_condition(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(["--list"])
    assert not ended.value.code
    printed = capsys.readouterr().out
    assert [one.split()[0] for one in printed.splitlines()] == list(BY_NAME)


def row(window: int | None = None, **changed: object) -> Row:
    usual = {
        "condition": "steady", "window": window, "contained": True, "contained_weighted": True,
        "interval_s": 60.0, "apart": True,
        "low": 0.95, "high": 0.98, "queries": 256, "met_while_below_s": 0.0, "fell": False,
        "seconds_to_notice": None, "seconds_to_objective": 0.0, "kept": True, "late_ms": 9.0,
    }  # fmt: skip
    return {**usual, **changed}


@pytest.mark.parametrize(
    ("window", "changed", "words"),
    [
        (0, {"contained": False}, "contains the truth"),
        (0, {"high": 1.0, "low": 0.94}, "wide"),
        (None, {"met_while_below_s": 2.0}, "never met"),
        (None, {"fell": True, "seconds_to_notice": 31.0}, "noticed"),
        (None, {"fell": True}, "noticed"),
        (None, {"seconds_to_objective": 61.0}, "kept"),
        (None, {"seconds_to_objective": None}, "kept"),
        (None, {"late_ms": 2_000.0}, "answers of each phase came within"),
    ],
)
def test_each_requirement_can_fail(
    window: int | None, changed: dict[str, object], words: str
) -> None:
    rows = [row(0), row(None)]
    assert all(one.holds for one in requirements(rows, names=["steady"]))
    assert not requirements(rows, names=["steady", "moon"])[0].holds
    short = row(None, seconds_to_objective=None, kept=None)
    assert all(one.holds for one in requirements([*rows, short])), "too short to be judged"
    failed = [one.name for one in requirements([*rows, row(window, **changed)]) if not one.holds]
    assert len(failed) == 1
    assert words in failed[0]


def test_what_needs_default_settings_is_not_judged_by_other_runs() -> None:
    often = row(None, interval_s=15.0, met_while_below_s=9.0, seconds_to_objective=61.0, fell=True)
    assert all(one.holds for one in requirements([row(0), row(None), often], names=["steady"]))


def test_finished_parts_are_found_by_key_and_commit(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    file = FinishedParts(path)
    key = {"condition": "steady", "rate": 50.0}
    assert file.find(key, commit=None) is None
    file.add(key, commit="a1", result={"rows": [1]})
    file.add(key, commit="b2", result={"rows": [2]})
    with path.open("a") as torn:
        torn.write('{"key": {"condi')
    again = FinishedParts(path)
    again.add({**key, "rate": 20.0}, commit="b2", result={})
    last = FinishedParts(path)
    found = [last.find(key, commit=one) for one in (None, "a1", "b2")]
    assert [one and one["result"]["rows"] for one in found] == [[2], [1], [2]]
    assert last.find({**key, "rate": 20.0}, commit="b2") is not None
    assert last.find(key, commit="c3") is None


# ----------------------------------------------------------------------------------------- whole


@pytest.mark.slow
async def test_a_condition_with_all_that_can_happen_is_run_and_judged() -> None:
    phases = (
        Phase("plain", (Ask(0.5), Ask(0.5, matching=0.3)), hot_rows_s=5),
        Phase("deleted", (Ask(), Ask(0.5, ef=20)), before=Before(deleted=0.1, lost=0.3)),
    )
    own = TruthOptions((Condition("tiny", TUNE, phases),), rate=60.0, at_once=1)
    found: list[Judged] = []
    await run(noise(ROWS), own, seconds=3.0, say=print, ended=found.append)
    (judged,) = found
    rows = judged.rows()
    assert not judged.observed.failures
    assert all(set(KEYS.split()) <= set(one) for one in rows)
    whole = [one for one in rows if one["window"] is None]
    assert [one["phase"] for one in whole] == ["plain", "deleted"]
    assert all(one["queries"] > 0 for one in whole)
    assert all(0.0 < one["true_recall"] <= 1.0 for one in whole)
    assert all(one["cost_ratio"] > 0 for one in whole)
    assert len(requirements(rows, names=["tiny"])) == 7
    ElementTree.fromstring(draw([judged.panel()]))
    line = FinishedParts(None).add({}, commit="", result=result_of(judged))
    assert restored_panel(line["result"]["panel"]) == judged.panel()
    assert line["result"]["rows"] == rows


def test_keys_and_options_are_documented() -> None:
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert not [key for key in KEYS.split() if f"`{key}`" not in manual]
    flags = ("conditions", "set", "rate", "rows", "at-once", "list", "svg", "intervals", "results",
             "any-commit")  # fmt: skip
    assert not [flag for flag in flags if f"`--{flag}" not in manual]
    assert not [name for name in BY_NAME if f"`{name}`" not in manual]
