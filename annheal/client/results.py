"""What reads return: columns, with views of single rows made only when somebody looks at one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.model.records import Float32Matrix, RecordSet, Versions
from annheal.model.search import SegmentExplain
from annheal.model.session import SessionToken
from annheal.model.values.reading import value_at
from annheal.model.write import VersionConflict
from annheal.wire.search import JoinedModels


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it was read; what was not asked for is None.

    `attributes` holds the values that are there; `vector` is (d,) float32, None if the record has
    none of the model. `vectors` has those of several models that were asked for, None for one that
    it lacks. `version` grows with every write to the record.
    """

    id: str
    attributes: Mapping[str, Any] | None = None
    payload: Any = None
    vector: npt.NDArray[np.float32] | None = None
    version: int | None = None
    vectors: Mapping[str, npt.NDArray[np.float32] | None] | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer to a query: a record and its score (see `SearchResult.scores`).

    `model` is the one that found it, where two models answered the search (`JoinedModels`).
    """

    id: str
    score: float
    attributes: Mapping[str, Any] | None = None
    payload: Any = None
    vector: npt.NDArray[np.float32] | None = None
    version: int | None = None
    model: str | None = None


class Records(Sequence[Record]):
    """Records in columns; indexing gives one as a `Record`.

    `attributes` is a `pyarrow.RecordBatch`, `payloads` a `pyarrow.BinaryArray` of JSON, `vectors`
    (n, d) float32, `versions` (n,) int64; each is None when it was not asked for. A vector of NaN:
    the record has none of the model `model`. `cursor`
    continues the scan that returned them; empty behind the last page, and where they come from no
    scan.
    """

    __slots__ = ("_by_model", "_columns", "cursor")

    def __init__(self, columns: RecordSet, *, cursor: str = "", by_model: bool = False) -> None:
        self._columns = columns
        self._by_model = by_model
        self.cursor = cursor

    @property
    def ids(self) -> list[str]:
        """The ids."""
        return self._columns.ids

    @property
    def attributes(self) -> pa.RecordBatch | None:
        """One column an attribute."""
        return self._columns.attributes

    @property
    def payloads(self) -> pa.BinaryArray | None:
        """JSON, null where a record has none."""
        return self._columns.payloads

    @property
    def vectors(self) -> Float32Matrix | None:
        """(n, d) float32, of the first model if several were asked for."""
        return self._columns.vectors

    @property
    def model(self) -> str:
        """The model of `vectors`; empty if they were not asked for."""
        return self._columns.model

    @property
    def is_by_model(self) -> bool:
        """Whether several models were asked for, so that records have `vectors`."""
        return self._by_model

    @property
    def vectors_by_model(self) -> dict[str, Float32Matrix]:
        """The vectors of every model that was asked for, (n, d) float32."""
        return vectors_by_model(self._columns)

    @property
    def versions(self) -> Versions | None:
        """(n,) int64."""
        return self._columns.versions

    def __len__(self) -> int:
        return len(self._columns.ids)

    def __iter__(self) -> Iterator[Record]:
        return (self._at(row) for row in range(len(self)))

    @overload
    def __getitem__(self, row: int) -> Record: ...
    @overload
    def __getitem__(self, row: slice) -> Sequence[Record]: ...
    def __getitem__(self, row: int | slice) -> Record | Sequence[Record]:
        if isinstance(row, slice):
            return [self._at(number) for number in range(*row.indices(len(self)))]
        return self._at(_row_number(row, len(self)))

    def _at(self, row: int) -> Record:
        columns = self._columns
        return Record(
            columns.ids[row],
            attributes_at(columns, row),
            payload_at(columns, row),
            None if self._by_model else vector_at(columns.vectors, row),
            version_at(columns, row),
            _vectors_at(columns, row) if self._by_model else None,
        )


class SearchResult(Sequence[Hit]):
    """The hits of one query, best first; indexing gives one as a `Hit`.

    `scores` is (hits,) float32: similarity for cosine and inner product, squared Euclidean
    distance for l2. `below_objective`: part of the answer comes from graphs that were measured
    below the recall objective, and exact comparison would exceed the collection's `recall_budget`.
    `joined`: set where two models answered, because the collection's model is being changed.
    """

    __slots__ = (
        "_columns",
        "_start",
        "below_objective",
        "explain",
        "ids",
        "joined",
        "missing_shards",
        "scores",
    )

    def __init__(
        self,
        columns: RecordSet,
        scores: npt.NDArray[np.float32],
        *,
        start: int = 0,
        missing_shards: tuple[int, ...] = (),
        explain: tuple[SegmentExplain, ...] = (),
        below_objective: bool = False,
        joined: JoinedModels | None = None,
    ) -> None:
        self._columns = columns
        self._start = start
        self.joined = joined
        self.ids: list[str] = columns.ids[start : start + len(scores)]
        self.scores = scores
        self.missing_shards = missing_shards
        self.explain = explain
        self.below_objective = below_objective

    @property
    def partial(self) -> bool:
        """Whether shards did not answer, so that better hits may be missing."""
        return bool(self.missing_shards)

    @property
    def attributes(self) -> pa.RecordBatch | None:
        """One column an attribute, one row a hit; None when none was asked for."""
        columns = self._columns.attributes
        return None if columns is None else columns.slice(self._start, len(self.scores))

    @property
    def vectors(self) -> Float32Matrix | None:
        """(hits, d) float32; None when they were not asked for."""
        vectors = self._columns.vectors
        return None if vectors is None else vectors[self._start : self._start + len(self.scores)]

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Hit]:
        return (self._at(rank) for rank in range(len(self)))

    @overload
    def __getitem__(self, rank: int) -> Hit: ...
    @overload
    def __getitem__(self, rank: slice) -> Sequence[Hit]: ...
    def __getitem__(self, rank: int | slice) -> Hit | Sequence[Hit]:
        if isinstance(rank, slice):
            return [self._at(number) for number in range(*rank.indices(len(self)))]
        return self._at(_row_number(rank, len(self)))

    def __repr__(self) -> str:
        return f"SearchResult({len(self)} hits: {list(zip(self.ids, self.scores, strict=True))})"

    def _at(self, rank: int) -> Hit:
        columns, row = self._columns, self._start + rank
        return Hit(
            columns.ids[row],
            float(self.scores[rank]),
            attributes_at(columns, row),
            payload_at(columns, row),
            vector_at(columns.vectors, row),
            version_at(columns, row),
            None if self.joined is None else self.joined.model_at(row),
        )


class SearchBatch(Sequence[SearchResult]):
    """The answers to several queries, in the order of the queries.

    `below_objective` and `joined` are about all of them; see `SearchResult`.
    """

    __slots__ = (
        "_columns",
        "_scores",
        "_starts",
        "below_objective",
        "explain",
        "joined",
        "missing_shards",
    )

    def __init__(
        self,
        columns: RecordSet,
        scores: npt.NDArray[np.float32],
        counts: npt.NDArray[np.int32],
        *,
        missing_shards: tuple[int, ...] = (),
        explain: tuple[SegmentExplain, ...] = (),
        below_objective: bool = False,
        joined: JoinedModels | None = None,
    ) -> None:
        self._columns = columns
        self.joined = joined
        self._scores = scores
        self._starts = np.concatenate(([0], np.cumsum(counts))).tolist()
        self.missing_shards = missing_shards
        self.explain = explain
        self.below_objective = below_objective

    @property
    def partial(self) -> bool:
        """Whether shards did not answer, so that better hits may be missing."""
        return bool(self.missing_shards)

    @property
    def ids(self) -> list[list[str]]:
        """The ids of the hits, one list a query."""
        starts, ids = self._starts, self._columns.ids
        return [ids[starts[i] : starts[i + 1]] for i in range(len(self))]

    @property
    def scores(self) -> list[npt.NDArray[np.float32]]:
        """The scores of the hits, (hits,) float32 a query."""
        starts = self._starts
        return [self._scores[starts[i] : starts[i + 1]] for i in range(len(self))]

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, query: int) -> SearchResult: ...
    @overload
    def __getitem__(self, query: slice) -> Sequence[SearchResult]: ...
    def __getitem__(self, query: int | slice) -> SearchResult | Sequence[SearchResult]:
        if isinstance(query, slice):
            return [self[number] for number in range(*query.indices(len(self)))]
        number = _row_number(query, len(self))
        start = self._starts[number]
        return SearchResult(
            self._columns,
            self._scores[start : self._starts[number + 1]],
            start=start,
            missing_shards=self.missing_shards,
            explain=self.explain,
            below_objective=self.below_objective,
            joined=self.joined,
        )


@dataclass(frozen=True, slots=True)
class WriteResult:
    """An acknowledged write: rows written or deleted, and the tokens to read it elsewhere.

    `missing` are ids to update that do not exist. `conflicts` are records whose version is another
    one than `if_versions` asked for, with the version that they have. Neither were written.
    """

    count: int
    session: SessionToken | None = field(default=None, repr=False)
    missing: tuple[str, ...] = ()
    conflicts: tuple[VersionConflict, ...] = ()


def attributes_at(columns: RecordSet, row: int) -> dict[str, Any] | None:
    """Return the attributes of one row that have a value.

    A moment that no datetime holds (older versions took any year) comes as a numpy datetime64.
    """
    table = columns.attributes
    if table is None:
        return None
    values = ((name, value_at(table.column(i), row)) for i, name in enumerate(table.schema.names))
    return {name: value for name, value in values if value is not None}


def vectors_by_model(columns: RecordSet) -> dict[str, Float32Matrix]:
    """Return the vectors of every model that was read, (n, d) float32."""
    own = {} if columns.vectors is None else {columns.model: columns.vectors}
    return own | {one.model: one.vectors for one in columns.further}


def vector_at(vectors: Float32Matrix | None, row: int) -> npt.NDArray[np.float32] | None:
    """Return the vector of one row; None: it has none."""
    if vectors is None:
        return None
    found: npt.NDArray[np.float32] = vectors[row]
    return None if len(found) and np.isnan(found[0]) else found


def _vectors_at(columns: RecordSet, row: int) -> dict[str, npt.NDArray[np.float32] | None]:
    return {name: vector_at(one, row) for name, one in vectors_by_model(columns).items()}


def version_at(columns: RecordSet, row: int) -> int | None:
    """Return the version of one row."""
    return None if columns.versions is None else int(columns.versions[row])


def payload_at(columns: RecordSet, row: int) -> Any:
    """Return the payload of one row, parsed."""
    if columns.payloads is None:
        return None
    text = columns.payloads[row]
    return msgspec.json.decode(text.as_py()) if text.is_valid else None


def _row_number(row: int, length: int) -> int:
    if not -length <= row < length:
        raise IndexError(f"{row} of {length}")
    return row % length
