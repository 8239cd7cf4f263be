"""The migration benchmark on small data: its rows, and what the manual says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from annheal.embedding.bridge.ways import Join
from benchmarks import migration
from benchmarks.harness.options import REPOSITORY

pytestmark = pytest.mark.timeout(400)

KEYS = (
    "data migrated_share query join recall_vs_new_truth recall_vs_ideal_join ideal_recall"
    " overlap_old p50_ms p99_ms"
)


def test_rows_have_the_documented_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    old = rng.standard_normal((620, 6)).astype(np.float32)
    new = old @ rng.standard_normal((6, 4)).astype(np.float32)
    arguments = ["--json", str(tmp_path), "--k", "5"]
    for name, rows in (
        ("base", old[20:]),
        ("new", new[20:]),
        ("queries-old", old[:20]),
        ("queries-new", new[:20]),
    ):
        np.save(tmp_path / f"{name}.npy", rows)
        arguments += [f"--{name}", str(tmp_path / f"{name}.npy")]
    monkeypatch.setattr(migration, "SHARES", (0.0, 0.8, 1.0))
    migration.main(arguments)
    rows = json.loads((tmp_path / "migration.json").read_text())["rows"]
    for row in rows:
        assert sorted(row) == sorted(KEYS.split())
        assert 0 <= row["recall_vs_new_truth"] <= row["ideal_recall"] <= 1
    both = {row["join"]: row for row in rows if row["query"] == "both" and row["migrated_share"]}
    assert {*Join} <= set(both)
    whole = [row for row in rows if row["migrated_share"] == 1.0 and row["query"] != "old"]
    assert {row["recall_vs_new_truth"] for row in whole} == {1.0}
    nothing = [row for row in rows if row["migrated_share"] == 0.0]
    assert {row["query"]: row["overlap_old"] for row in nothing} == {"both": 1, "old": 1, "new": 0}
    manual = (REPOSITORY / "docs" / "benchmarks.md").read_text()
    assert not [key for key in KEYS.split() if f"`{key}`" not in manual]


def test_half_of_the_files_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        migration.main(["--base", "old.npy"])
    assert "--queries-new, or none of them" in capsys.readouterr().err
