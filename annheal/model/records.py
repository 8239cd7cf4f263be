"""Rows in memory: columns, never one Python object per row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.model.collection import AttributeType, Schema

Float32Matrix: TypeAlias = npt.NDArray[np.float32]

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
class RecordBatch:
    """Rows to write: `n` ids, vectors (n, d) float32 C-contiguous, attributes, payloads.

    `attributes` has exactly the columns of `arrow_schema(schema)`; `payloads` holds UTF-8 JSON
    or null. All four have `n` rows (Arrow counts none where there are no columns). Vectors of
    cosine collections are already of unit length.
    """

    ids: pa.StringArray
    vectors: Float32Matrix
    attributes: pa.RecordBatch
    payloads: pa.BinaryArray

    def __len__(self) -> int:
        return len(self.ids)

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
        )


@dataclass(frozen=True, slots=True)
class Projection:
    """What to return of each record beside its id.

    `attributes`: the names wanted; None means all; empty means none.
    """

    attributes: tuple[str, ...] | None = ()
    payload: bool = False
    vector: bool = False

    @property
    def ids_only(self) -> bool:
        """Whether nothing but ids (and scores) is wanted."""
        return self.attributes == () and not self.payload and not self.vector


IDS_ONLY = Projection()
EVERYTHING = Projection(attributes=None, payload=True, vector=True)


@dataclass(frozen=True, slots=True)
class RecordSet:
    """Rows that were read: ids and, where the projection asked for them, the rest; else None."""

    ids: list[str]
    attributes: pa.RecordBatch | None = None
    payloads: pa.BinaryArray | None = None
    vectors: Float32Matrix | None = None

    def __len__(self) -> int:
        return len(self.ids)
