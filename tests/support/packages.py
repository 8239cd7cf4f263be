"""The 10,000 real packages of `samples/`, as a client loads them and as brute force sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

SAMPLES = Path(__file__).resolve().parents[2] / "samples"
VECTOR_COLUMN = "minilm_l6"
SCHEMA = {"ecosystem": "keyword", "year": "int64", "month": "keyword", "rank": "int64"}
SCORE_TIE = 2e-6


@dataclass(frozen=True, slots=True)
class Packages:
    """`vectors` are (n, d) float32 of unit length, in the order of `ids`."""

    ids: list[str]
    vectors: npt.NDArray[np.float32]
    attributes: pa.Table
    payloads: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def column(self, name: str) -> list[Any]:
        """Return the values of one attribute."""
        values: list[Any] = self.attributes.column(name).to_pylist()
        return values

    def scores(self, queries: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the cosine similarity of every query with every package, (q, n)."""
        found: npt.NDArray[np.float32] = queries @ self.vectors.T
        return found


@cache
def load_packages(name: str = "packages-10k", *, rows: int | None = None) -> Packages:
    """Read `samples/<name>.parquet`, its first `rows` rows when given."""
    table = pq.read_table(SAMPLES / f"{name}.parquet")
    if rows is not None:
        table = table.slice(0, rows)
    vectors = np.array(table.column(VECTOR_COLUMN).to_pylist(), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Packages(
        ids=[str(one) for one in table.column("id").to_pylist()],
        vectors=np.ascontiguousarray(vectors),
        attributes=table.select(list(SCHEMA)),
        payloads=[
            {"name": row["name"], "summary": row["summary"]}
            for row in table.select(["name", "summary"]).to_pylist()
        ],
    )


def assert_same_neighbours(
    ids: list[str],
    scores: npt.NDArray[np.float32],
    truth: npt.NDArray[np.float32],
    *,
    names: list[str],
    k: int,
) -> None:
    """Assert that the hits are the k best by `truth` (n,); ids that tie may change places."""
    order = np.argsort(-truth, kind="stable")[:k]
    np.testing.assert_allclose(scores, truth[order], atol=1e-5)
    rows = {name: row for row, name in enumerate(names)}
    assert len(set(ids)) == len(ids) == k
    threshold = truth[order[-1]]
    for record_id in ids:
        assert truth[rows[record_id]] >= threshold - SCORE_TIE, f"{record_id} is no neighbour"


def recall(found: list[list[str]], truth: npt.NDArray[np.float32], *, names: list[str]) -> float:
    """Return recall@k of `found` against the scores `truth` (q, n); ties count as found."""
    rows = {name: row for row, name in enumerate(names)}
    hits = total = 0
    for ids, scores in zip(found, truth, strict=True):
        k = len(ids)
        threshold = np.partition(scores, -k)[-k]
        hits += sum(scores[rows[one]] >= threshold - SCORE_TIE for one in ids)
        total += k
    return hits / total
