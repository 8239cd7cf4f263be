"""Rows in memory: columns, never one Python object per row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.model.collection import AttributeType, Schema

Float32Matrix: TypeAlias = npt.NDArray[np.float32]
Versions: TypeAlias = npt.NDArray[np.int64]
"""(n,) versions of records. A record's version grows with every write to it and is at least 1."""

ARROW_TYPES: dict[AttributeType, pa.DataType] = {
    AttributeType.KEYWORD: pa.string(),
    AttributeType.KEYWORD_LIST: pa.list_(pa.string()),
    AttributeType.INT64: pa.int64(),
    AttributeType.FLOAT64: pa.float64(),
    AttributeType.BOOL: pa.bool_(),
    AttributeType.TIMESTAMP: pa.timestamp("us", tz="UTC"),
}


def arrow_schema(schema: Schema) -> pa.Schema:
    """Return the Arrow schema of the attribute columns, in declared order, all nullable."""
    return pa.schema([pa.field(f.name, ARROW_TYPES[f.type], nullable=True) for f in schema])


@dataclass(frozen=True, slots=True)
class ModelVectors:
    """Vectors (n, d) float32 of the model `model`; a row of NaN: that record has none."""

    model: str
    vectors: Float32Matrix


def lacking(vectors: Float32Matrix) -> npt.NDArray[np.bool_]:
    """Return which rows of (n, d) vectors are NaN, (n,) bool: records without a vector."""
    return np.isnan(vectors[:, 0])


