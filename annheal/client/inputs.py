"""What callers may pass, turned into the columns that travel.

The conversion itself is `annheal.model.values`; here its refusals get the names of arguments.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.client.arguments import as_count, as_mapping, as_text, as_word
from annheal.errors import FieldViolation, InvalidArgument
from annheal.filters import checked_tree, parse_expression
from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.filter import Filter
from annheal.model.records import EVERYTHING, Projection, Versions
from annheal.model.values.columns import Column, attribute_column
from annheal.model.values.ids import id_texts
from annheal.model.values.payloads import payload_column
from annheal.model.values.rows import rows_of
from annheal.model.values.unfit import UnfitValue, shown
from annheal.model.values.vectors import matrix_with_gaps, single_vector, vector_matrix
from annheal.wire.records import GivenVectors

FilterInput: TypeAlias = str | Filter | None
"""A filter expression (docs/filters.md), or a tree of `annheal.model.filter` nodes."""
AttributesInput: TypeAlias = (
    Mapping[str, Any] | Sequence[Mapping[str, Any]] | pa.Table | pa.RecordBatch | None
)
"""Columns by name (lists, numpy or Arrow arrays), one mapping a row, or an Arrow table."""
PayloadsInput: TypeAlias = Sequence[Any] | pa.BinaryArray | None
"""One JSON-serialisable value a row, or None; `bytes` are taken as JSON already."""
VersionsInput: TypeAlias = Sequence[int | None] | npt.NDArray[np.integer[Any]] | None
"""One wanted version a row, as reads return it. None, of a record read without it, is refused."""
ValueT = TypeVar("ValueT")

_ROW_FIELD: Final = re.compile(
    r"(ids|vectors(?:\['[^']*'\])?|texts|records|payloads|if_versions|attributes\.[^\[\]]+)"
    r"\[(\d+)\]"
)
"""Fields of rows as `annheal.model.validation` names them; the wire's own begin with `columns`."""
VERSION_MAX: Final = 2**63 - 1
_INCLUDES = ("attributes", "payload", "vector", "version")


def as_filter(filter: FilterInput) -> Filter | None:
    """Return the tree; raises `InvalidArgument` with the place of what is wrong in it."""
    if filter is None:
        return None
    if isinstance(filter, str):
        filter = parse_expression(as_text(filter, "filter"))
    return checked_tree(filter)


def as_projection(include: Iterable[str] | str | None) -> Projection:
    """Return what to read beside the id.

    `include` holds any of "attributes", "payload", "vector", "version" and names of attributes;
    "all" is all four. None is nothing.
    """
    if isinstance(include, Mapping) or not isinstance(include, Iterable | None):
        raise InvalidArgument.of("include", f"is a list of names, not {shown(include)}")
    names = [include] if isinstance(include, str) else list(() if include is None else include)
    for position, name in enumerate(names):
        as_text(name, f"include[{position}]")
    if "all" in names:
        return EVERYTHING
    attributes = tuple(dict.fromkeys(n for n in names if n not in _INCLUDES))
    return Projection(
        attributes=None if "attributes" in names else attributes,
        payload="payload" in names,
        vector="vector" in names,
        version="version" in names,
    )


def as_schema(attributes: Mapping[str, str | AttributeType] | None) -> Schema:
    """Return the schema of `{"year": "int64", ...}`; raises `InvalidArgument` for other types."""
    return tuple(
        AttributeField(name, as_word(kind, AttributeType, f"attributes.{name}"))
        for name, kind in as_mapping(attributes, "attributes").items()
    )


def as_ids(ids: Iterable[Any], *, field: str = "ids", ordered: bool = False) -> list[str]:
    """Return ids as texts; numbers are refused, since "1" and 1 would be one id."""
    return _named(field, lambda: id_texts(ids, ordered=ordered))


def as_matrix(vectors: Any, *, field: str = "vectors") -> npt.NDArray[Any]:
    """Return vectors as an (n, d) array of numbers, of whatever type they have."""
    return _named(field, lambda: vector_matrix(vectors))


