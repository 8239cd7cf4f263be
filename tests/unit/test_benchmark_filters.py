"""The filter benchmark on small data: its rows, and filters that match what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets.filter_cases import cases_of, columns_of
from benchmarks.filters import measure_case
from benchmarks.harness.dataset import load_dataset
from benchmarks.harness.options import REPOSITORY, parse_options
from benchmarks.systems.node_segment import build_node_segment

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

KEYS = (
    "selectivity kind matches plan recall p50_ms p95_ms ratio_to_unfiltered faiss_selector_recall"
    " faiss_selector_p50_ms exact_p50_ms"
)


def test_rows_have_the_documented_keys_and_nothing_is_missed(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = 3_000
    np.save(tmp_path / "base.npy", rng.standard_normal((rows, 8)).astype(np.float32))
    meta = pa.table(
        {
            "year": pa.array(rng.integers(2000, 2020, rows), type=pa.int32()),
            "ecosystem": pa.array(rng.choice(["a", "b"], rows)),
            "name": [f"{'xyz'[row % 3]}-{row}" for row in range(rows)],
        }
    )
    pq.write_table(meta, tmp_path / "meta.parquet")
    options = parse_options(
        [
            *("--base", str(tmp_path / "base.npy")),
            *("--meta", str(tmp_path / "meta.parquet")),
            *("--repeats", "1"),
        ]
    )
    dataset = load_dataset(options)
    queries = np.ascontiguousarray(dataset.queries[:30])
    columns = columns_of(dataset, queries)
    node = build_node_segment(dataset, columns, directory=tmp_path, threads=1)
    cases = list(cases_of(columns, queries))
    assert {"none", "random", "far", "year", "ecosystem", "prefix"} == {c.kind for c in cases}
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    for case in cases[::3]:
        row = measure_case(node, case, options)
        assert list(row) == KEYS.split()
        assert row["recall"] >= 0.9, row
        assert 0 < row["p50_ms"] <= row["p95_ms"]
    assert not [key for key in KEYS.split() if f"`{key}`" not in manual]
