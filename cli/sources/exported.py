"""The folder that `annheal export` wrote, read back part by part."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from annheal.cli.exports import ExportDescription, ExportFormat, ExportPart
from annheal.cli.exports.parts import sha256_of
from annheal.cli.sources.chunk import Chunk, Columns, ImportSource, Layout
from annheal.cli.sources.jsonl import JsonlSource
from annheal.cli.sources.parquet import ParquetSource
from annheal.errors import DataCorruption


class ExportSource:
    """An export; implements `ImportSource`.

    Types come from its description, not from its values.
    """

    def __init__(self, path: Path, description: ExportDescription, *, id_prefix: str = "") -> None:
        self._folder = path if path.is_dir() else path.parent
        self._description = description
        models = {one.name: one.dimension for one in description.collection.models}
        self._columns = Columns(
            id="id",
            vector="vector",
            schema={field.name: field.type for field in description.collection.schema},
            are_records=True,
            id_prefix=id_prefix,
            models=models if len(models) > 1 else {},
        )
        model = description.collection.model
        self._layout = Layout(
            rows=description.rows,
            dimension=model.dimension,
            attributes=dict(self._columns.schema or {}),
            payload=("payload",),
            metric=model.metric.value,
        )

    @property
    def layout(self) -> Layout:
        """What the description says."""
        return self._layout

    def chunks(self, *, rows_max: int, limit: int | None = None, skip: int = 0) -> Iterator[Chunk]:
        """Yield rows in order behind the first `skip`, at most `limit` in all.

        Raises `DataCorruption` for a part that is not as it was written, before its first row.
        """
        left = limit
        for part in self._description.parts:
            if skip >= part.rows:
                skip -= part.rows
                continue
            if left == 0:
                return
            for chunk in self._open(part).chunks(rows_max=rows_max, limit=left, skip=skip):
                left = None if left is None else left - len(chunk)
                yield chunk
            skip = 0

    def _open(self, part: ExportPart) -> ImportSource:
        path = self._folder / part.file
        found = sha256_of(path)
        if found != part.sha256:
            raise DataCorruption(
                f"{path} is damaged: its SHA-256 is {found}, not {part.sha256}",
                metadata={"path": str(path)},
            )
        if self._description.format is ExportFormat.PARQUET:
            return ParquetSource(path, self._columns)
        return JsonlSource(path, self._columns)