def as_model_vectors(
    given: Any, *, model: str | None, rows: int, field: str = "vectors"
) -> tuple[GivenVectors, ...]:
    """Return the vectors of `model`, without a name of the serving one, or those of a mapping.

    In a mapping None says that a record has no vector of the model.
    """
    if not isinstance(given, Mapping):
        tag = "" if model is None else as_text(model, "model")
        found = [GivenVectors(tag, as_matrix(given, field=field))]
    else:
        if model is not None:
            raise InvalidArgument.of("model", f"is given, but {field} name their models: leave one")
        if not given:
            raise InvalidArgument.of(field, "name no model; give a matrix for at least one")
        found = [_of_model(name, vectors, field=field) for name, vectors in given.items()]
    for one in found:
        if len(one.vectors) != rows:
            place = field if not isinstance(given, Mapping) else f"{field}[{one.model!r}]"
            raise InvalidArgument.of(place, f"has {len(one.vectors)} rows for {rows} ids")
    return tuple(found)


def check_some_vector(given: Sequence[GivenVectors]) -> None:
    """Raise `InvalidArgument` for a record without a vector of any model."""
    gaps = [one.absent for one in given if one.absent is not None]
    if not gaps or len(gaps) < len(given):
        return
    without = np.logical_and.reduce(gaps)
    if without.any():
        row = int(without.argmax())
        raise InvalidArgument.of(
            f"vectors[{row}]", "is missing for every model; a record needs one vector at least"
        )


def _of_model(name: Any, vectors: Any, *, field: str) -> GivenVectors:
    model = as_text(name, f"{field}.keys()")
    if not model:
        raise InvalidArgument.of(f"{field}.keys()", "holds an empty name; name the model")
    place = f"{field}[{model!r}]"
    return GivenVectors(model, *_named(place, lambda: matrix_with_gaps(vectors)))


def as_models(model: Any, projection: Projection) -> tuple[Projection, bool]:
    """Return what to read with the models whose vectors are wanted, and whether they are several.

    `model` is one name, a sequence of names, or None for the serving one.
    """
    if model is None:
        return projection, False
    if not projection.vector:
        raise InvalidArgument.of("model", 'is given, but no vectors are read: include "vector"')
    if isinstance(model, str):
        return replace(projection, models=(as_text(model, "model"),)), False
    names = as_texts(model, field="model")
    if not names:
        raise InvalidArgument.of("model", "names no model; leave it out for the serving one")
    return replace(projection, models=tuple(names)), True


def as_vector(vector: Any, *, field: str = "vector") -> npt.NDArray[np.float32]:
    """Return one query as (d,) float32."""
    with np.errstate(over="ignore"):  # the server names what is not finite
        return _named(field, lambda: single_vector(vector)).astype(np.float32, copy=False)


def as_texts(given: Any, *, field: str = "texts") -> list[str]:
    """Return texts as a list; raises `InvalidArgument` for what is no sequence of texts."""
    column = _named(field, lambda: attribute_column(given, AttributeType.KEYWORD))
    texts: list[str] = column.to_pylist()
    for row, text in enumerate(texts):
        if text is None:
            raise InvalidArgument.of(f"{field}[{row}]", "is missing")
    return texts


def as_attributes(given: AttributesInput, *, rows: int, schema: Schema) -> dict[str, Column]:
    """Return one Arrow column of `rows` values by attribute name, of the declared types.

    Raises `InvalidArgument` for a name that is not declared, a wrong number of rows, and values
    that the declared type cannot hold exactly.
    """
    if given is None:
        return {}
    kinds = {f.name: f.type for f in schema}
    found: dict[str, Column] = {}
    for name, values in _columns(given, rows=rows):
        kind = kinds.get(name)
        if kind is None:
            raise InvalidArgument.of(
                f"attributes.{name}", f"is not declared; there are {', '.join(kinds) or 'none'}"
            )
        if name in found:
            raise InvalidArgument.of(f"attributes.{name}", "is there twice; name each once")
        found[name] = as_column(values, kind=kind, field=f"attributes.{name}")
        if len(found[name]) != rows:
            raise InvalidArgument.of(
                f"attributes.{name}", f"has {len(found[name])} values for {rows} ids"
            )
    return found


def as_column(values: Any, *, kind: AttributeType, field: str) -> Column:
    """Return values as an Arrow column of the declared type; nothing is rounded or guessed.

    Raises `InvalidArgument` for what the type cannot hold.
    """
    return _named(field, lambda: attribute_column(values, kind))


