"""Writes tests/golden/segment-v3: run once, when format 3 was fixed. Never run it again.

The files stay as they are for ever: every later version of Annheal has to open them. A change of
the format gets a new version, a new script and a new directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from annheal.index import build_hnsw, quantized
from annheal.model.collection import IndexSettings, VectorStorage
from annheal.segment import BuildInfo, RecallPoint
from annheal.segment.meta import FORMAT_VERSION
from tests.support.segments import MODEL, sample_rows, write_sample

GOLDEN = Path(__file__).parent / "segment-v3"
ROWS = 150
VERSION = 3


def main() -> None:
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} exists and must not change")
    if FORMAT_VERSION != VERSION:
        sys.exit(f"this code writes format {FORMAT_VERSION}")
    for storage in (VectorStorage.FP16, VectorStorage.INT8):
        rows = sample_rows(ROWS)
        settings = IndexSettings()
        graph = build_hnsw(rows.vectors, metric=MODEL.metric, settings=settings, threads=1)
        directory = GOLDEN / storage.value
        entry = write_sample(
            directory,
            segment_id=f"golden-v3-{storage}",
            rows=rows,
            index=quantized(graph, storage=storage),
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
