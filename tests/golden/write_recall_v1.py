"""Writes tests/golden/recall-v1: run once, with the software of 0.1. Never run it again.

The file stays as it is for ever: every later version of Annheal has to read it. A change of the
format that this file's reader cannot read gets a new version, a new script and a new directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from annheal.model.filter import And, Comparison, ComparisonOp, Exists, Membership, Not, Or, Prefix
from annheal.model.measures.recall import (
    RecallEstimate,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
)
from annheal.recall import EfMemory, LoggedQuery, RecallMemory, encode_memory

GOLDEN = Path(__file__).parent / "recall-v1"


def golden_memory() -> RecallMemory:
    band = SelectivityBand.FROM_10
    measured = RecallEstimate(10, 0.9, 0.8, 1.0, 100, 1_700_000_000.0, {"graph": 100})
    filters = (
        None,
        Comparison("year", ComparisonOp.GE, 2024),
        And((Prefix("name", "a'b\\"), Not(Exists("année")))),
        Or((Membership("x", (1.5, 2.5)), Comparison("ok", ComparisonOp.EQ, True))),
    )
    return RecallMemory(
        "m",
        12.5,
        ef=(EfMemory("s1", band, 2.0, 1.4, 7, rebuild=True),),
        segments=(SegmentRecall(0, "s1", "warm", "m", band, measured, 64, 1_024, True),),
        bands=(ShardBandRecall(0, band, measured, 1.0, 1_000),),
        queries=tuple(LoggedQuery(10, band, 3.0, one) for one in filters),
        vectors=np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32),
    )


def main() -> None:
    path = GOLDEN / "memory.recall"
    if path.exists():
        sys.exit(f"{path} exists and must not change")
    GOLDEN.mkdir(exist_ok=True)
    path.write_bytes(encode_memory(golden_memory()))


if __name__ == "__main__":
    main()
