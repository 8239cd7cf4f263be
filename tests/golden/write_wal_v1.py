"""Writes tests/golden/wal-v1: run once, when format 1 was fixed. Never run it again.

The files stay as they are for ever: every later version of Annheal has to read them. A change of
the format gets a new version, a new script and a new directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

from annheal.shards.wal import DeleteEntry, UpsertEntry, WalObject, encode_wal_object
from tests.support.shards import record_batch

GOLDEN = Path(__file__).parent / "wal-v1"
WRITER = bytes(range(16))


def golden_objects() -> dict[str, WalObject]:
    entries = (
        UpsertEntry(41, record_batch(["a", "bé", "c"], version=7)),
        DeleteEntry(44, pa.array(["a", "nobody"], type=pa.string())),
        UpsertEntry(45, record_batch(["a"], version=8)),
        DeleteEntry(46, pa.array([], type=pa.string())),
    )
    return {
        "fence.wal": WalObject(2, 0, WRITER, 40),
        "group.wal": WalObject(2, 1, WRITER, 46, entries),
    }


def main() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name, wal_object in golden_objects().items():
        path = GOLDEN / name
        if path.exists():
            sys.exit(f"{path} exists and must not change")
        path.write_bytes(encode_wal_object(wal_object))


if __name__ == "__main__":
    main()
