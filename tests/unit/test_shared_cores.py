"""The scheduler of `make test`: what waits runs beside what computes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.shared_cores import BESIDE_OTHERS, NICE_MAX, ONE_BY_ONE, is_one_by_one

ROOT = Path(__file__).resolve().parents[2]

TEST = """
import os
from pathlib import Path


def test_notes_where_it_runs():
    worker = os.environ["PYTEST_XDIST_WORKER"]
    Path(__file__).with_suffix(".ran").write_text(f"{worker} {os.nice(0)}")


def test_ends():
    pass
"""


def test_listed_files_exist() -> None:
    present = {path.name for folder in ONE_BY_ONE for path in (ROOT / folder).glob("test_*.py")}
    assert present >= BESIDE_OTHERS


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("tests/chaos/test_embedded_crashes.py", True),
        ("tests/integration/test_cluster.py", True),
        ("tests/integration/test_wheel.py", False),
        ("tests/unit/test_lane.py", False),
        ("tests/contract/test_metastore.py", False),
    ],
)
def test_clusters_and_measurements_of_time_run_one_by_one(file: str, expected: bool) -> None:
    assert is_one_by_one(file) is expected


def test_the_first_process_runs_clusters_and_the_others_have_a_low_priority(
    tmp_path: Path,
) -> None:
    files = [f"tests/integration/test_cluster_{n}.py" for n in range(4)]
    files += [f"tests/unit/test_{n}.py" for n in range(8)]
    for file in files:
        path = tmp_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(TEST)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "3", "-p", "tests.support.shared_cores"]
    done = subprocess.run(
        [*command, "--import-mode=importlib", "-p", "no:cacheprovider", "tests"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 passed" in done.stdout
    ran = {file: (tmp_path / file).with_suffix(".ran").read_text().split() for file in files}
    clusters = [place for file, place in ran.items() if is_one_by_one(file)]
    assert {worker for worker, _ in clusters} == {"gw0"}
    assert {int(nice) == NICE_MAX for worker, nice in ran.values() if worker != "gw0"} == {True}
