"""Writes tests/golden/wal-v2: run once, when format 2 was fixed. Never run it again.

The files stay as they are for ever: every later version of Annheal has to read them.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from annheal.model.records import ModelVectors
from annheal.shards.wal import DeleteEntry, UpsertEntry, WalObject, encode_wal_object
from tests.support.shards import record_batch

GOLDEN = Path(__file__).parent / "wal-v2"
WRITER = bytes(range(16))


def golden_objects() -> dict[str, WalObject]:
    new = np.arange(9, dtype=np.float32).reshape(3, 3)
    new[1] = np.nan
    both = replace(
        record_batch(["a", "b\u00e9", "c"], version=7),
        model="old",
        further=(ModelVectors("new \u00e9", new),),
    )
    entries = (
        UpsertEntry(41, both),
        DeleteEntry(44, pa.array(["a", "nobody"], type=pa.string())),
        UpsertEntry(45, replace(record_batch(["a"], version=8), model="new \u00e9")),
    )
    return {"group.wal": WalObject(2, 1, WRITER, 45, entries)}


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, wal_object in golden_objects().items():
        path = GOLDEN / name
        if path.exists():
            sys.exit(f"{path} exists and must not change")
        path.write_bytes(encode_wal_object(wal_object))


if __name__ == "__main__":
    main()
