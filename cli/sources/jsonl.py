"""JSON lines: one object a line, its vector as a list of numbers, its other keys as columns.

The file is read twice: once for what it holds, so that nothing is decided by its first lines, and
once for its rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from annheal.cli.sources.chunk import (
    CHUNK_BYTES_MAX,
    Chunk,
    Columns,
    Layout,
    MaskedVectors,
    Place,
    Progress,
    masked,
)
from annheal.cli.sources.json_lines import Line, members, read_lines, refuse_line
from annheal.cli.sources.json_profile import NULL, Content, Profile, content_of
from annheal.cli.sources.plan import ATTRIBUTES_COLUMN, ColumnPlan, plan_columns
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.records import Float32Matrix
from annheal.model.values.columns import attribute_column
from annheal.model.values.unfit import UnfitValue

_NUMBERS = msgspec.json.Decoder(list[float])
VECTOR_COLUMN: Final = "vector"
"""The key whose value may be an object of vectors by model, as `scan` prints them."""
_NUMBERS_BY_MODEL = msgspec.json.Decoder(dict[str, list[float] | None])
_VALUE = msgspec.json.Decoder()


class JsonlSource:
    """One file of JSON lines; implements `ImportSource`."""

    def __init__(self, path: Path, columns: Columns, *, progress: Progress | None = None) -> None:
        self._path = path
        self._prefix = columns.id_prefix
        lines = read_lines(path, progress=progress, look_for_twins=True)
        profile = Profile.of(path, lines)
        columns = _with_models(columns, profile)
        self._plan = plan_columns(profile.facts(), columns)
        assert self._plan.vector is not None
        for name in (self._plan.id, self._plan.vector):
            if name is not None and profile.keys[name].values < profile.rows:
                raise self._missing(name)
        self._models = columns.models
        if self._models:
            dimension = next(iter(self._models.values()))
        else:
            dimension = profile.check_vectors(self._plan.vector)
        self._layout = self._plan.layout(rows=profile.rows, dimension=dimension)

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        return self._layout

    def chunks(self, *, rows_max: int, limit: int | None = None, skip: int = 0) -> Iterator[Chunk]:
        """Yield rows in file order behind the first `skip`, at most `limit` in all."""
        end = self._layout.rows if limit is None else skip + limit
        part: list[Line] = []
        size_bytes, first_row = 0, skip
        for line in islice(read_lines(self._path), skip, end):
            part.append(line)
            size_bytes += line.size_bytes
            if len(part) >= rows_max or size_bytes >= CHUNK_BYTES_MAX:
                yield self._chunk(part, first_row=first_row)
                first_row += len(part)
                part, size_bytes = [], 0
        if part:
            yield self._chunk(part, first_row=first_row)

    def _chunk(self, lines: Sequence[Line], *, first_row: int) -> Chunk:
        place = Place(self._path, first_row, tuple(line.number for line in lines))
        plan = self._plan
        assert plan.id is not None
        assert plan.vector is not None
        columns: dict[str, Any] = {}
        nested = [_members(line) for line in lines] if plan.nested else []
        for name, kind in plan.attributes.items():
            rows = nested if name in plan.nested else [line.values for line in lines]
            values = [_value(row.get(name)) for row in rows]
            columns[name] = self._column(values, name=name, kind=kind, lines=lines)
        if self._models:
            vectors = np.empty((len(lines), 0), dtype=np.float32)
            by_model = self._vectors_by_model(lines, plan.vector)
        else:
            vectors, by_model = self._vectors(lines, plan.vector), {}
        return Chunk(
            ids=[self._prefix + self._id(line, plan.id) for line in lines],
            vectors=vectors,
            place=place,
            attributes=pa.table(columns) if columns else None,
            payloads=_payloads(lines, plan),
            by_model=by_model,
        )

    def _vectors_by_model(self, lines: Sequence[Line], name: str) -> dict[str, MaskedVectors]:
        given: list[dict[str, list[float] | None]] = []
        for line in lines:
            try:
                given.append(_NUMBERS_BY_MODEL.decode(line.values.get(name, NULL)))
            except msgspec.MsgspecError as error:
                text = f"{name} must be an object with a list of numbers, or null, for each model"
                raise refuse_line(self._path, line.number, f"{text}: {error}") from error
        for line, one in zip(lines, given, strict=True):
            for model in one.keys() - self._models.keys():
                text = f"{name} is of model {model!r}; there are {', '.join(self._models)}"
                raise refuse_line(self._path, line.number, text)
        found = {}
        for model, dimension in self._models.items():
            lists = [one.get(model) for one in given]
            for line, numbers in zip(lines, lists, strict=True):
                if numbers is not None and len(numbers) != dimension:
                    text = f"{name}.{model} has {len(numbers)} numbers, not {dimension}"
                    raise refuse_line(self._path, line.number, text)
            present = np.array([numbers is not None for numbers in lists], dtype=np.bool_)
            rows = [numbers for numbers in lists if numbers is not None]
            with np.errstate(over="ignore"):  # the server names what is not finite
                matrix = np.array(rows, dtype=np.float32).reshape(len(rows), dimension)
            found[model] = masked(matrix, present)
        return found

    def _missing(self, name: str) -> InvalidArgument:
        for line in read_lines(self._path):
            if line.values.get(name, NULL) == NULL:
                return self._no_value(line, name)
        return InvalidArgument.of("FILE", f"{self._path} changed while it was read")

    def _no_value(self, line: Line, name: str) -> InvalidArgument:
        return refuse_line(self._path, line.number, f"{name} is missing; every record needs one")

    def _id(self, line: Line, name: str) -> str:
        value = line.values.get(name, NULL)
        if value == NULL:
            raise self._no_value(line, name)
        kind = content_of(value)
        if kind is Content.TEXT:
            return str(_VALUE.decode(value))
        if kind in (Content.INTEGER, Content.LARGE_INTEGER):
            return value.decode()  # numbers are taken for ids as they are written
        raise refuse_line(
            self._path, line.number, f"{name} is {value[:40].decode()}; an id is a text"
        )

    def _vectors(self, lines: Sequence[Line], name: str) -> Float32Matrix:
        dimension = self._layout.dimension
        vectors = np.empty((len(lines), dimension), dtype=np.float32)
        for place, line in enumerate(lines):
            try:
                numbers = _NUMBERS.decode(line.values.get(name, NULL))
            except msgspec.MsgspecError as error:
                raise self._no_vector(line, name, str(error)) from error
            if len(numbers) != dimension:
                raise self._no_vector(line, name, f"{len(numbers)} values")
            with np.errstate(over="ignore"):
                vectors[place] = numbers
        finite = np.isfinite(vectors).all(axis=1)
        if not finite.all():
            line = lines[int(np.argmin(finite))]
            raise refuse_line(
                self._path, line.number, f"{name} holds a number that float32 cannot hold"
            )
        return vectors

    def _no_vector(self, line: Line, name: str, found: str) -> InvalidArgument:
        wanted = f"{name} must be a list of {self._layout.dimension} numbers"
        return refuse_line(self._path, line.number, f"{wanted}, not {found}")

    def _column(
        self, values: list[Any], *, name: str, kind: AttributeType, lines: Sequence[Line]
    ) -> Any:
        try:
            return attribute_column(values, kind)
        except UnfitValue as error:
            line = lines[error.row or 0].number
            raise refuse_line(self._path, line, f"{name}{error.part}: {error.reason}") from error


def _with_models(columns: Columns, profile: Profile) -> Columns:
    """Return the columns with the models of the collection if vectors are given by model."""
    name = columns.vector or VECTOR_COLUMN
    key = profile.keys.get(name)
    if columns.models or key is None or Content.OBJECT not in key.lines:
        return columns
    if not columns.known_models:
        raise InvalidArgument.of(
            "--create",
            f"{name} holds vectors by model: create the collection and add its models first",
        )
    return replace(columns, vector=name, models=columns.known_models)


def _members(line: Line) -> dict[str, bytes]:
    value = line.values.get(ATTRIBUTES_COLUMN, NULL)
    return {} if value == NULL else members(value)


def _value(text: bytes | None) -> Any:
    return None if text is None else _VALUE.decode(text)


def _payloads(lines: Iterable[Line], plan: ColumnPlan) -> list[bytes | None] | None:
    """Return payloads as they are written in the file, digit by digit."""
    if plan.whole_payload is not None:
        return [line.values.get(plan.whole_payload) for line in lines]
    if not plan.payload:
        return None
    keys = {name: msgspec.json.encode(name) + b":" for name in plan.payload}
    return [_object_of(line, keys) for line in lines]


def _object_of(line: Line, keys: dict[str, bytes]) -> bytes | None:
    parts = [key + line.values[name] for name, key in keys.items() if name in line.values]
    return b"{" + b",".join(parts) + b"}" if parts else None
