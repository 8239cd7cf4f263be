"""Writes tests/golden/segment-v1: run once, when format 1 was fixed. Never run it again.

The files stay as they are for ever: every later version of Annheal has to open them. A change of
the format gets a new version, a new script and a new directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec
import numpy as np

from annheal.index import build_hnsw
from annheal.model.collection import IndexSettings
from annheal.segment import BuildInfo, DeleteVector, RecallPoint, encode_delete_vector
from tests.support.segments import MODEL, sample_rows, write_sample

GOLDEN = Path(__file__).parent / "segment-v1"
ROWS = 20


def main() -> None:
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} exists and must not change")
    settings = IndexSettings()
    rows = sample_rows(ROWS)
    index = build_hnsw(rows.vectors, metric=MODEL.metric, settings=settings, threads=1)
    build = BuildInfo(
        settings=settings,
        generation=2,
        sources=("seg-a", "seg-b"),
        recall_curve=(RecallPoint(10, 16, 0.9), RecallPoint(10, 32, 1.0)),
    )
    entry = write_sample(GOLDEN, segment_id="golden-v1", rows=rows, index=index, build=build)
    deletes = DeleteVector.empty(ROWS).with_dead(np.array([0, 7, 19]))
    (GOLDEN / "deletes.bin").write_bytes(encode_delete_vector(deletes))
    (GOLDEN / "entry.json").write_bytes(msgspec.json.encode(entry))


if __name__ == "__main__":
    main()
