"""Records in columns: the wire's packed columns, and Arrow and numpy inside.

Nothing here touches single rows, except that texts and payloads cross protobuf one by one.
What is decoded may share memory with the message's bytes and is read-only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute

from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType, Collection, ModelSpec, Schema
from annheal.model.records import (
    ARROW_TYPES,
    Float32Matrix,
    ModelVectors,
    Projection,
    RecordSet,
    lacking,
)
from annheal.model.validation import usable_model
from annheal.v1 import columns_pb2, records_pb2

Column: TypeAlias = Any
"""A `pa.Array`; its type depends on what was sent, which type checkers cannot follow."""
Flags: TypeAlias = npt.NDArray[np.bool_]
VectorMessage: TypeAlias = columns_pb2.Vectors | records_pb2.Vector

arrow: Any = pa
pc: Any = pyarrow.compute

_FLOAT32 = np.dtype("<f4")
_FLOAT_BYTES = 4
_INT64_BYTES = 8

if sys.byteorder != "little":  # pragma: no cover
    raise ImportError("Annheal's wire and storage formats are little-endian; so must the CPU be")

_KINDS = {
    "keywords": AttributeType.KEYWORD,
    "keyword_lists": AttributeType.KEYWORD_LIST,
    "int64s": AttributeType.INT64,
    "float64s": AttributeType.FLOAT64,
    "bools": AttributeType.BOOL,
    "timestamps_us": AttributeType.TIMESTAMP,
}
_FIELDS = {kind: name for name, kind in _KINDS.items()}


# --------------------------------------------------------------------------------------- vectors


def encode_vectors(
    vectors: npt.NDArray[np.floating[Any]], *, model: str, absent: Flags | None = None
) -> columns_pb2.Vectors:
    """Return vectors (n, d), converted to float32, as packed bytes tagged with `model`.

    Rows that are `absent` (n,) have none; what stands there does not matter.
    """
    packed = np.ascontiguousarray(vectors, dtype=_FLOAT32)
    validity = b""
    if absent is not None and absent.any():
        packed = np.where(absent[:, None], _FLOAT32.type(0), packed)
        validity = np.packbits(~absent, bitorder="little").tobytes()
    return columns_pb2.Vectors(
        model=model, dimension=packed.shape[1], packed=packed.tobytes(), validity=validity
    )


def decode_vectors(
    message: columns_pb2.Vectors, *, collection: Collection, field: str
) -> tuple[ModelSpec, Float32Matrix]:
    """Return the model and its vectors (n, d) float32, perhaps read-only; no tag: the serving one.

    Raises `InvalidArgument` for a model that the collection does not have, a wrong dimension, bytes
    that are no whole number of vectors, and rows without a vector. Values are not looked at.
    """
    if message.validity:
        raise InvalidArgument.of(f"{field}.validity", "is set, but every row must be a vector")
    return _decode_matrix(message, collection=collection, field=field)


def decode_model_vectors(
    messages: Sequence[columns_pb2.Vectors], *, collection: Collection, rows: int, field: str
) -> list[ModelVectors]:
    """Return the vectors of each model, tagged as inside the cluster, in the order of the models.

    Rows without a vector are NaN; vectors that begin with NaN are refused. Raises `InvalidArgument`
    also as `decode_vectors` does, for two entries of one model, and for another number of rows.
    """
    found: dict[str, ModelVectors] = {}
    for number, message in enumerate(messages):
        where = f"{field}[{number}]"
        model, matrix = _decode_matrix(message, collection=collection, field=where)
        if model.name in found:
            raise InvalidArgument.of(f"{where}.model", f"{model.name!r} has an entry before")
        if len(matrix) != rows:
            raise InvalidArgument.of(where, f"has {len(matrix)} vectors, but there are {rows} ids")
        absent = _missing(message.validity, rows=rows, field=where)
        check_first_numbers(matrix, absent=absent, field=_named(model, messages))
        if absent is not None:
            matrix = np.where(absent[:, None], np.float32(np.nan), matrix)
        found[model.name] = ModelVectors(collection.tag_of(model), matrix)
    return [found[one.name] for one in collection.models if one.name in found]


def _named(model: ModelSpec, messages: Sequence[columns_pb2.Vectors]) -> str:
    """Return the caller's word for the vectors of a model."""
    return "vectors" if len(messages) == 1 else f"vectors[{model.name!r}]"


