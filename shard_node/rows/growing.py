"""Growing rows: in memory and in the log, not yet in a segment; searched exactly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.index import best_columns, score_errors, scores_of
from annheal.model.collection import Metric
from annheal.model.records import (
    Float32Matrix,
    ModelVectors,
    Projection,
    RecordBatch,
    RecordSet,
    lacking,
)
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.shards.wal import empty_attributes

_ROWS_INITIAL = 1_024
_numbers = itertools.count()
FULL_AHEAD = 16
"""A segment with this part of the rows that it is sealed at gets room for all of them at once. Room
is memory only once rows are in it; growing by doubling copied 46 MB for each 25 MB of rows."""
_PARTS_MAX = 64
"""Parts of columns before they are joined into one: many single-row writes make many parts."""
SCORES_BYTES_MAX = 1 << 20
"""Bytes of the scores of one block of queries with all rows: 262,144 scores, which take 6 ms of one
core at 384 floats."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Attributes and payloads of consecutive rows, copied from what was received."""

    attributes: pa.RecordBatch
    payloads: pa.BinaryArray

    @property
    def size_bytes(self) -> int:
        """Bytes of both."""
        return self.attributes.nbytes + self.payloads.nbytes


@dataclass(frozen=True, slots=True)
class GrowingView:
    """An immutable view of the first `rows` rows of a growing segment.

    The arrays are shared with the growing segment, which changes no row before `rows`, and replaces
    `dead` instead of changing it.

    Attributes:
        number: the number of the growing segment in this process.
        model: the model that it is read by.
        vectors: (rows or more, d) float32, those of `model`.
        ids: ids of `rows` rows or more.
        newest: the newest row of each id; it may be after the rows of this view.
        sequences: (rows or more,) int64.
        parts: attributes and payloads, in the order of the rows.
        dead: (rows,) bool, None when no row is dead.
        dead_count: dead rows.
        matrices: the vectors of every model that rows have one of, by name; NaN where they do not.
        incomplete: the models that some row has no vector of.
    """

    number: int
    vectors: Float32Matrix
    ids: list[str]
    newest: dict[str, int]
    sequences: npt.NDArray[np.int64]
    parts: tuple[Columns, ...]
    rows: int
    dead: npt.NDArray[np.bool_] | None
    dead_count: int
    model: str = ""
    matrices: Mapping[str, Float32Matrix] = field(default_factory=dict)
    incomplete: frozenset[str] = frozenset()
    _attributes: list[pa.RecordBatch] = field(default_factory=list)

    def of_model(self, model: str) -> GrowingView | None:
        """Return the view in which rows without a vector of `model` are dead; None: all are."""
        vectors = self.matrices.get(model)
        if vectors is None:
            return None
        found = self if model == self.model else replace(self, model=model, vectors=vectors)
        if model not in self.incomplete:
            return found
        return found.with_dead(lacking(vectors[: self.rows]))

    def without_model(self, model: str) -> GrowingView:
        """Return the view in which rows with a vector of `model` are dead."""
        vectors = self.matrices.get(model)
        return self if vectors is None else self.with_dead(~lacking(vectors[: self.rows]))

    def with_dead(self, rows: npt.NDArray[np.bool_]) -> GrowingView:
        """Return the view in which `rows` (rows,) bool are dead too."""
        dead = rows if self.dead is None else self.dead | rows
        return replace(self, dead=dead, dead_count=int(np.count_nonzero(dead)))

    @property
    def memory_bytes(self) -> int:
        """Bytes of the vectors of all models."""
        return sum(self.rows * matrix.shape[1] * 4 for matrix in self.matrices.values())

    @property
    def live_count(self) -> int:
        """Rows that are not dead."""
        return self.rows - self.dead_count

    def live_mask(self) -> npt.NDArray[np.bool_]:
        """Return (rows,) bool, True for live rows."""
        return np.ones(self.rows, dtype=np.bool_) if self.dead is None else ~self.dead

    def attributes(self) -> pa.RecordBatch:
        """Return the attributes of all rows; they are joined at the first call."""
        if not self._attributes:
            self._attributes.append(_joined_attributes(self.parts))
        return self._attributes[0]

    def attributes_from(self, first: int) -> pa.RecordBatch:
        """Return the attributes of the rows from `first` on, which is below `rows`."""
        start, end = self.rows, len(self.parts)
        while start > first:
            end -= 1
            start -= len(self.parts[end].payloads)
        return _joined_attributes(self.parts[end:]).slice(first - start)

    def payloads(self) -> pa.BinaryArray:
        """Return the payloads of all rows."""
        return _joined_payloads(self.parts)

    def take(self, rows: npt.NDArray[np.int64], projection: Projection) -> RecordSet:
        """Return the records of `rows` (n,) int64, with the fields of `projection`."""
        ids = self.ids
        found = [ids[row] for row in rows.tolist()]
        if projection.ids_only:
            return RecordSet(found)
        index = pa.array(rows, type=pa.int64())
        attributes = self.attributes()
        if projection.attributes is not None:
            present = set(attributes.schema.names)
            attributes = attributes.select([n for n in projection.attributes if n in present])
        records = RecordSet(
            found,
            attributes=None if projection.attributes == () else take_rows(attributes, index),
            payloads=self.payloads().take(index) if projection.payload else None,
            vectors=np.ascontiguousarray(self.vectors[rows]) if projection.vector else None,
            versions=self.sequences[rows] if projection.version else None,
        )
        if not (projection.vector and projection.models):
            return records
        first, *further = [
            ModelVectors(model, self.vectors_of(model, rows, dimension=dimension))
            for model, dimension in zip(projection.models, projection.dimensions, strict=True)
        ]
        return replace(records, vectors=first.vectors, model=first.model, further=tuple(further))

    def vectors_of(
        self, model: str, rows: npt.NDArray[np.int64], *, dimension: int
    ) -> Float32Matrix:
        """Return the vectors of a model for `rows`, (n, dimension); NaN for rows without one."""
        matrix = self.matrices.get(model)
        if matrix is None:
            return np.full((len(rows), dimension), np.nan, dtype=np.float32)
        return np.ascontiguousarray(matrix[rows])

    def search(
        self,
        queries: Float32Matrix,
        *,
        k: int,
        metric: Metric,
        allowed: npt.NDArray[np.bool_] | None,
        yield_point: YieldPoint = no_yield_point,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Compare the queries (n, d) float32 with every row that is `allowed` (rows,) bool.

        Returns scores (n, k') float32 and rows (n, k') int64, best first, equal scores by id; k' is
        the smaller of `k` and `rows`. Fewer hits are padded with -inf and -1. `allowed` None: all
        rows, dead ones too. `yield_point` is called before each block of queries.
        """
        block = max(1, SCORES_BYTES_MAX // (4 * self.rows))
        found = []
        for start in range(0, len(queries), block):
            yield_point()
            found.append(self._search_block(queries[start : start + block], k, metric, allowed))
        if len(found) == 1:
            return found[0]
        if not found:
            width = min(k, self.rows)
            return np.empty((0, width), dtype=np.float32), np.empty((0, width), dtype=np.int64)
        return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])

    def _search_block(
        self,
        queries: Float32Matrix,
        k: int,
        metric: Metric,
        allowed: npt.NDArray[np.bool_] | None,
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        vectors = self.vectors[: self.rows]
        products = _scores_by_products(queries, vectors, metric=metric)
        if allowed is not None:
            products[:, ~allowed] = -np.inf
        width = min(k, self.rows)
        looked = min(width + 1, self.rows)
        rows = np.argpartition(products, self.rows - looked, axis=1)[:, self.rows - looked :]
        found = np.take_along_axis(products, rows, axis=1)
        rows[np.isneginf(found)] = -1
        scores, rows = self._ranked(queries, rows, width, metric)
        if looked == width:
            return scores, rows
        # Rows whose products may equal that of the last hit, within their error, are scored too.
        errors = score_errors(queries, scores[:, -1], metric=metric, from_products=True)
        least = scores[:, -1] - 2 * errors
        worst = found.min(axis=1)
        for query in np.flatnonzero((worst >= least) & (worst > -np.inf)).tolist():
            near = np.flatnonzero(products[query] >= least[query])
            one = slice(query, query + 1)
            scores[one], rows[one] = self._ranked(queries[one], near[None], width, metric)
        return scores, rows

    def _ranked(
        self, queries: Float32Matrix, rows: npt.NDArray[np.int64], k: int, metric: Metric
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Return the best `k` of each query's own `rows` (n, m) by score and id."""
        scores = scores_of(self.vectors, queries, rows, metric=metric)
        ids = self.ids
        best = best_columns(
            scores, k=k, ids_of=lambda q, c: [ids[row] for row in rows[q, c].tolist()]
        )
        return np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)


