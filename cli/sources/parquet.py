"""Parquet files, read in row batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from annheal.cli.sources.arrow_table import (
    ARROW_ERRORS,
    check_names,
    chunk_of,
    facts_of,
    float32_rows,
)
from annheal.cli.sources.chunk import (
    CHUNK_BYTES_MAX,
    Chunk,
    Columns,
    Layout,
    MaskedVectors,
    Place,
    masked,
)
from annheal.cli.sources.plan import SAMPLE_ROWS, ColumnFacts, ColumnPlan, plan_columns
from annheal.errors import InvalidArgument

READ_ERRORS: Final = (*ARROW_ERRORS, OSError)


class ParquetSource:
    """One Parquet file; implements `ImportSource`."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        self._table = ParquetRows(path)
        self._prefix = columns.id_prefix
        if not self._table.rows:
            raise InvalidArgument.of("FILE", f"{path} has no rows")
        self._plan = plan_columns(self._table.facts(), columns)
        self._models = columns.models
        if self._models:
            dimension = next(iter(self._models.values()))
        else:
            head = self._table.head(1, [self._vector])
            dimension = self._vectors(head, Place(path)).shape[1]
        self._layout = self._plan.layout(rows=self._table.rows, dimension=dimension)

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        return self._layout

    @property
    def _vector(self) -> str:
        assert self._plan.vector is not None
        return self._plan.vector

    def chunks(self, *, rows_max: int, limit: int | None = None, skip: int = 0) -> Iterator[Chunk]:
        """Yield rows in file order behind the first `skip`, at most `limit` in all."""
        end = self._table.rows if limit is None else min(self._table.rows, skip + limit)
        for first_row, table in self._table.read(
            self._plan, rows_max=rows_max, first=skip, end=end
        ):
            place = Place(self._path, first_row)
            if self._models:
                vectors = np.empty((len(table), 0), dtype=np.float32)
                by_model = self._vectors_by_model(table, place)
            else:
                vectors = self._vectors(table, place, dimension=self._layout.dimension)
                by_model = {}
            chunk = chunk_of(table, self._plan, vectors=vectors, place=place)
            yield with_prefix(replace(chunk, by_model=by_model), self._prefix)

    def _vectors_by_model(self, table: pa.Table, place: Place) -> dict[str, MaskedVectors]:
        column: Any = table.column(self._vector).combine_chunks()
        found = {}
        for model, dimension in self._models.items():
            name = f"{self._vector}.{model}"
            if not isinstance(column.type, pa.StructType) or column.type.get_field_index(model) < 0:
                raise InvalidArgument.of("FILE", f"{self._path} has no {name}")
            vectors = column.field(model)
            present = np.asarray(vectors.is_valid())
            rows = float32_rows(
                vectors.filter(pa.array(present)), name=name, place=place, dimension=dimension
            )
            found[model] = masked(rows, present)
        return found

    def _vectors(self, table: pa.Table, place: Place, *, dimension: int = 0) -> Any:
        column = table.column(self._vector)
        return float32_rows(column, name=self._vector, place=place, dimension=dimension)


class ParquetRows:
    """A Parquet file whose errors name it."""

    def __init__(self, path: Path, *, option: str = "FILE") -> None:
        self._path = path
        self._option = option
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
            self._names = list(self._file.schema_arrow.names)
        except READ_ERRORS as error:
            raise InvalidArgument.of(
                option, f"{path} cannot be read as Parquet: {error}"
            ) from error
        self.rows: int = self._file.metadata.num_rows

    def facts(self) -> list[ColumnFacts]:
        """Return what the columns hold."""
        check_names(self._file.schema_arrow.names, file=self._path)
        return facts_of(self.head(SAMPLE_ROWS, None))

    def head(self, count: int, names: list[str] | None) -> pa.Table:
        """Return the first rows."""
        for _, table in self._batches(rows_max=count, names=names):
            return table
        raise InvalidArgument.of(self._option, f"{self._path} has no rows")

    def read(
        self, plan: ColumnPlan, *, rows_max: int, first: int, end: int
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows from `first` to `end` in parts, each with the number of its first row."""
        for start, table in self._batches(rows_max=self._part_rows(rows_max), names=plan.needed):
            low, high = max(first, start), min(end, start + len(table))
            if low < high:
                yield low, table.slice(low - start, high - low)
            if start + len(table) >= end:
                return

    def _batches(self, *, rows_max: int, names: list[str] | None) -> Iterator[tuple[int, pa.Table]]:
        done = 0
        batches = self._file.iter_batches(batch_size=rows_max, columns=names)
        while True:
            try:
                batch = next(batches, None)
            except READ_ERRORS as error:
                raise InvalidArgument.of(
                    self._option, f"{self._path} cannot be read from row {done} on: {error}"
                ) from error
            if batch is None:
                return
            yield done, pa.Table.from_batches([batch])
            done += len(batch)

    def _part_rows(self, rows_max: int) -> int:
        """Return how many rows are read at once: fewer when they are large."""
        metadata = self._file.metadata
        sizes = [
            metadata.row_group(number).total_byte_size / max(1, metadata.row_group(number).num_rows)
            for number in range(metadata.num_row_groups)
        ]
        return max(1, min(rows_max, int(CHUNK_BYTES_MAX / max(1.0, *sizes, 1.0))))


def with_prefix(chunk: Chunk, prefix: str) -> Chunk:
    """Return the rows with `prefix` before every id."""
    if not prefix:
        return chunk
    return replace(chunk, ids=[prefix + name for name in chunk.ids])