def check_first_numbers(matrix: Float32Matrix, *, absent: Flags | None, field: str) -> None:
    """Raise `InvalidArgument` for vectors (n, d) that begin with NaN, unless they are absent."""
    wrong = np.isnan(matrix[:, 0])
    if absent is not None:
        wrong &= ~absent
    if wrong.any():
        raise InvalidArgument.of(
            f"{field}[{int(wrong.argmax())}]",
            "holds nan at position 0; every value must be finite",
        )


def _decode_matrix(
    message: columns_pb2.Vectors, *, collection: Collection, field: str
) -> tuple[ModelSpec, Float32Matrix]:
    model = usable_model(message.model, collection=collection, field=f"{field}.model")
    given = message.dimension
    if given not in (0, model.dimension):
        raise InvalidArgument.of(
            f"{field}.dimension",
            f"is {given}, but model {model.name!r} has dimension {model.dimension};"
            f" embed with that model{_others(model, collection)}",
        )
    flat = _floats(message, field=field)
    if flat.size % model.dimension:
        raise InvalidArgument.of(
            field,
            f"has {flat.size} floats, which is no multiple of the dimension {model.dimension} of"
            f" model {model.name!r}",
        )
    return model, flat.reshape(-1, model.dimension)


def _others(model: ModelSpec, collection: Collection) -> str:
    """Return a hint at the other models that there are, for vectors that are not of `model`."""
    others = [one for one in collection.usable_models if one != model]
    if not others:
        return ""
    there = ", ".join(f"{one.name!r} ({one.dimension} floats)" for one in others)
    return f", or tag the vectors with the model that made them: there are {there} too"


def decode_vector(
    message: records_pb2.Vector, *, collection: Collection, field: str
) -> tuple[ModelSpec, npt.NDArray[np.float32]]:
    """Return the model and one vector (d,) float32; raises as `decode_vectors` does."""
    model = usable_model(message.model, collection=collection, field=f"{field}.model")
    flat = _floats(message, field=field)
    if flat.size != model.dimension:
        raise InvalidArgument.of(
            field,
            f"has {flat.size} floats, but model {model.name!r} needs"
            f" {model.dimension}{_others(model, collection)}",
        )
    return model, flat


def decode_tagged_vectors(message: columns_pb2.Vectors) -> ModelVectors:
    """Return the vectors of an answer, whose `dimension` is always set; NaN: there is none."""
    matrix = _floats(message, field="vectors").reshape(-1, max(1, message.dimension))
    absent = _missing(message.validity, rows=len(matrix), field="vectors")
    if absent is not None:
        matrix = np.where(absent[:, None], np.float32(np.nan), matrix)
    return ModelVectors(message.model, matrix)


def _floats(message: VectorMessage, *, field: str) -> npt.NDArray[np.float32]:
    packed = message.packed
    if packed:
        if len(packed) % _FLOAT_BYTES:
            raise InvalidArgument.of(
                f"{field}.packed",
                f"has {len(packed)} bytes, which is no whole number of 4-byte floats",
            )
        return np.frombuffer(packed, dtype=_FLOAT32)
    if message.HasField("floats"):
        return np.array(message.floats.values, dtype=np.float32)
    raise InvalidArgument.of(field, "holds no vector; set packed or floats")


# ------------------------------------------------------------------------------------ attributes


