"""What every importer gives: rows in columns, in the order of the file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.model.collection import AttributeType
from annheal.model.records import Float32Matrix

CHUNK_BYTES_MAX: Final = 64 << 20
"""About as many bytes of a file are turned into rows at once, however many rows are asked for."""

Progress = Callable[[int, int], None]
"""Called with bytes read and bytes in all while a file is read through for its columns."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows lie: row i of a chunk is line `lines[i]` of `file`, or row `first_row + i`."""

    file: Path
    first_row: int = 0
    lines: tuple[int, ...] | None = None

    def of(self, row: int) -> str:
        """Return the place of one row, for messages."""
        if self.lines is not None:
            return f"{self.file.name}:{self.lines[row]}"
        return f"{self.file.name}: row {self.first_row + row}"


MaskedVectors: TypeAlias = "np.ma.MaskedArray[Any, np.dtype[np.float32]]"
"""(n, d) float32; a record without a vector is masked as a whole."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows: n ids, vectors (n, d) float32, attribute columns, JSON payloads (or None).

    Where there are vectors of several models, they are in `by_model` instead.
    """

    ids: list[str]
    vectors: Float32Matrix
    place: Place
    attributes: pa.Table | None = None
    payloads: list[bytes | None] | None = None
    by_model: Mapping[str, MaskedVectors] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns become what. None means: choose by name and type.

    `schema` is that of the collection when it exists: it decides which columns are attributes and
    of what type, unless `attributes` names them. `payload_also` go into the payload beside what
    is chosen; `ignored` are left out on purpose. With `are_records` attributes are looked for in
    the column `attributes` alone, where `scan` and `export` put them. `models`, name to dimension,
    are those of an export of several: `vector` then has a member for each. `known_models` are those
    of the collection when it exists, for lines whose vector is such an object.
    """

    id: str | None = None
    vector: str | None = None
    attributes: tuple[str, ...] | None = None
    payload: tuple[str, ...] | None = None
    payload_also: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    schema: Mapping[str, AttributeType] | None = None
    are_records: bool = False
    id_prefix: str = ""
    dataset: str = "train"
    models: Mapping[str, int] = field(default_factory=dict)
    known_models: Mapping[str, int] = field(default_factory=dict)

    @property
    def are_chosen(self) -> bool:
        """Whether the caller chose columns by name."""
        named = (self.id, self.vector, self.attributes, self.payload)
        return any(one is not None for one in named) or bool(self.payload_also or self.ignored)


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file is read.

    `payload` names the columns that make up the payload, or the one that is the payload as it is;
    `not_taken` those that become nothing, because the caller wanted it so.
    """

    rows: int
    dimension: int
    attributes: Mapping[str, AttributeType] = field(default_factory=dict)
    payload: tuple[str, ...] = ()
    not_taken: tuple[str, ...] = ()
    metric: str | None = None


def masked(rows: Float32Matrix, present: npt.NDArray[np.bool_]) -> MaskedVectors:
    """Return the vectors `rows` of the records that are `present` (n,), the others masked."""
    vectors = np.zeros((len(present), rows.shape[1]), dtype=np.float32)
    vectors[present] = rows
    return np.ma.masked_array(vectors, np.broadcast_to(~present[:, None], vectors.shape))


class ImportSource(Protocol):
    """An opened file. Reading the same file again gives the same ids: imports are repeatable."""

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        ...

    def chunks(self, *, rows_max: int, limit: int | None = None, skip: int = 0) -> Iterator[Chunk]:
        """Yield rows in file order behind the first `skip`, at most `limit` in all.

        A chunk has at most `rows_max` rows, fewer where rows are large. Raises `InvalidArgument`
        that names file, row and field for content that cannot be imported.
        """
        ...
