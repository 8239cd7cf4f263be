"""Writes tests/golden/segment-v5 and the vector part in it: run once, when both were fixed.

The files stay as they are for ever: every later version of Annheal has to open them. A change of
a format gets a new version, a new script and a new directory.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from annheal.index import build_hnsw
from annheal.model.collection import IndexSettings, Metric, ModelSpec
from annheal.segment import BuildInfo, RecallPoint
from annheal.segment.meta import FORMAT_VERSION
from annheal.segment.parts.meta import PART_FORMAT_VERSION
from annheal.segment.parts.write import write_part
from tests.support.segments import sample_rows, unit_vectors, write_sample

GOLDEN = Path(__file__).parent / "segment-v5"
ROWS = 60
LACKING = [3, 7, 59]
NEW = ModelSpec("new model", 5, Metric.INNER_PRODUCT)
PART_ROWS = np.array([row for row in range(ROWS - 1, -1, -1) if row % 4])
"""The rows with a vector of the new model, in the order of the part."""


def part_vectors() -> np.ndarray:
    return unit_vectors(len(PART_ROWS), NEW.dimension, seed=5)


def main() -> None:
    if GOLDEN.exists():
        sys.exit(f"{GOLDEN} exists and must not change")
    if (FORMAT_VERSION, PART_FORMAT_VERSION) != (5, 1):
        sys.exit(f"this code writes formats {FORMAT_VERSION} and {PART_FORMAT_VERSION}")
    rows = sample_rows(ROWS)
    vectors = rows.vectors.copy()
    vectors[LACKING] = np.nan
    entry = write_sample(GOLDEN, segment_id="golden-v5", rows=replace(rows, vectors=vectors))
    settings = IndexSettings()
    part = write_part(
        GOLDEN / "golden-part",
        segment_id="golden-v5",
        part_id="golden-part",
        model=NEW,
        index=build_hnsw(part_vectors(), metric=NEW.metric, settings=settings, threads=1),
        rows=PART_ROWS,
        segment_rows=ROWS,
        created_at_s=1_700_000_000.0,
        build=BuildInfo(settings=settings, recall_curve=(RecallPoint(10, 16, 0.98),)),
        skipped={"'text' of its source is missing": 2},
    )
    (GOLDEN / "entry.json").write_bytes(msgspec.json.encode(replace(entry, parts=(part,))))


if __name__ == "__main__":
    main()