def encode_attributes(attributes: pa.RecordBatch) -> list[columns_pb2.AttributeColumn]:
    """Return Arrow columns of the types of `ARROW_TYPES` as messages."""
    return [
        encode_attribute(name, attributes.column(number))
        for number, name in enumerate(attributes.schema.names)
    ]


def encode_attribute(name: str, column: Column) -> columns_pb2.AttributeColumn:
    """Return one Arrow column as a message; raises `InvalidArgument` for another type."""
    message = columns_pb2.AttributeColumn(name=name)
    if column.null_count:
        valid = np.asarray(column.is_valid(), dtype=np.bool_)
        message.validity = np.packbits(valid, bitorder="little").tobytes()
    kind = column.type
    if pa.types.is_string(kind):
        message.keywords.values.extend(_texts(column))
    elif pa.types.is_list(kind) and pa.types.is_string(kind.value_type):
        lists = message.keyword_lists
        lists.lengths.extend(np.asarray(pc.fill_null(pc.list_value_length(column), 0)).tolist())
        # list_flatten leaves out what hides under null lists; `values` would not.
        lists.values.extend(_texts(pc.list_flatten(column)))
    elif pa.types.is_boolean(kind):
        message.bools = np.asarray(pc.fill_null(column, False)).astype(np.uint8).tobytes()
    elif kind == ARROW_TYPES[AttributeType.TIMESTAMP]:
        # A view, because nulls of timestamps cannot be filled through a number.
        numbers = pc.fill_null(column.view(pa.int64()), 0)
        message.timestamps_us = np.asarray(numbers).tobytes()
    elif pa.types.is_int64(kind):
        message.int64s = np.asarray(pc.fill_null(column, 0)).tobytes()
    elif pa.types.is_float64(kind):
        message.float64s = np.asarray(pc.fill_null(column, 0.0)).tobytes()
    else:
        raise InvalidArgument.of(name, f"columns of Arrow type {kind} are not known here")
    return message


def _texts(column: Column) -> list[str]:
    filled = pc.fill_null(column, "") if column.null_count else column
    return cast("list[str]", filled.to_pylist())


def decode_attribute(message: columns_pb2.AttributeColumn, *, rows: int, field: str) -> Column:
    """Return the column as an Arrow array of `rows` values of the type that the message holds.

    Raises `InvalidArgument` when the values or the validity do not fit the number of rows.
    """
    kind = message.WhichOneof("values")
    if kind is None:
        raise InvalidArgument.of(field, f"holds no values; set one of {', '.join(_KINDS)}")
    missing = _missing(message.validity, rows=rows, field=field)
    where = f"{field}.{kind}"
    if kind == "keywords":
        texts = list(message.keywords.values)
        _check_length(len(texts), rows=rows, field=where)
        return _text_array(texts, mask=missing)
    if kind == "keyword_lists":
        return _decode_lists(message.keyword_lists, rows=rows, missing=missing, field=where)
    if kind == "bools":
        octets = np.frombuffer(message.bools, dtype=np.uint8)
        _check_length(octets.size, rows=rows, field=where)
        if octets.size and octets.max() > 1:
            row = int((octets > 1).argmax())
            raise InvalidArgument.of(
                f"{where}[{row}]", f"is {int(octets[row])}, but must be 0 or 1"
            )
        return pa.array(octets.astype(np.bool_), mask=missing)
    packed: bytes = getattr(message, kind)
    if len(packed) != rows * _INT64_BYTES:
        raise InvalidArgument.of(
            where, f"has {len(packed)} bytes, but {rows} rows of 8 bytes are {rows * _INT64_BYTES}"
        )
    dtype = np.float64 if kind == "float64s" else np.int64
    column = pa.array(np.frombuffer(packed, dtype=dtype), mask=missing)
    return column.view(ARROW_TYPES[AttributeType.TIMESTAMP]) if kind == "timestamps_us" else column


