from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from annheal.index.compiled import Kernels

# Two processes compile or load the kernels.
pytestmark = pytest.mark.timeout(400)

ROOT = Path(__file__).parents[2]
KERNELS = len(dataclasses.fields(Kernels))

SEARCH = """
import sys
from pathlib import Path
import numpy as np
from annheal.index import LiveBitmap, build_hnsw, quantized, start_warm_up, want_walk
from annheal.index.compiled import ready_kernels, walk_ready, warm_up
from annheal.model.collection import IndexSettings, Metric, VectorStorage

assert "numba" not in sys.modules, "importing the package must not import numba"
given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
vectors = np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32)
index = build_hnsw(vectors, metric=Metric.L2, settings=IndexSettings(), threads=1)
few = LiveBitmap.from_rows(np.arange(100), rows=300)
early = index.search_matching(vectors[:2], matching=few, k=3)
thread = start_warm_up(cache=given)
result = index.walk_filtered(vectors[:2], k=3, ef=20, matching=few)
thread.join()
assert (early[1] == index.search_matching(vectors[:2], matching=few, k=3)[1]).all()
assert ready_kernels() is not None and warm_up().took_s == 0.0
assert not walk_ready(VectorStorage.INT8) and not walk_ready(VectorStorage.FP16)
for name in sys.argv[2:]:
    want_walk(VectorStorage(name))
    lossy = quantized(index, storage=VectorStorage(name))
    lossy.walk_filtered(vectors[:2], k=3, ef=20, matching=few)
    assert walk_ready(VectorStorage(name))
print(result.rows.tolist())
"""


def run(tmp_path: Path, *arguments: str, **environment: str) -> str:
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")
    }
    done = subprocess.run(
        [sys.executable, "-c", SEARCH, *arguments],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=190,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_second_process_reads_the_cache_of_the_first(tmp_path: Path) -> None:
    cache = tmp_path / "data" / "kernels"
    first = run(tmp_path, str(cache))
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
    assert len(list(cache.rglob("*.nbc"))) == KERNELS
    assert run(tmp_path, str(cache)) == first
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")} == written


def test_walks_of_lossy_storage_are_compiled_when_wanted_and_cached(tmp_path: Path) -> None:
    cache = tmp_path / "kernels"
    run(tmp_path, str(cache), "int8")
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")}
    # The others, and the walk over bytes.
    assert len(list(cache.rglob("*.nbc"))) == KERNELS + 1
    run(tmp_path, str(cache), "int8")
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.nb?")} == written