def _scores_by_products(
    queries: Float32Matrix, vectors: Float32Matrix, *, metric: Metric
) -> npt.NDArray[np.float32]:
    """Return the scores (n, rows) of all pairs, computed by matrix products; see `score_errors`."""
    scores = queries @ vectors.T
    if metric is Metric.L2:
        scores *= 2.0
        scores -= np.einsum("ij,ij->i", vectors, vectors)
        scores -= np.einsum("ij,ij->i", queries, queries)[:, None]
    return scores


class GrowingSegment:
    """The rows of a shard that are not in a segment yet, which are appended and marked dead.

    One thread changes it at a time, under the shard's mutation lock; any thread may read a view.
    """

    def __init__(
        self, dimension: int, *, sealed_at: int = 0, model: str = "", unnamed: str = ""
    ) -> None:
        """Begin without rows; about `sealed_at` rows are to come (0: not known).

        `dimension` is that of `model`, by which views are read unless they name another. Batches
        that name no model have vectors of the model `unnamed`.
        """
        self._number = next(_numbers)
        self._sealed_at = sealed_at
        self._model, self._unnamed = model, unnamed
        self._matrices: dict[str, Float32Matrix] = {
            model: np.empty((_ROWS_INITIAL, dimension), dtype=np.float32)
        }
        self._incomplete: frozenset[str] = frozenset()
        self._sequences = np.empty(_ROWS_INITIAL, dtype=np.int64)
        self._ids: list[str] = []
        self._newest: dict[str, int] = {}
        self._parts: list[Columns] = []
        self._columns_bytes = 0
        self._dead: npt.NDArray[np.bool_] | None = None
        self._dead_count = 0
        self.rows = 0
        self.last_slot = -1
        self.last_sequence = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of vectors, attributes and payloads."""
        floats = sum(int(matrix.shape[1]) for matrix in self._matrices.values())
        return self.rows * floats * 4 + self._columns_bytes

    def append(self, batch: RecordBatch, *, first_sequence: int) -> None:
        """Append the rows of `batch`, whose ids differ; older rows of these ids must be dead."""
        start, end = self.rows, self.rows + len(batch)
        self._reserve(end)
        self._add_vectors(batch, start, end)
        self._sequences[start:end] = np.arange(first_sequence, first_sequence + len(batch))
        ids = batch.id_list()
        self._ids.extend(ids)
        self._newest.update(zip(ids, range(start, end), strict=True))
        self._add_columns(batch)
        if self._dead is not None:
            self._dead = np.concatenate([self._dead, np.zeros(len(batch), dtype=np.bool_)])
        self.rows = end

    def find(self, ids: list[str]) -> npt.NDArray[np.int64]:
        """Return the newest row of each id, (n,) int64, -1 where there is none; it may be dead."""
        newest = self._newest
        return np.fromiter((newest.get(i, -1) for i in ids), dtype=np.int64, count=len(ids))

    def kill(self, rows: npt.NDArray[np.int64], *, before_sequence: int) -> int:
        """Mark those of `rows` that are older than `before_sequence` dead; return how many."""
        rows = np.unique(rows[self._sequences[rows] < before_sequence])
        dead = np.zeros(self.rows, dtype=np.bool_) if self._dead is None else self._dead.copy()
        died = rows[~dead[rows]]
        if not len(died):
            return 0
        dead[died] = True
        self._dead = dead
        self._dead_count += len(died)
        return len(died)

    def view(self) -> GrowingView:
        """Return an immutable view of the present rows."""
        return GrowingView(
            number=self._number,
            model=self._model,
            vectors=self._matrices[self._model],
            ids=self._ids,
            newest=self._newest,
            sequences=self._sequences,
            parts=tuple(self._parts),
            rows=self.rows,
            dead=self._dead,
            dead_count=self._dead_count,
            matrices=dict(self._matrices),
            incomplete=self._incomplete,
        )

    def _add_vectors(self, batch: RecordBatch, start: int, end: int) -> None:
        """Copy the vectors of all models; NaN where a row has none."""
        given = {batch.model or self._unnamed: batch.vectors}
        given |= {one.model: one.vectors for one in batch.further}
        incomplete = set(self._incomplete)
        for model, vectors in given.items():
            if model not in self._matrices:
                shape = (self._capacity, vectors.shape[1])
                self._matrices[model] = np.full(shape, np.nan, dtype=np.float32)
                if start:
                    incomplete.add(model)
        for model, matrix in self._matrices.items():
            added = given.get(model)
            matrix[start:end] = np.nan if added is None else added
            if added is None or (len(given) > 1 and lacking(added).any()):
                incomplete.add(model)
        if len(incomplete) > len(self._incomplete):
            self._incomplete = frozenset(incomplete)

    @property
    def _capacity(self) -> int:
        return len(self._sequences)

    def _add_columns(self, batch: RecordBatch) -> None:
        # Copied: a slice would keep the whole message or log object in memory, vectors included.
        index = pa.array(np.arange(len(batch)), type=pa.int64())
        added = Columns(take_rows(batch.attributes, index), batch.payloads.take(index))
        self._parts.append(added)
        self._columns_bytes += added.size_bytes
        if len(self._parts) > _PARTS_MAX:
            self._parts = [Columns(_joined_attributes(self._parts), _joined_payloads(self._parts))]

    def _reserve(self, rows: int) -> None:
        if rows <= self._capacity:
            return
        capacity = max(rows, 2 * self._capacity)
        if FULL_AHEAD * rows >= self._sealed_at:
            capacity = max(capacity, self._sealed_at)
        # New arrays and a new dict: views share the old ones.
        self._matrices = {
            model: _extended(matrix, self.rows, capacity)
            for model, matrix in self._matrices.items()
        }
        sequences = np.empty(capacity, dtype=np.int64)
        sequences[: self.rows] = self._sequences[: self.rows]
        self._sequences = sequences


def _extended(matrix: Float32Matrix, rows: int, capacity: int) -> Float32Matrix:
    """Return a matrix of `capacity` rows with the first `rows` of `matrix`."""
    extended = np.empty((capacity, matrix.shape[1]), dtype=np.float32)
    extended[:rows] = matrix[:rows]
    return extended


def take_rows(attributes: pa.RecordBatch, index: pa.Int64Array) -> pa.RecordBatch:
    """Return the rows `index`; Arrow's `take` loses the length of a batch without columns."""
    return attributes.take(index) if attributes.num_columns else empty_attributes(len(index))


def _joined_attributes(parts: Sequence[Columns]) -> pa.RecordBatch:
    batches = [part.attributes for part in parts]
    if len(batches) == 1:
        return batches[0]
    if batches[0].num_columns == 0:
        return empty_attributes(sum(len(batch) for batch in batches))
    columns = [
        pa.concat_arrays([batch.column(number) for batch in batches])
        for number in range(batches[0].num_columns)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batches[0].schema)


def _joined_payloads(parts: Sequence[Columns]) -> pa.BinaryArray:
    return parts[0].payloads if len(parts) == 1 else pa.concat_arrays([p.payloads for p in parts])
