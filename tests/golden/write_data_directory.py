"""Writes tests/golden/data-directory.tar.xz: run once with the code of commit 57c62f2. Never again.

    python -m cli up --data-dir DIR --port 7799 &
    python tests/golden/write_data_directory.py 127.0.0.1:7799

Then the server is killed (SIGKILL: the last rows are in the log alone), and DIR packed:

    tar -cJf tests/golden/data-directory.tar.xz --exclude kernels --exclude scratch -C DIR .

Every later version of Annheal has to start on it; `tests/integration/test_old_data.py` does.
"""

from __future__ import annotations

import datetime as dt
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from annheal import Client

DIMENSION = 16
ROWS = 3_000
REPLACED = range(0, ROWS, 10)
"""Rows that were written twice, before and after a compaction."""
DELETED = range(5, ROWS, 20)
LATE = range(ROWS, ROWS + 100)
"""Rows that only the log holds."""
SCHEMA = {
    "number": "int64",
    "real": "float64",
    "flag": "bool",
    "word": "keyword",
    "words": "keyword_list",
    "moment": "timestamp",
}
COLLECTIONS: dict[str, dict[str, Any]] = {
    "plain": {"metric": "cosine", "shard_count": 2},
    "bytes": {"metric": "l2", "settings": {"storage": "int8", "recall_objective": 0.9}},
    "halves": {"metric": "inner_product", "settings": {"storage": "fp16"}},
}


def record_id(row: int) -> str:
    return f"id-{row:05d}"


def vectors_of(rows: list[int], *, version: int) -> npt.NDArray[np.float32]:
    """Return (n, 16) float32, multiples of 2 ** -15: equal on every machine."""
    i = np.array(rows, dtype=np.uint64)[:, None] + np.uint64(7 + 100_003 * version)
    j = np.arange(1, DIMENSION + 1, dtype=np.uint64)[None, :]
    mixed = (i * np.uint64(2_654_435_761) * j + (i * i) * np.uint64(40_503) + j) % np.uint64(65_521)
    mixed = (mixed * mixed + i * j) % np.uint64(65_521)
    return (mixed.astype(np.float32) - np.float32(32_768)) / np.float32(32_768)


def attributes_of(row: int, *, version: int) -> dict[str, Any]:
    if row % 7 == 3:
        return {}
    return {
        "number": row * 10**12 + version,
        "real": row / 64,
        "flag": row % 2 == 0,
        "word": f"w{row % 13}",
        "words": [f"a{row % 3}", f"b{row % 5}"],
        "moment": dt.datetime(2020, 1, 1, tzinfo=dt.UTC) + dt.timedelta(hours=row, microseconds=1),
    }


def payload_of(row: int, *, version: int) -> Any:
    return None if row % 5 == 4 else {"row": row, "text": "grün\n", "version": version}


def write(client: Client, collection: str, rows: list[int], *, version: int) -> None:
    attributes = [attributes_of(row, version=version) for row in rows]
    client.upsert(
        collection,
        ids=[record_id(row) for row in rows],
        vectors=vectors_of(rows, version=version),
        attributes={name: [one.get(name) for one in attributes] for name in SCHEMA},
        payloads=[payload_of(row, version=version) for row in rows],
    )


def main(address: str) -> None:
    with Client(address) as client:
        for name, described in COLLECTIONS.items():
            client.create_collection(name, DIMENSION, attributes=SCHEMA, **described)
            for start in range(0, ROWS, 1_000):
                write(client, name, list(range(start, start + 1_000)), version=0)
                client.flush(name)
            client.compact(name, full=True)
            write(client, name, list(REPLACED), version=1)
            client.delete(name, ids=[record_id(row) for row in DELETED])
            client.flush(name)
            write(client, name, list(LATE), version=0)
            client.search(name, vector=vectors_of([1], version=0)[0], k=5)


if __name__ == "__main__":
    main(sys.argv[1])