def _text_array(texts: list[str], *, mask: Flags | None) -> Column:
    if mask is None:
        return pa.array(texts, type=pa.string())
    return pa.array(texts, type=pa.string(), mask=mask)


def _decode_lists(
    message: columns_pb2.KeywordListColumn, *, rows: int, missing: Flags | None, field: str
) -> Column:
    lengths = np.array(message.lengths, dtype=np.int64)
    values = list(message.values)
    _check_length(lengths.size, rows=rows, field=f"{field}.lengths")
    if int(lengths.sum()) != len(values):
        raise InvalidArgument.of(
            field, f"the lengths add up to {int(lengths.sum())}, but there are {len(values)} values"
        )
    offsets = np.zeros(rows + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    mask = None if missing is None else pa.array(missing)
    return arrow.ListArray.from_arrays(
        pa.array(offsets), pa.array(values, type=pa.string()), mask=mask
    )


def _missing(validity: bytes, *, rows: int, field: str) -> Flags | None:
    if not validity:
        return None
    expected = (rows + 7) // 8
    if len(validity) != expected:
        raise InvalidArgument.of(
            f"{field}.validity",
            f"has {len(validity)} bytes, but {rows} rows need a bitmap of {expected}",
        )
    bits = np.unpackbits(np.frombuffer(validity, dtype=np.uint8), count=rows, bitorder="little")
    return np.equal(bits, 0)


def _check_length(given: int, *, rows: int, field: str) -> None:
    if given != rows:
        raise InvalidArgument.of(field, f"has {given} rows, but there are {rows} ids")


def decode_attributes(
    messages: Iterable[columns_pb2.AttributeColumn], *, schema: Schema, rows: int, field: str
) -> pa.RecordBatch:
    """Return the columns that `schema` declares, in its order; those left out are all missing.

    Raises `InvalidArgument` for a column that is not declared, is named twice, or has the wrong
    type or length.
    """
    given = _decode_given(messages, schema=schema, rows=rows, field=field)
    columns = [
        given[f.name] if f.name in given else arrow.nulls(rows, type=ARROW_TYPES[f.type])
        for f in schema
    ]
    return pa.RecordBatch.from_arrays(columns, names=[f.name for f in schema])


def decode_some_attributes(
    messages: Iterable[columns_pb2.AttributeColumn], *, schema: Schema, rows: int, field: str
) -> pa.RecordBatch:
    """Return the columns that were sent, in the order of `schema`; raises as above."""
    given = _decode_given(messages, schema=schema, rows=rows, field=field)
    names = [f.name for f in schema if f.name in given]
    return pa.RecordBatch.from_arrays([given[name] for name in names], names=names)


def _decode_given(
    messages: Iterable[columns_pb2.AttributeColumn], *, schema: Schema, rows: int, field: str
) -> dict[str, Column]:
    declared = {f.name: f.type for f in schema}
    given: dict[str, Column] = {}
    for number, message in enumerate(messages):
        where = f"{field}[{number}]"
        name = message.name
        wanted = declared.get(name)
        if wanted is None:
            raise InvalidArgument.of(
                f"{where}.name",
                f"{name[:80]!r} is not an attribute of the collection; it has {list(declared)}",
            )
        if name in given:
            raise InvalidArgument.of(f"{where}.name", f"{name!r} is named twice")
        kind = message.WhichOneof("values")
        if kind is not None and _KINDS[kind] is not wanted:
            raise InvalidArgument.of(
                where,
                f"holds {kind}, but attribute {name!r} is a {wanted.value}: set {_FIELDS[wanted]}",
            )
        given[name] = decode_attribute(message, rows=rows, field=where)
    return given


# ----------------------------------------------------------------------------- payloads and sets


def encode_payloads(payloads: pa.BinaryArray) -> list[bytes]:
    """Return one payload a row, empty where there is none; no payload at all is an empty list."""
    return [] if payloads.null_count == len(payloads) else encode_all_payloads(payloads)


def encode_all_payloads(payloads: pa.BinaryArray) -> list[bytes]:
    """Return one payload a row, empty where there is none."""
    filled: Column = pc.fill_null(payloads, b"") if payloads.null_count else payloads
    return cast("list[bytes]", filled.to_pylist())


def decode_payloads(payloads: Sequence[bytes], *, rows: int, field: str) -> pa.BinaryArray:
    """Return the payloads of `rows` rows, null where a payload is empty or none was sent."""
    if not payloads:
        return pa.nulls(rows, type=pa.binary())
    _check_length(len(payloads), rows=rows, field=field)
    column: Column = pa.array(list(payloads), type=pa.binary())
    empty = pc.equal(pc.binary_length(column), 0)
    return cast("pa.BinaryArray", pc.if_else(empty, pa.scalar(None, pa.binary()), column))


def encode_record_set(
    records: RecordSet, *, model: str, with_ids: bool = True
) -> columns_pb2.RecordColumns:
    """Return what was read as columns; `with_ids` false leaves the ids to the message around.

    `model` is the one that answers.
    """
    own = () if records.vectors is None else (ModelVectors(records.model, records.vectors),)
    return columns_pb2.RecordColumns(
        ids=records.ids if with_ids else (),
        vectors=[
            encode_vectors(
                one.vectors,
                model=one.model or model,
                absent=lacking(one.vectors) if one.vectors.size else None,
            )
            for one in (*own, *records.further)
        ],
        attributes=() if records.attributes is None else encode_attributes(records.attributes),
        payloads=() if records.payloads is None else encode_payloads(records.payloads),
        versions=() if records.versions is None else records.versions.tolist(),
    )


def decode_record_set(
    message: columns_pb2.RecordColumns, *, projection: Projection, ids: list[str] | None = None
) -> RecordSet:
    """Return the records of an answer to a read with `projection`, as a client sees them.

    `ids` are given where they stand outside the columns.
    """
    names = list(message.ids) if ids is None else ids
    rows = len(names)
    attributes = None
    if projection.attributes != ():
        columns = [
            decode_attribute(column, rows=rows, field=f"attributes.{column.name}")
            for column in message.attributes
        ]
        attributes = pa.RecordBatch.from_arrays(
            columns, names=[column.name for column in message.attributes]
        )
    payloads = None
    if projection.payload:
        payloads = decode_payloads(message.payloads, rows=rows, field="payloads")
    vectors, model = None, ""
    further: tuple[ModelVectors, ...] = ()
    if projection.vector:
        vectors = np.empty((rows, 0), dtype=np.float32)
        if message.vectors and rows:
            own, *others = map(decode_tagged_vectors, message.vectors)
            vectors, model, further = own.vectors, own.model, tuple(others)
    versions = None
    if projection.version and message.versions:
        versions = np.array(message.versions, dtype=np.int64)
        _check_length(len(versions), rows=rows, field="versions")
    return RecordSet(names, attributes, payloads, vectors, versions, model, further)


# ------------------------------------------------------------------------------------ projection


def encode_projection(projection: Projection) -> columns_pb2.Projection:
    """Return `projection` as a message."""
    return columns_pb2.Projection(
        all_attributes=projection.attributes is None,
        attributes=projection.attributes or (),
        payload=projection.payload,
        vector=projection.vector,
        version=projection.version,
        models=projection.models,
    )


def decode_projection(message: columns_pb2.Projection, *, field: str = "projection") -> Projection:
    """Return the projection, its names not yet checked against a schema."""
    names = tuple(message.attributes)
    if message.all_attributes and names:
        raise InvalidArgument.of(
            field, "asks for all attributes and for some of them; set one of the two"
        )
    return Projection(
        attributes=None if message.all_attributes else names,
        payload=message.payload,
        vector=message.vector,
        version=message.version,
        models=tuple(message.models),
    )
