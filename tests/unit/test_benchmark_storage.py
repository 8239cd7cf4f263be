"""The storage benchmark on small data: its rows, and what the manual says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annheal.model.collection import VectorStorage
from benchmarks.harness.dataset import load_dataset
from benchmarks.harness.options import REPOSITORY, parse_options
from benchmarks.harness.report import Report
from benchmarks.storage import build_all, measure_share

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

KEYS = (
    "storage matches_percent plan ef recall p50_ms p95_ms ratio_to_float32 index_bytes_per_row"
    " raw_bytes_per_row resident_bytes_per_row"
)


def test_rows_have_the_documented_keys_and_sizes_fall(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((3_000, 16)).astype(np.float32)
    np.save(tmp_path / "base.npy", vectors)
    options = parse_options(["--base", str(tmp_path / "base.npy"), "--repeats", "1"])
    dataset = load_dataset(options)
    queries = np.ascontiguousarray(dataset.queries[:20])
    report = Report("storage", options, dataset)
    stored = build_all(dataset, queries, tmp_path / "segments")
    measure_share(report, stored, queries, 1.0)
    measure_share(report, stored, queries, 0.2)
    assert [row["storage"] for row in report.rows] == [*VectorStorage, *VectorStorage]
    for row in report.rows:
        assert sorted(row) == sorted(KEYS.split())
        assert row["recall"] >= 0.9, row
        lossy = row["storage"] != VectorStorage.FLOAT32
        assert row["raw_bytes_per_row"] == pytest.approx(64 if lossy else 0, abs=0.1)
        assert row["resident_bytes_per_row"] >= row["index_bytes_per_row"]
    sizes = [row["index_bytes_per_row"] for row in report.rows[:3]]
    assert sizes[0] - sizes[1] == pytest.approx(32, abs=1)
    assert sizes[1] - sizes[2] == pytest.approx(16, abs=1)
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert not [key for key in KEYS.split() if f"`{key}`" not in manual]
