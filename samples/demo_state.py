"""What the demonstration knows to be true: every acknowledged record, every acknowledged delete."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annheal import Client

FOLDER = Path(__file__).resolve().parent
VECTOR_COLUMN = "minilm_l6"
ATTRIBUTES = {"ecosystem": "keyword", "year": "int64", "month": "keyword", "rank": "int64"}
PAYLOAD = ("name", "summary", "version")
COLLECTION = "packages"
K = 10
ROUNDS = 3
GHOST_QUERIES = 500
"""Deleted packages whose own vectors are searched for: the hardest test of a delete."""

Float32Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Packages:
    """Rows of a sample file; `vectors` (n, 384) float32, the rest in the same order."""

    ids: list[str]
    vectors: Float32Matrix
    attributes: pa.Table
    payloads: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: npt.NDArray[np.int64], *, revision: int) -> Packages:
        """Return some rows, their payloads marked with a revision."""
        index: pa.Int64Array = pa.array(rows, type=pa.int64())
        return Packages(
            [self.ids[row] for row in rows],
            self.vectors[rows],
            self.attributes.take(index),
            [{**self.payloads[row], "revision": revision} for row in rows],
        )


def load_packages(name: str, *, column: str = VECTOR_COLUMN) -> Packages:
    """Read one of the sample files, with the vectors of one model."""
    table = pq.read_table(FOLDER / name)
    column: Any = table.column(column).combine_chunks()
    vectors = np.asarray(column.flatten()).reshape(len(table), -1).astype(np.float32)
    return Packages(
        [str(name) for name in table.column("id").to_pylist()],
        vectors,
        table.select(list(ATTRIBUTES)),
        table.select(list(PAYLOAD)).to_pylist(),
    )


@dataclass(slots=True)
class Ledger:
    """What the server has acknowledged: id to (revision, vector), and the ids that are gone.

    `unsure` holds ids of calls that were cut off: nobody can know whether they took effect.
    """

    records: dict[str, tuple[int, npt.NDArray[np.float32]]] = field(default_factory=dict)
    deleted: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    unsure: set[str] = field(default_factory=set)

    def upserted(self, packages: Packages) -> None:
        """Note an acknowledged upsert."""
        for number, name in enumerate(packages.ids):
            revision = packages.payloads[number]["revision"]
            self.records[name] = (revision, packages.vectors[number])
            self.deleted.pop(name, None)

    def removed(self, ids: list[str]) -> None:
        """Note an acknowledged delete."""
        for name in ids:
            _, vector = self.records.pop(name)
            self.deleted[name] = vector

    def matrix(self) -> tuple[list[str], Float32Matrix]:
        """Return the ids and vectors that must be there."""
        return list(self.records), np.stack([vector for _, vector in self.records.values()])


@dataclass(frozen=True, slots=True)
class Health:
    """How the index answers at one moment."""

    recall: float
    server_recall: float
    p50_ms: float
    p95_ms: float
    segments: int
    rows: int
    dead_rows: int
    disk_bytes: int


def measure(client: Client, ledger: Ledger, queries: Float32Matrix, *, disk_bytes: int) -> Health:
    """Ask every query alone, one after the other, and compare with all records by brute force.

    Times are medians over `ROUNDS` rounds of all queries.
    """
    ids, vectors = ledger.matrix()
    best = np.argpartition(-(queries @ vectors.T), K, axis=1)[:, :K]
    for query in queries[:20]:
        client.search(COLLECTION, query, k=K)
    times_ms, hits = np.empty((ROUNDS, len(queries))), 0
    for round_times_ms in times_ms:
        for number, query in enumerate(queries):
            before_s = time.perf_counter()
            found = client.search(COLLECTION, query, k=K)
            round_times_ms[number] = (time.perf_counter() - before_s) * 1e3
            hits += len({ids[row] for row in best[number]} & set(found.ids))
    segments = client.segments(COLLECTION).segments
    return Health(
        recall=hits / (best.size * ROUNDS),
        server_recall=client.measure_recall(COLLECTION, k=K).recall,
        p50_ms=float(np.median(np.percentile(times_ms, 50, axis=1))),
        p95_ms=float(np.median(np.percentile(times_ms, 95, axis=1))),
        segments=len(segments),
        rows=sum(segment.rows for segment in segments),
        dead_rows=sum(segment.dead_rows for segment in segments),
        disk_bytes=disk_bytes,
    )


@dataclass(frozen=True, slots=True)
class Audit:
    """What differs between the ledger and the server; all empty when nothing was lost."""

    seen: int
    missing: list[str]
    outdated: list[str]
    unexpected: list[str]
    repeated: list[str]
    ghosts: list[str]


def audit(client: Client, ledger: Ledger, *, model: str | None = None) -> Audit:
    """Read every record and compare; look for deleted ones by scan, by id and by search.

    `model` made the vectors of the ledger, the serving one by default.
    """
    revisions: dict[str, int] = {}
    repeated: list[str] = []
    for page in client.scan(COLLECTION, include="payload"):
        for record in page:
            if record.id in revisions:
                repeated.append(record.id)
            revisions[record.id] = record.payload["revision"]
    sure = {name: held for name, held in ledger.records.items() if name not in ledger.unsure}
    gone = [name for name in ledger.deleted if name not in ledger.unsure]
    ghosts = {name for name in gone if name in revisions}
    ghosts.update(client.get(COLLECTION, gone, include=None).ids)
    sample = gone[-GHOST_QUERIES:]
    for start in range(0, len(sample), 100):
        part = np.stack([ledger.deleted[name] for name in sample[start : start + 100]])
        for ids in client.search_batch(COLLECTION, part, model=model, k=K).ids:
            ghosts.update(set(ids) & set(gone))
    return Audit(
        seen=len(revisions),
        missing=[name for name in sure if name not in revisions],
        outdated=[n for n, (r, _) in sure.items() if n in revisions and revisions[n] != r],
        unexpected=[
            name
            for name in revisions
            if name not in ledger.records and name not in ledger.unsure and name not in ghosts
        ],
        repeated=repeated,
        ghosts=sorted(ghosts),
    )
