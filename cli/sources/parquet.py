"""Parquet files, read in row batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from annheal.cli.sources.chunk import Chunk, Columns, Layout
from annheal.cli.sources.columns import SAMPLE_ROWS, TablePlan, float32_rows
from annheal.errors import InvalidArgument


class ParquetSource:
    """One Parquet file; implements `ImportSource`."""

    def __init__(self, path: Path, columns: Columns) -> None:
        try:
            self._file = pq.ParquetFile(path, memory_map=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidArgument.of("FILE", f"{path} is no Parquet: {error}") from error
        sample = self._first_rows(SAMPLE_ROWS)
        self._plan = TablePlan(sample, columns)
        assert self._plan.vector_column is not None
        head = sample.slice(0, 1).column(self._plan.vector_column)
        dimension = float32_rows(head, field=self._plan.vector_column).shape[1]
        rows = self._file.metadata.num_rows
        if rows == 0:
            raise InvalidArgument.of("FILE", f"{path} has no rows")
        self._layout = self._plan.layout(rows=rows, dimension=dimension)

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        return self._layout

    def chunks(self, *, rows_max: int, limit: int | None = None) -> Iterator[Chunk]:
        """Yield rows in file order."""
        done = 0
        for batch in self._file.iter_batches(batch_size=rows_max, columns=self._plan.needed):
            if limit is not None:
                batch = batch.slice(0, limit - done)
            if len(batch) == 0:
                return
            yield self._plan.chunk(pa.Table.from_batches([batch]), first_row=done)
            done += len(batch)

    def _first_rows(self, count: int) -> pa.Table:
        for batch in self._file.iter_batches(batch_size=count):
            return pa.Table.from_batches([batch])
        return self._file.schema_arrow.empty_table()
