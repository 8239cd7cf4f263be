"""Arrow tables: what their columns hold, and the rows that are imported from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute

from annheal.cli.sources.chunk import Chunk, Place
from annheal.cli.sources.plan import (
    ATTRIBUTES_COLUMN,
    PAYLOAD_COLUMN,
    SAMPLE_ROWS,
    VECTOR_LENGTH_MIN,
    ColumnFacts,
    ColumnPlan,
    is_keyword,
)
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.records import Float32Matrix
from annheal.model.values.columns import attribute_column
from annheal.model.values.ids import id_texts
from annheal.model.values.payloads import encode_payload
from annheal.model.values.unfit import UnfitValue

# The kernels take more types than the stubs say.
pc: Any = pyarrow.compute
types: Any = pa.types
chunked_array: Any = pa.chunked_array
ARROW_ERRORS = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""What conversions of Arrow columns raise, Python's own included."""

ValueT = TypeVar("ValueT")


def check_names(names: Sequence[str], *, file: Path) -> None:
    """Raise `InvalidArgument` when two columns have one name: a table of them cannot be read."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidArgument.of(
            "FILE", f"{file}: there are several columns of the name {', '.join(twice)}; rename them"
        )


def facts_of(sample: pa.Table) -> list[ColumnFacts]:
    """Return what the columns of a table hold, by their types and its first rows."""
    names = sample.column_names
    found: list[ColumnFacts] = []
    for name in names:
        column = sample.column(name)
        if name == ATTRIBUTES_COLUMN and types.is_struct(column.type):
            members = [field.name for field in column.type]
            found += [
                _facts(member, child, nested=True)
                for member, child in zip(members, column.flatten(), strict=True)
            ]
        else:
            found.append(_facts(name, column))
    return found


def _facts(name: str, column: Any, *, nested: bool = False) -> ColumnFacts:
    kind = attribute_type(column.type)
    is_json = _is_json(column.type)
    return ColumnFacts(
        name=name,
        described=_described(column.type),
        kind=kind,
        is_vector=is_vector_type(column.type),
        looks_like_vector=is_vector_type(column.type) and _equally_long(column),
        is_free_text=kind is AttributeType.KEYWORD and not nested and not _repeats(column),
        is_whole_payload=name == PAYLOAD_COLUMN
        and (is_json or _is_binary(column.type) or types.is_struct(column.type)),
        holds_bytes=_holds_bytes(column.type) and not (name == PAYLOAD_COLUMN and not nested),
        nested=nested,
    )


def attribute_type(kind: Any) -> AttributeType | None:
    """Return the attribute type that holds `kind`, None for what cannot be an attribute."""
    if types.is_dictionary(kind):
        return attribute_type(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or _is_uuid(kind):
        return AttributeType.KEYWORD
    if types.is_integer(kind):
        return AttributeType.INT64
    if types.is_floating(kind):
        return AttributeType.FLOAT64
    if types.is_boolean(kind):
        return AttributeType.BOOL
    if types.is_timestamp(kind) or types.is_date(kind):
        return AttributeType.TIMESTAMP
    if _is_list(kind) and attribute_type(kind.value_type) is AttributeType.KEYWORD:
        return AttributeType.KEYWORD_LIST
    return None


def is_vector_type(kind: Any) -> bool:
    """Return whether a column of this type may hold vectors: a list of numbers."""
    if not (_is_list(kind) or types.is_fixed_size_list(kind)):
        return False
    return bool(types.is_floating(kind.value_type) or types.is_integer(kind.value_type))


def chunk_of(table: pa.Table, plan: ColumnPlan, *, vectors: Float32Matrix, place: Place) -> Chunk:
    """Return the rows of `table`, whose vectors were read already.

    Raises `InvalidArgument` that names the file, the row and the column.
    """
    assert plan.id is not None
    return Chunk(
        ids=ids_of(table.column(plan.id), name=plan.id, place=place),
        vectors=vectors,
        place=place,
        attributes=_attributes(table, plan, place) if plan.attributes else None,
        payloads=_payloads(table, plan, place),
    )


def ids_of(column: Any, *, name: str, place: Place) -> list[str]:
    """Return ids as texts: whole numbers as they are written, UUIDs in their usual form."""

    def convert(column: Any) -> list[str]:
        return id_texts(column, whole_numbers=True)

    return _guarded(_plain(column), convert, name=name, place=place)


def float32_rows(column: Any, *, name: str, place: Place, dimension: int = 0) -> Float32Matrix:
    """Return a column of equally long lists as (n, d) float32; half floats are widened.

    `dimension` is how long they must be; as long as the first when it is 0.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if column.null_count:
        raise _wrong(place, _first_null(column), name, "there is no vector")
    lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
    if len(lengths) == 0:
        return np.zeros((0, dimension), dtype=np.float32)
    wanted = dimension or int(lengths[0])
    uneven = np.flatnonzero(lengths != wanted)
    if len(uneven):
        row = int(uneven[0])
        raise _wrong(
            place,
            row,
            name,
            f"has {lengths[row]} numbers, those before it {wanted}; all vectors must be equally"
            " long",
        )
    flat = column.flatten()
    if flat.null_count:
        raise _wrong(place, _first_null(flat) // wanted, name, "a number is missing in it")
    values = flat.to_numpy(zero_copy_only=False).reshape(len(lengths), wanted)
    return finite_float32(values, name=name, place=place)


def finite_float32(values: Any, *, name: str, place: Place) -> Float32Matrix:
    """Return numbers (n, d) as C-contiguous float32; refuses what is not finite there."""
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(values, dtype=np.float32)
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        position = int(np.argmin(np.isfinite(rows[row])))
        raise _wrong(
            place,
            row,
            name,
            f"holds {values[row][position]} at position {position}; every number must be finite"
            " in float32",
        )
    return rows


def _guarded(column: Any, convert: Callable[[Any], ValueT], *, name: str, place: Place) -> ValueT:
    """Return `convert(column)`; an error names the first row that is at fault."""
    try:
        return convert(column)
    except UnfitValue as error:
        raise _wrong(place, error.row or 0, f"{name}{error.part}", error.reason) from error
    except ARROW_ERRORS as error:
        row = _first_refused(column, convert)
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise _wrong(place, row, name, what) from error


def _first_refused(column: Any, convert: Callable[[Any], object]) -> int:
    """Return the first row that cannot be converted alone; 0 when each can."""
    for row in range(len(column)):
        try:
            convert(column.slice(row, 1))
        except (UnfitValue, *ARROW_ERRORS):
            return row
    return 0


def _attributes(table: pa.Table, plan: ColumnPlan, place: Place) -> pa.Table:
    members: dict[str, Any] = {}
    if plan.nested:
        struct = table.column(ATTRIBUTES_COLUMN)
        members = dict(zip([f.name for f in struct.type], struct.flatten(), strict=True))
    arrays: dict[str, Any] = {}
    for name, kind in plan.attributes.items():
        column = _plain(members[name] if name in plan.nested else table.column(name))

        def convert(column: Any, kind: AttributeType = kind) -> Any:
            return attribute_column(column, kind)

        arrays[name] = _guarded(column, convert, name=name, place=place)
    return pa.table(arrays)


def _payloads(table: pa.Table, plan: ColumnPlan, place: Place) -> list[bytes | None] | None:
    if plan.whole_payload is not None:
        column = table.column(plan.whole_payload)
        convert = _json_texts if not types.is_struct(column.type) else _encoded_values
        return _guarded(column, convert, name=plan.whole_payload, place=place)
    if not plan.payload:
        return None
    columns = [
        _guarded(table.column(name), _json_values, name=name, place=place) for name in plan.payload
    ]
    rows = []
    for values in zip(*columns, strict=True):
        present = dict(zip(plan.payload, values, strict=True))
        rows.append(_joined(present))
    return rows


def _joined(parts: dict[str, bytes | None]) -> bytes | None:
    """Return one JSON object of members that are JSON already; missing ones are left out."""
    present = [
        msgspec.json.encode(name) + b":" + part for name, part in parts.items() if part is not None
    ]
    return b"{" + b",".join(present) + b"}" if present else None


def _json_values(column: Any) -> list[bytes | None]:
    """Return each value as JSON, None where it is missing."""
    return _json_texts(column) if _is_json(column.type) else _encoded_values(column)


def _json_texts(column: Any) -> list[bytes | None]:
    """Return texts or bytes that are JSON already, checked."""
    found = cast("list[bytes | None]", _storage(column).cast(pa.large_binary()).to_pylist())
    for row, text in enumerate(found):
        if text is not None:
            try:
                msgspec.json.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise UnfitValue(f"is no JSON: {error}", row=row) from error
    return found


def _encoded_values(column: Any) -> list[bytes | None]:
    plain = _plain(column)
    found: list[bytes | None] = []
    for row, value in enumerate(plain.cast(_python_type(plain.type)).to_pylist()):
        try:
            found.append(None if value is None else encode_payload(_as_json(value)))
        except UnfitValue as error:
            raise error.in_row(row) from None
    return found


def _as_json(value: Any) -> Any:
    """Return a value with what only files have (dates, times, decimals) as text."""
    match value:
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case Decimal():
            return str(value)
        case dict():
            return {name: _as_json(part) for name, part in value.items()}
        case list() | tuple():
            return [_as_json(part) for part in value]
    return value


def _plain(column: Any) -> Any:
    """Return a column without dictionaries; UUIDs become texts, other extensions their storage."""
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if _is_uuid(column.type):
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return chunked_array([pa.array(texts, type=pa.string())])
    return _storage(column)


def _storage(column: Any) -> Any:
    if not isinstance(column.type, pa.BaseExtensionType):
        return column
    chunks: list[Any] = column.chunks
    return chunked_array([chunk.storage for chunk in chunks], type=column.type.storage_type)


def _python_type(kind: Any) -> Any:
    """Return `kind` with moments that Python cannot hold (nanoseconds) as texts."""
    if (types.is_timestamp(kind) or types.is_time(kind)) and kind.unit == "ns":
        return pa.string()
    if types.is_struct(kind):
        return pa.struct([pa.field(f.name, _python_type(f.type)) for f in kind])
    if types.is_fixed_size_list(kind) or _is_list(kind):
        return pa.list_(_python_type(kind.value_type))
    return kind


def _described(kind: Any) -> str:
    return "bytes" if _is_binary(kind) else str(kind)


def _is_list(kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))


def _is_binary(kind: Any) -> bool:
    return bool(
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)
    )


def _is_uuid(kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.uuid"


def _is_json(kind: Any) -> bool:
    return getattr(kind, "extension_name", "") == "arrow.json"


def _holds_bytes(kind: Any) -> bool:
    if types.is_dictionary(kind) or types.is_fixed_size_list(kind) or _is_list(kind):
        return _holds_bytes(kind.value_type)
    if types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return _is_binary(kind)


def _equally_long(column: Any) -> bool:
    if types.is_fixed_size_list(column.type):
        return True
    lengths = pc.list_value_length(column.combine_chunks()).drop_null().to_pylist()
    return bool(lengths) and min(lengths) == max(lengths) >= VECTOR_LENGTH_MIN


def _repeats(column: Any) -> bool:
    texts: Sequence[Any] = _plain(column).slice(0, SAMPLE_ROWS).drop_null().to_pylist()
    return is_keyword(texts)


def _first_null(column: Any) -> int:
    return int(pc.index(column.is_null(), True).as_py())


def _wrong(place: Place, row: int, name: str, what: str) -> InvalidArgument:
    return InvalidArgument.of(f"{place.of(row)}, {name}", what)
