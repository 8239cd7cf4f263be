"""Writes tests/golden/segment-v4: run once, when format 4 was fixed. Never run it again.

The files stay as they are for ever: every later version of Annheal has to open them. A change of
the format gets a new version, a new script and a new directory.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from annheal.index import add_copies, build_hnsw, quantized
from annheal.model.collection import IndexSettings, VectorStorage
from annheal.segment import BuildInfo, RecallPoint
from annheal.segment.meta import FORMAT_VERSION
from tests.support.segments import MODEL, sample_rows, write_sample

GOLDEN = Path(__file__).parent / "segment-v4"
ROWS, GRAPH_ROWS = 100, 90
ORIGINALS = np.array([3, 3, 3, 3, 7, 20, 20, 21, 89, 89])
VERSION = 4


def main() -> None:
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} exists and must not change")
    if FORMAT_VERSION != VERSION:
        sys.exit(f"this code writes format {FORMAT_VERSION}")
    rows = sample_rows(ROWS)
    vectors = rows.vectors.copy()
    vectors[GRAPH_ROWS:] = vectors[ORIGINALS]
    rows = replace(rows, vectors=vectors)
    settings = IndexSettings()
    for storage in (VectorStorage.FLOAT32, VectorStorage.INT8):
        graph = build_hnsw(vectors[:GRAPH_ROWS], metric=MODEL.metric, settings=settings, threads=1)
        index = add_copies(graph, vectors[GRAPH_ROWS:], ORIGINALS)
        if storage is not VectorStorage.FLOAT32:
            index = quantized(index, storage=storage)
        directory = GOLDEN / storage.value
        entry = write_sample(
            directory,
            segment_id=f"golden-v4-{storage}",
            rows=rows,
            index=index,
            build=BuildInfo(
                settings=settings,
                generation=2,
                sources=("seg-a", "seg-b"),
                recall_curve=(RecallPoint(10, 16, 0.98),),
            ),
        )
        (directory / "entry.json").write_bytes(msgspec.json.encode(entry))


if __name__ == "__main__":
    main()
