"""What every importer gives: rows in columns, in the order of the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from annheal.model.collection import AttributeType
from annheal.model.records import Float32Matrix


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows: n ids, vectors (n, d) float32, attribute columns, JSON payloads (or None)."""

    ids: list[str]
    vectors: Float32Matrix
    attributes: pa.Table | None = None
    payloads: list[bytes | None] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns become what. None means: choose by name and type.

    `schema` is that of the collection when it exists: it decides which columns are attributes and
    of what type, unless `attributes` names them.
    """

    id: str | None = None
    vector: str | None = None
    attributes: tuple[str, ...] | None = None
    payload: tuple[str, ...] | None = None
    schema: Mapping[str, AttributeType] | None = None
    id_prefix: str = ""
    dataset: str = "train"


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is read: `rows` is None when only reading it through would tell."""

    rows: int | None
    dimension: int
    attributes: Mapping[str, AttributeType] = field(default_factory=dict)
    payload: tuple[str, ...] = ()
    metric: str | None = None


class ImportSource(Protocol):
    """An opened file. Reading the same file again gives the same ids: imports are repeatable."""

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        ...

    def chunks(self, *, rows_max: int, limit: int | None = None) -> Iterator[Chunk]:
        """Yield rows in file order, at most `rows_max` at a time and `limit` in all.

        Raises `InvalidArgument` that names the row for content that cannot be imported.
        """
        ...
