"""JSON lines: one object a line, its vector as a list of numbers, its other keys as columns."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from annheal.cli.sources.chunk import Chunk, Columns, Layout
from annheal.cli.sources.columns import SAMPLE_ROWS, TablePlan
from annheal.client.inputs import as_column
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType

LINE_BYTES_MAX: Final = 16 << 20
PAYLOAD_KEY: Final = "payload"
"""A key of this name that holds an object is the payload as it is."""

_DECODER = msgspec.json.Decoder(dict[str, Any])


class JsonlSource:
    """One file of JSON lines; implements `ImportSource`."""

    def __init__(self, path: Path, columns: Columns) -> None:
        self._path = path
        sample = list(islice(self._objects(), SAMPLE_ROWS))
        if not sample:
            raise InvalidArgument.of("FILE", f"{path} has no lines")
        names = list(dict.fromkeys(key for _, row in sample for key in row))
        self._own_payload = PAYLOAD_KEY in names and columns.payload is None
        if self._own_payload:
            names.remove(PAYLOAD_KEY)
        table = pa.table({name: _column([row.get(name) for _, row in sample]) for name in names})
        self._plan = TablePlan(table, columns)
        assert self._plan.vector_column is not None
        first = sample[0][1].get(self._plan.vector_column)
        dimension = len(first) if isinstance(first, list) else 0
        self._layout = self._plan.layout(rows=None, dimension=dimension)

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        return self._layout

    def chunks(self, *, rows_max: int, limit: int | None = None) -> Iterator[Chunk]:
        """Yield rows in file order."""
        objects = islice(self._objects(), limit)
        done = 0
        while rows := list(islice(objects, rows_max)):
            yield self._chunk(rows, first_row=done)
            done += len(rows)

    def _chunk(self, rows: list[tuple[int, dict[str, Any]]], *, first_row: int) -> Chunk:
        plan = self._plan
        assert plan.vector_column is not None
        vectors = np.empty((len(rows), self._layout.dimension), dtype=np.float32)
        for place, (line, row) in enumerate(rows):
            given = row.get(plan.vector_column)
            if not isinstance(given, list) or len(given) != self._layout.dimension:
                found = f"{len(given)} values" if isinstance(given, list) else repr(given)[:40]
                raise self._wrong(
                    line,
                    f"{plan.vector_column} must be a list of {self._layout.dimension} numbers,"
                    f" not {found}",
                )
            try:
                vectors[place] = given
            except (TypeError, ValueError) as error:
                raise self._wrong(line, f"{plan.vector_column}: {error}") from error
        columns: dict[str, Any] = {}
        for name in [n for n in (plan.id_column,) if n] + list(plan.attributes):
            values = [row.get(name) for _, row in rows]
            columns[name] = self._column(name, values, rows[0][0])
        chunk = plan.chunk(
            pa.table(columns), first_row=first_row, vectors=vectors, with_payload=False
        )
        return Chunk(chunk.ids, vectors, chunk.attributes, self._payloads(rows))

    def _column(self, name: str, values: list[Any], line: int) -> Any:
        kind = AttributeType.KEYWORD
        if name == self._plan.id_column:
            # Numbers are taken for ids as they are written.
            values = [str(value) if type(value) is int else value for value in values]
        else:
            kind = self._plan.attributes[name]
        try:
            return as_column(values, kind=kind, field=name)
        except InvalidArgument as error:
            raise self._wrong(line, f"(from this line on) {error.message}") from error

    def _payloads(self, rows: list[tuple[int, dict[str, Any]]]) -> list[bytes | None] | None:
        if self._own_payload:
            given = (row.get(PAYLOAD_KEY) for _, row in rows)
            return [None if value is None else msgspec.json.encode(value) for value in given]
        names = self._plan.payload
        if not names:
            return None
        return [
            msgspec.json.encode({n: row[n] for n in names if row.get(n) is not None})
            for _, row in rows
        ]

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        try:
            with self._path.open("rb") as lines:
                for number, line in enumerate(lines, start=1):
                    if len(line) > LINE_BYTES_MAX:
                        raise self._wrong(number, f"is longer than {LINE_BYTES_MAX} bytes")
                    if not line.strip():
                        continue
                    try:
                        yield number, _DECODER.decode(line)
                    except msgspec.MsgspecError as error:
                        raise self._wrong(number, f"is no JSON object: {error}") from error
        except OSError as error:
            raise InvalidArgument.of(
                "FILE", f"{self._path} cannot be read: {error.strerror}"
            ) from error

    def _wrong(self, line: int, what: str) -> InvalidArgument:
        return InvalidArgument.of(f"{self._path.name}:{line}", what)


def _column(values: list[Any]) -> Any:
    """Return `values` as the narrowest column that holds them; JSON text when types are mixed."""
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([msgspec.json.encode(value) for value in values], type=pa.binary())
