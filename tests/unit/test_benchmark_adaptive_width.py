"""The benchmark of adaptive width on small data: its rows, and what the manual says of them."""

from __future__ import annotations

import numpy as np
import pytest

from annheal.compactor.build import reaches
from annheal.compactor.build.calibrate import measure_recall
from annheal.index import build_hnsw, warm_up
from annheal.model.collection import IndexSettings, Metric
from benchmarks.harness.options import REPOSITORY, parse_options
from benchmarks.harness.synthetic import clustered_vectors
from benchmarks.impact.adaptive_width import TARGETS, conditions, first_ef, measure

# The first test of a machine compiles the kernels.
pytestmark = pytest.mark.timeout(400)

KEYS = (
    "condition target rule uniform_ef ef recall uniform_recall visited_ratio below uniform_below"
    " p50_ratio p95_ratio"
)


def test_rows_have_the_documented_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    warm_up()
    monkeypatch.setattr(reaches, "has_bands", lambda rows: True)
    vectors, queries = clustered_vectors(4_300, dimension=16, queries=200)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    settings = IndexSettings(m=6, ef_construction=30)
    index = build_hnsw(unit[:4_000], metric=Metric.COSINE, settings=settings, threads=1)
    curve = measure_recall(index, np.ascontiguousarray(unit[4_000:]), k=10)
    options = parse_options(["--repeats", "1"])
    rows = list(measure(index, curve, asked, options))
    assert len(rows) == 3 * len(TARGETS) * 3
    for row in rows:
        assert sorted(row) == sorted(KEYS.split())
        # Chosen by the other half of the queries.
        if row["condition"] == "plain" and row["rule"] == "equal recall":
            assert row["recall"] == pytest.approx(row["uniform_recall"], abs=0.03)
        if row["condition"] == "plain" and row["rule"] == "equal cost":
            assert row["visited_ratio"] == pytest.approx(1.0, abs=0.15)


def test_each_half_has_its_share_of_hard_queries() -> None:
    queries = np.ones((400, 2), dtype=np.float32)
    mixed = conditions(queries)["5 % negated"]
    assert [(half < 0).mean() for half in (mixed[::2], mixed[1::2])] == [0.05, 0.05]


def test_the_manual_explains_every_key() -> None:
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    section = manual.split("### Keys of adaptive_width")[1].split("###")[0]
    assert all(f"`{key}`" in section for key in KEYS.split())


def test_the_first_ef_is_found() -> None:
    assert first_ef(lambda ef: ef >= 37, low=16) == 37
    assert first_ef(lambda ef: True, low=16) == 16
    assert first_ef(lambda ef: False, low=16, high=64) == 64