def as_payloads(given: PayloadsInput, *, rows: int) -> pa.BinaryArray | None:
    """Return payloads as JSON, null where a row has none."""
    if given is None:
        return None
    column = _named("payloads", lambda: payload_column(given))
    if len(column) != rows:
        raise InvalidArgument.of("payloads", f"has {len(column)} rows for {rows} ids")
    return column


def as_versions(given: VersionsInput, *, rows: int) -> Versions | None:
    """Return wanted versions (n,) int64; None: there is no condition."""
    if given is None:
        return None
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Sequence | np.ndarray):
        raise InvalidArgument.of("if_versions", f"is a version for each id, not {shown(given)}")
    if len(given) != rows:
        raise InvalidArgument.of("if_versions", f"has {len(given)} rows for {rows} ids")
    found = np.empty(rows, dtype=np.int64)
    for row, version in enumerate(given):
        if version is None:  # as the version of a record that was read without it
            raise InvalidArgument.of(
                f"if_versions[{row}]",
                'is None; read the record with include="version", and write records without'
                " condition in a call of their own",
            )
        found[row] = as_count(version, f"if_versions[{row}]", most=VERSION_MAX)
    return found


def check_same_names(given: AttributesInput) -> None:
    """Raise `InvalidArgument` for mappings, one a row, that name different attributes.

    In an update, one that a row does not name would lose its value there.
    """
    rows: Any = given
    if not isinstance(rows, Sequence) or not rows or not isinstance(rows[0], Mapping):
        return
    first = rows[0]
    for row, mapping in enumerate(rows):
        if isinstance(mapping, Mapping) and mapping.keys() != first.keys():
            names = ", ".join(sorted(map(str, mapping.keys() ^ first.keys())))
            raise InvalidArgument.of(
                f"attributes[{row}]",
                f"names other attributes than row 0 ({names}); update such records in calls of"
                " their own, or say None where a value is to be taken away",
            )


def _columns(given: Any, *, rows: int) -> list[tuple[Any, Any]]:
    """Return names and values of attributes that were given by column, as a table, or by row."""
    if isinstance(given, pa.Table | pa.RecordBatch):
        return list(zip(given.schema.names, given.columns, strict=True))
    if isinstance(given, Mapping):
        return list(given.items())
    if hasattr(given, "columns") and hasattr(given, "__getitem__"):  # a pandas or polars DataFrame
        names = list(given.columns)
        if len(set(names)) != len(names):
            raise InvalidArgument.of("attributes", "has two columns of one name; name each once")
        return [(name, given[name]) for name in names]
    mappings: Sequence[Any] = _named("attributes", lambda: rows_of(given))
    if len(mappings) != rows:
        raise InvalidArgument.of("attributes", f"has {len(mappings)} rows for {rows} ids")
    for row, mapping in enumerate(mappings):
        if not isinstance(mapping, Mapping):
            raise InvalidArgument.of(
                f"attributes[{row}]", f"{shown(mapping)} is no mapping of names to values"
            )
    names = list(dict.fromkeys(name for mapping in mappings for name in mapping))
    return [(name, [mapping.get(name) for mapping in mappings]) for name in names]


def in_callers_words(error: InvalidArgument, rename: Callable[[str], str]) -> InvalidArgument:
    """Return `error` with the fields that the caller used, `rename(field)` for each of the wire."""
    violations = [FieldViolation(rename(v.field), v.description) for v in error.violations]
    if not violations or violations == list(error.violations):
        return error
    text = "; ".join(f"{v.field}: {v.description}" for v in violations)
    return InvalidArgument(
        text, violations=violations, reason=error.reason, metadata=error.metadata
    )


def rows_renamed(row_of: Callable[[int], int]) -> Callable[[str], str]:
    """Return the renaming of `vectors[3]` (a row of a request) to `vectors[row_of(3)]`."""

    def rename(field: str) -> str:
        match = _ROW_FIELD.match(field)
        if match is None:
            return field
        return f"{match[1]}[{row_of(int(match[2]))}]{field[match.end() :]}"

    return rename


def _named(field: str, convert: Callable[[], ValueT]) -> ValueT:
    """Return `convert()`; what it refuses becomes the caller's error, under the name `field`."""
    try:
        return convert()
    except UnfitValue as error:
        raise error.refusal(field) from None
