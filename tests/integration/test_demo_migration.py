"""`make demo-migration` tells the truth, ends with the right code, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from annheal.embedding.onnx_model import load_folder
from annheal.model.texts.spec import Pooling
from samples.demo_migration import SOURCE
from samples.demo_model import prepare_model
from samples.demo_state import Ledger, load_packages
from samples.demo_traffic import faults_of

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_TIMEOUT_S = 600.0
ROWS = "600"


@pytest.mark.slow
@pytest.mark.timeout(DEMO_TIMEOUT_S + 30)
def test_the_migration_holds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = subprocess.run(
        [sys.executable, str(REPOSITORY / "samples" / "demo_migration.py"), "--rows", ROWS],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"},
        timeout=DEMO_TIMEOUT_S,
        check=False,
    )
    assert demo.returncode == 0, demo.stdout
    assert re.search(r"All \d+ checks hold", demo.stdout), demo.stdout
    assert "FAILED" not in demo.stdout
    for part in ("what was measured", "records/s", "the old answers come back exactly", "freed"):
        assert part in demo.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_second_model_makes_the_vectors_of_the_samples(tmp_path: Path) -> None:
    model = load_folder(
        prepare_model(tmp_path), pooling=Pooling.MEAN, normalize=True, tokens_max=128
    )
    packages = load_packages("packages-queries.parquet", column="paraphrase_l3")
    found = model.embed([SOURCE.format_map(payload) for payload in packages.payloads[:40]])
    assert found.dtype == np.float32
    assert (model.dimension, found.shape) == (384, (40, 384))
    assert (np.argmax(found @ packages.vectors.T, axis=1) == np.arange(40)).all()


def test_the_client_notices_every_kind_of_false_answer() -> None:
    packages = load_packages("packages-queries.parquet")
    ledger = Ledger()
    ledger.upserted(packages.take(np.arange(10), revision=1))
    ledger.removed(packages.ids[:1])
    deleted, *live = packages.ids[:10]
    assert faults_of(live, ledger, exactly=set(live)) == {}
    assert faults_of([*live, live[0]], ledger) == {"repeated": 1}
    assert faults_of([*live, deleted], ledger) == {"deleted": 1}
    assert faults_of([*live, "pypi:nothing"], ledger) == {"unknown": 1}
    assert faults_of(live[1:], ledger, exactly=set(live)) == {"missing": 1}
    assert faults_of(live, ledger, exactly=set(live[1:])) == {"beside the filter": 1}
