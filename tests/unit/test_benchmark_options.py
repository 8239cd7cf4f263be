"""The options that all benchmarks share, the data they read, and the JSON they write."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets.loading import recall
from benchmarks.harness.callers import Round, figures_of, run_tasks
from benchmarks.harness.dataset import Dataset, load_dataset
from benchmarks.harness.options import Options, parse_options
from benchmarks.harness.report import Report, environment

ROWS, DIMENSION = 60, 8


@pytest.fixture
def files(tmp_path: Path) -> Path:
    rng = np.random.default_rng(7)
    np.save(tmp_path / "base.npy", rng.normal(size=(ROWS, DIMENSION)).astype(np.float16))
    np.save(tmp_path / "queries.npy", rng.normal(size=(5, DIMENSION)).astype(np.float32))
    meta = pa.table(
        {
            "id": [f"row-{row}" for row in range(ROWS)],
            "year": pa.array([2000 + row for row in range(ROWS)], type=pa.int32()),
            "kind": ["even" if row % 2 == 0 else "odd" for row in range(ROWS)],
            "weight": [float(row) for row in range(ROWS)],
            "vector": [[0.0] for _ in range(ROWS)],
        }
    )
    pq.write_table(meta, tmp_path / "meta.parquet")
    return tmp_path


def all_files(folder: Path) -> list[str]:
    return [
        *("--base", str(folder / "base.npy")),
        *("--meta", str(folder / "meta.parquet")),
        *("--queries", str(folder / "queries.npy")),
    ]


def test_files_given_by_anyone_become_a_dataset(files: Path) -> None:
    dataset = load_dataset(parse_options([*all_files(files), "--limit", "40"]))
    assert (dataset.rows, dataset.dimension, len(dataset.queries)) == (40, DIMENSION, 5)
    assert dataset.ids[:2] == ["row-0", "row-1"]
    assert dataset.schema == {"year": "int64", "kind": "keyword", "weight": "float64"}
    assert len(dataset.attributes) == 40
    assert dataset.payloads is None
    assert dataset.vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(dataset.vectors, axis=1), 1.0, atol=1e-6)


def test_without_queries_some_rows_are_held_out(files: Path) -> None:
    dataset = load_dataset(parse_options(["--base", str(files / "base.npy")]))
    assert (dataset.rows, len(dataset.queries)) == (54, 6)
    assert dataset.ids[0] == "row:00000000"
    assert dataset.schema == {}
    best = dataset.vectors @ dataset.queries.T
    assert best.max() < 0.999999, "a query is among the rows"


def test_the_samples_are_the_default() -> None:
    options = parse_options(["--limit", "500"])
    dataset = load_dataset(options)
    assert options.on_samples
    assert (dataset.rows, dataset.dimension, len(dataset.queries)) == (500, 384, 500)
    assert {"ecosystem", "year", "month", "rank"} <= dataset.schema.keys()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--limit", "0"],
        ["--repeats", "-1"],
        ["--seconds", "nan"],
        ["--callers", "1,x"],
        ["--modes", "embedded,moon"],
        ["--base", "/nowhere.npy"],
        ["--queries", "/nowhere.npy"],
        ["--unknown"],
    ],
)
def test_bad_options_end_with_a_message(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_options(arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_metadata_of_another_length_is_refused(files: Path) -> None:
    pq.write_table(pa.table({"year": [1, 2]}), files / "meta.parquet")
    with pytest.raises(ValueError, match="2 rows of metadata for 60 vectors"):
        load_dataset(parse_options(all_files(files)))


def test_the_report_is_json_with_the_facts_of_the_machine(files: Path) -> None:
    options = parse_options([*all_files(files), "--json", str(files)])
    report = Report("search", options, load_dataset(options))
    report.add(system="faiss", qps=12.5)
    path = report.write()
    assert path == files / "search.json"
    document = json.loads(path.read_text())
    assert document["rows"] == [{"system": "faiss", "qps": 12.5}]
    facts = document["environment"]
    moving = {"at": facts["at"], "load_average": facts["load_average"]}
    assert facts == environment(report) | moving
    assert facts["cpu_cores"] >= 1
    assert facts["memory_bytes"] > 1 << 20
    assert facts["packages"]["numpy"] == np.__version__
    assert (facts["rows"], facts["dimension"]) == (ROWS, DIMENSION)


def test_every_key_of_the_environment_is_documented(files: Path) -> None:
    options = parse_options(all_files(files))
    facts = environment(Report("search", options, load_dataset(options)))
    manual = (Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md").read_text()
    missing = [key for key in facts if f"`{key}`" not in manual]
    assert not missing
    flags = [field.name.replace("_", "-") for field in dataclasses.fields(Options)]
    assert not [flag for flag in flags if f"`--{flag}" not in manual]


def test_truth_and_recall_agree_with_a_plain_product(files: Path) -> None:
    dataset: Dataset = load_dataset(parse_options(all_files(files)))
    truth = dataset.truth(3)
    expected = np.argsort(-(dataset.queries @ dataset.vectors.T), axis=1)[:, :3]
    np.testing.assert_array_equal(truth, expected)
    found = [[dataset.ids[row] for row in rows] for rows in truth]
    assert recall(found, truth, dataset.ids) == 1.0
    found[0][0] = "somebody-else"
    assert recall(found, truth, dataset.ids) == pytest.approx(14 / 15)


def test_figures_are_medians_over_rounds() -> None:
    rounds = [Round(10.0, 1.0, 2.0, 3.0), Round(30.0, 3.0, 4.0, 5.0), Round(20.0, 2.0, 9.0, 9.0)]
    figures = figures_of(rounds)
    assert (figures.calls_per_s, figures.calls_per_s_min, figures.calls_per_s_max) == (20, 10, 30)
    assert (figures.p50_ms, figures.p95_ms, figures.p99_ms) == (2, 4, 5)


async def test_callers_ask_again_until_the_round_ends() -> None:
    asked: list[int] = []

    async def call(number: int) -> None:
        asked.append(number)
        await asyncio.sleep(0)
        if number == 3:
            raise RuntimeError("a failed call must not be counted as an answer")

    with pytest.raises(ExceptionGroup):
        await run_tasks(call, callers=2, seconds=30.0)
    assert sorted(asked)[:4] == [0, 1, 2, 3]