@dataclass(frozen=True, slots=True)
class RecordBatch:
    """Rows to write: `n` ids, vectors (n, d) float32 C-contiguous, attributes, payloads.

    `vectors` are those of `model`, empty for the first model of the collection. `further` are the
    vectors of other models. With more than one model a row may be NaN: see `ModelVectors`.
    `attributes` has exactly the columns of `arrow_schema(schema)`; `payloads` holds UTF-8 JSON
    or null. All four have `n` rows (Arrow counts none where there are no columns). Vectors of
    cosine collections are already of unit length.
    """

    ids: pa.StringArray
    vectors: Float32Matrix
    attributes: pa.RecordBatch
    payloads: pa.BinaryArray
    model: str = ""
    further: tuple[ModelVectors, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        columns = self.ids.nbytes + self.attributes.nbytes + self.payloads.nbytes
        return columns + self.vectors.nbytes + sum(one.vectors.nbytes for one in self.further)

    def id_list(self) -> list[str]:
        """Return the ids as Python strings."""
        return cast("list[str]", self.ids.to_pylist())  # ids are never null

    def take(self, rows: npt.NDArray[np.int64]) -> RecordBatch:
        """Return the given rows, in the given order."""
        index: pa.Int64Array = pa.array(rows, type=pa.int64())
        return RecordBatch(
            ids=self.ids.take(index),
            vectors=np.ascontiguousarray(self.vectors[rows]),
            attributes=self.attributes.take(index),
            payloads=self.payloads.take(index),
            model=self.model,
            further=_taken(self.further, rows),
        )


@dataclass(frozen=True, slots=True)
class RecordPatch:
    """Parts of `n` records to replace; the other parts stay as they are.

    `attributes` has some of the columns of `arrow_schema(schema)`, in their order; null takes a
    value away. `payloads` (null takes the payload away) and `vectors` (n, d), those of `model` as
    in `RecordBatch`, are None to stay. `further` are the vectors of other models to replace.
    """

    ids: pa.StringArray
    attributes: pa.RecordBatch
    payloads: pa.BinaryArray | None = None
    vectors: Float32Matrix | None = None
    model: str = ""
    further: tuple[ModelVectors, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        parts = (self.ids, self.attributes, self.payloads, self.vectors)
        own = sum(0 if part is None else part.nbytes for part in parts)
        return own + sum(one.vectors.nbytes for one in self.further)

    def take(self, rows: npt.NDArray[np.int64]) -> RecordPatch:
        """Return the given rows, in the given order."""
        index: pa.Int64Array = pa.array(rows, type=pa.int64())
        return RecordPatch(
            ids=self.ids.take(index),
            attributes=self.attributes.take(index)
            if self.attributes.num_columns
            else self.attributes,
            payloads=None if self.payloads is None else self.payloads.take(index),
            vectors=None if self.vectors is None else np.ascontiguousarray(self.vectors[rows]),
            model=self.model,
            further=_taken(self.further, rows),
        )

    def applied_to(self, records: RecordSet) -> RecordBatch:
        """Return whole records: `records`, which have everything, with the parts of the patch.

        Row i of both is one record. A model that both have vectors of has those of the patch, where
        they are not NaN.
        """
        assert records.attributes is not None
        assert records.payloads is not None
        assert records.vectors is not None
        mine = self.attributes.schema.names
        names = records.attributes.schema.names
        columns = [
            self.attributes.column(name)
            if name in mine
            else plain_column(records.attributes.column(name))
            for name in names
        ]
        own = () if self.vectors is None else (ModelVectors(self.model, self.vectors),)
        given = {one.model: one.vectors for one in (*own, *self.further)}
        vectors, *further = [
            ModelVectors(one.model, _patched(one.vectors, given.pop(one.model, None)))
            for one in (ModelVectors(records.model, records.vectors), *records.further)
        ]
        further += [ModelVectors(name, matrix) for name, matrix in given.items()]
        return RecordBatch(
            ids=self.ids,
            vectors=vectors.vectors,
            model=vectors.model,
            further=tuple(further),
            attributes=pa.RecordBatch.from_arrays(columns, names=names)
            if names
            else records.attributes,
            payloads=records.payloads if self.payloads is None else self.payloads,
        )


@dataclass(frozen=True, slots=True)
class Projection:
    """What to return of each record beside its id.

    `attributes`: the names wanted; None means all; empty means none. `models`: the models whose
    vectors are wanted; empty means the one that answers. A node adds their `dimensions` in floats.
    """

    attributes: tuple[str, ...] | None = ()
    payload: bool = False
    vector: bool = False
    version: bool = False
    models: tuple[str, ...] = ()
    dimensions: tuple[int, ...] = ()

    @property
    def ids_only(self) -> bool:
        """Whether nothing but ids (and scores) is wanted."""
        return self == IDS_ONLY


IDS_ONLY = Projection()
EVERYTHING = Projection(attributes=None, payload=True, vector=True, version=True)


@dataclass(frozen=True, slots=True)
class RecordSet:
    """Rows that were read: ids and, where the projection asked for them, the rest; else None.

    `vectors` are those of `model`, empty for the one that answers; `further` are those of more
    models. In a collection with several models a row may be NaN: see `ModelVectors`.
    """

    ids: list[str]
    attributes: pa.RecordBatch | None = None
    payloads: pa.BinaryArray | None = None
    vectors: Float32Matrix | None = None
    versions: Versions | None = None
    model: str = ""
    further: tuple[ModelVectors, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_only_ids(self) -> bool:
        """Whether nothing but ids was read."""
        parts = (self.attributes, self.payloads, self.vectors, self.versions)
        return not self.further and all(part is None for part in parts)


def vectors_of(records: RecordSet, model: str) -> Float32Matrix | None:
    """Return the (n, d) vectors of `model`, rows of NaN where a record has none; None: not read."""
    if records.model == model:
        return records.vectors
    return next((one.vectors for one in records.further if one.model == model), None)


def take_records(parts: Sequence[RecordSet], rows: npt.NDArray[np.int64]) -> RecordSet:
    """Return the given rows of the concatenation of `parts`, which have the same columns.

    A part without rows may lack columns that the others have. Keyword columns become plain: their
    dictionaries differ from segment to segment.
    """
    filled = [part for part in parts if len(part)]
    if not filled:
        return parts[0] if parts else RecordSet(ids=[])
    ids = [record_id for part in filled for record_id in part.ids]
    index: pa.Int64Array = pa.array(rows, type=pa.int64())
    attributes = [part.attributes for part in filled if part.attributes is not None]
    payloads = [part.payloads for part in filled if part.payloads is not None]
    vectors = [part.vectors for part in filled if part.vectors is not None]
    versions = [part.versions for part in filled if part.versions is not None]
    return RecordSet(
        ids=[ids[row] for row in rows.tolist()],
        attributes=_joined(attributes).take(index) if attributes else None,
        payloads=pa.concat_arrays(payloads).take(index) if payloads else None,
        vectors=np.concatenate(vectors)[rows] if vectors else None,
        versions=np.concatenate(versions)[rows] if versions else None,
        model=filled[0].model,
        further=tuple(
            ModelVectors(
                one.model, np.concatenate([part.further[number].vectors for part in filled])[rows]
            )
            for number, one in enumerate(filled[0].further)
        ),
    )


def join_records(
    parts: Sequence[RecordSet], positions: Sequence[npt.NDArray[np.int64]]
) -> RecordSet:
    """Return one set in which row i of `parts[j]` stands at `positions[j][i]`.

    One part alone is returned as it is: its positions are 0, 1 and so on.
    """
    if len(parts) <= 1:
        return parts[0] if parts else RecordSet(ids=[])
    return take_records(parts, np.argsort(np.concatenate(positions), kind="stable"))


def slice_records(records: RecordSet, low: int, high: int) -> RecordSet:
    """Return the rows from `low` to `high`, sharing the columns."""
    attributes, payloads, vectors = records.attributes, records.payloads, records.vectors
    versions = records.versions
    return RecordSet(
        ids=records.ids[low:high],
        attributes=None if attributes is None else attributes.slice(low, high - low),
        payloads=None if payloads is None else payloads.slice(low, high - low),
        vectors=None if vectors is None else vectors[low:high],
        versions=None if versions is None else versions[low:high],
        model=records.model,
        further=tuple(ModelVectors(one.model, one.vectors[low:high]) for one in records.further),
    )


def plain_column(column: pa.Array[Any]) -> pa.Array[Any]:
    """Return a dictionary-encoded column as its values, every other column as it is."""
    return column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column


def _taken(
    further: Sequence[ModelVectors], rows: npt.NDArray[np.int64]
) -> tuple[ModelVectors, ...]:
    return tuple(
        ModelVectors(one.model, np.ascontiguousarray(one.vectors[rows])) for one in further
    )


def _patched(stored: Float32Matrix, given: Float32Matrix | None) -> Float32Matrix:
    """Return the rows of `given` where they are not NaN, of `stored` elsewhere."""
    if given is None:
        return np.ascontiguousarray(stored, dtype=np.float32)
    absent = lacking(given)
    if not absent.any():
        return np.ascontiguousarray(given, dtype=np.float32)
    return np.where(absent[:, None], stored, given).astype(np.float32)


def _joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    names = batches[0].schema.names
    columns = [
        pa.concat_arrays([plain_column(batch.column(name)) for batch in batches]) for name in names
    ]
    return pa.RecordBatch.from_arrays(columns, names=names)
