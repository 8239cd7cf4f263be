"""Vectors, ids, attributes, payloads and queries, from the samples or from anyone's files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.harness.options import HALF, SAMPLE_BASE, SAMPLE_QUERIES, Options
from benchmarks.harness.synthetic import clustered_vectors

SAMPLE_VECTORS = "minilm_l6"
QUERIES_HELD_OUT = 1_000
KEYWORDS_DISTINCT_MAX = 1_000
"""A text column with more distinct values is payload, not an attribute."""

Float32Matrix = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Dataset:
    """`vectors` (n, d) and `queries` (q, d) float32 of unit length; the rest has n rows.

    `schema` names the types of `attributes`; `payloads` are JSON texts, None without metadata.
    """

    name: str
    ids: list[str]
    vectors: Float32Matrix
    queries: Float32Matrix
    attributes: pa.Table
    schema: dict[str, str]
    payloads: list[bytes] | None

    @property
    def rows(self) -> int:
        """How many records there are."""
        return len(self.ids)

    @property
    def dimension(self) -> int:
        """Floats per vector."""
        return int(self.vectors.shape[1])

    def truth(self, k: int) -> npt.NDArray[np.int64]:
        """Return the rows of the k best by cosine of every query, (q, k), by comparing all."""
        rows: npt.NDArray[np.int64] = self._exact(k, self.rows)[1]
        return rows

    def best_scores(self, k: int, *, rows: int) -> npt.NDArray[np.float32]:
        """Return the k best cosines of every query, (q, k), among the first `rows` rows."""
        scores: npt.NDArray[np.float32] = self._exact(k, rows)[0]
        return scores

    def _exact(self, k: int, rows: int) -> tuple[Any, Any]:
        exact = faiss.IndexFlatIP(self.dimension)
        exact.add(self.vectors[:rows])
        scores, found = exact.search(self.queries, k)
        return scores, found


def load_dataset(options: Options) -> Dataset:
    """Read what `options` names; raises ValueError when the files do not fit one another."""
    queries: npt.NDArray[Any] | None
    meta: pa.Table | None
    if options.synthetic is not None:
        rows, dimension = options.synthetic
        vectors, queries = clustered_vectors(rows, dimension=dimension, queries=QUERIES_HELD_OUT)
        meta, name = None, f"synthetic {rows:,} x {dimension}"
    elif options.base is None:
        meta = pq.read_table(SAMPLE_BASE)
        vectors = _column(meta, SAMPLE_VECTORS)
        queries = _column(pq.read_table(SAMPLE_QUERIES), SAMPLE_VECTORS)
        name = SAMPLE_BASE.name
    else:
        vectors, name = _matrix(options.base), options.base.name
        meta = pq.read_table(options.meta) if options.meta is not None else None
        queries = _matrix(options.queries) if options.queries is not None else None
    if meta is not None and len(meta) != len(vectors):
        raise ValueError(f"{len(meta)} rows of metadata for {len(vectors)} vectors")
    if queries is None:
        held_out = min(QUERIES_HELD_OUT, len(vectors) // 10)
        vectors, queries = vectors[:-held_out], vectors[-held_out:]
    queries = _from(queries, options)
    rows = min(options.limit or len(vectors), len(vectors))
    meta = meta.slice(0, rows) if meta is not None else None
    ids, attributes, schema, payloads = _columns(meta, rows)
    return Dataset(
        name=name,
        ids=ids,
        vectors=_unit(vectors[:rows]),
        queries=_unit(queries),
        attributes=attributes,
        schema=schema,
        payloads=payloads,
    )


def _from(queries: npt.NDArray[Any], options: Options) -> npt.NDArray[Any]:
    """Return the queries that are asked; raises ValueError when none is left."""
    first = len(queries) // 2 if options.queries_from == HALF else options.queries_from
    if first >= len(queries):
        raise ValueError(f"there are {len(queries)} queries: none is left from {first} on")
    return queries[first:]


def _matrix(path: Path) -> npt.NDArray[Any]:
    matrix: npt.NDArray[Any] = np.load(path, mmap_mode="r")
    if matrix.ndim != 2 or matrix.dtype.kind != "f":
        raise ValueError(
            f"{path}: expected floats of the shape (n, d), not {matrix.dtype} {matrix.shape}"
        )
    return matrix


def _column(table: pa.Table, name: str) -> npt.NDArray[Any]:
    column: Any = table.column(name).combine_chunks()
    return np.asarray(column.flatten()).reshape(len(table), -1)


def _unit(vectors: npt.NDArray[Any]) -> Float32Matrix:
    floats = np.ascontiguousarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(floats, axis=1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError("a vector without length has no direction to compare")
    unit: Float32Matrix = floats / norms
    return unit


def _columns(
    meta: pa.Table | None, rows: int
) -> tuple[list[str], pa.Table, dict[str, str], list[bytes] | None]:
    """Return ids, attributes, their types, and payloads."""
    ids = [f"row:{row:08d}" for row in range(rows)]
    if meta is None:
        return ids, pa.table({}), {}, None
    if "id" in meta.schema.names:
        ids = [str(value) for value in meta.column("id").to_pylist()]
        if len(set(ids)) != len(ids):
            raise ValueError("the column id of the metadata is not unique")
    schema: dict[str, str] = {}
    texts: list[str] = []
    for field in meta.schema:
        kind = _attribute_type(meta, field)
        if field.name == "id" or kind is None:
            continue
        if kind == "payload":
            texts.append(field.name)
        else:
            schema[field.name] = kind
    payloads = [json.dumps(row).encode() for row in meta.select(texts).to_pylist()]
    return ids, meta.select(list(schema)), schema, payloads if texts else None


def _attribute_type(meta: pa.Table, field: pa.Field[Any]) -> str | None:
    kind = field.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        distinct = len(meta.column(field.name).unique())
        return "payload" if distinct > KEYWORDS_DISTINCT_MAX else "keyword"
    if pa.types.is_integer(kind):
        return "int64"
    if pa.types.is_floating(kind):
        return "float64"
    if pa.types.is_boolean(kind):
        return "bool"
    if pa.types.is_timestamp(kind):
        return "timestamp"
    return None
