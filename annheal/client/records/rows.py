"""The rows of one write, as columns that are cut into requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.client.inputs import (
    AttributesInput,
    PayloadsInput,
    VersionsInput,
    as_attributes,
    as_ids,
    as_model_vectors,
    as_payloads,
    as_texts,
    as_versions,
)
from annheal.errors import InvalidArgument
from annheal.model.collection import Collection
from annheal.model.limits import REQUEST_BYTES_MAX
from annheal.model.records import Versions
from annheal.wire.records import GivenVectors

BATCH_BYTES: Final = 8 << 20
"""Requests are cut at about this size: large ones hold up what shares the connection."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of one write, cut into requests by slicing; `places` are the caller's rows.

    What is None is not written; without vectors the server embeds the `texts` of an upsert, or
    those that its source gives. `attributes` are coded for the schema of the collection with the id
    `coded_for`, and vectors that name no model are of its model `serving`. `if_versions` are
    conditions.
    """

    ids: list[str]
    vectors: tuple[GivenVectors, ...]
    attributes: dict[str, Any]
    payloads: pa.BinaryArray | None
    places: npt.NDArray[np.int64]
    if_versions: Versions | None = None
    coded_for: str = ""
    texts: list[str] | None = None
    serving: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int) -> Rows:
        """Return the rows from `start` to `stop`."""
        return Rows(
            self.ids[start:stop],
            tuple(_rows_of(one, slice(start, stop)) for one in self.vectors),
            {name: column.slice(start, stop - start) for name, column in self.attributes.items()},
            None if self.payloads is None else self.payloads.slice(start, stop - start),
            self.places[start:stop],
            None if self.if_versions is None else self.if_versions[start:stop],
            self.coded_for,
            None if self.texts is None else self.texts[start:stop],
            self.serving,
        )

    def take(self, rows: npt.NDArray[np.int64]) -> Rows:
        """Return the given rows, in the given order."""
        index: Any = pa.array(rows)
        return Rows(
            [self.ids[row] for row in rows],
            tuple(_rows_of(one, rows) for one in self.vectors),
            {name: column.take(index) for name, column in self.attributes.items()},
            None if self.payloads is None else self.payloads.take(index),
            self.places[rows],
            None if self.if_versions is None else self.if_versions[rows],
            self.coded_for,
            None if self.texts is None else [self.texts[row] for row in rows],
            self.serving,
        )

    @property
    def size_bytes(self) -> int:
        """About the bytes that they take in a request."""
        columns: int = sum(column.nbytes for column in self.attributes.values())
        payloads = 0 if self.payloads is None else self.payloads.nbytes
        vectors = sum(one.vectors.size * 4 for one in self.vectors)
        texts = 0 if self.texts is None else sum(map(len, self.texts))
        return vectors + texts + columns + payloads + 24 * len(self)

    @property
    def tagged(self) -> tuple[GivenVectors, ...]:
        """The vectors, each with its model; those of models of which no row has one left out."""
        return tuple(
            replace(one, model=one.model or self.serving)
            for one in self.vectors
            if one.absent is None or not one.absent.all()
        )

    def halves(self) -> tuple[Rows, Rows]:
        """Return the first and the second half."""
        middle = len(self) // 2
        return self.cut(0, middle), self.cut(middle, len(self))


def _rows_of(one: GivenVectors, rows: slice | npt.NDArray[np.int64]) -> GivenVectors:
    absent = None if one.absent is None else one.absent[rows]
    return GivenVectors(one.model, one.vectors[rows], absent)


class Coding:
    """The attributes of one write as columns of the collection's schema, and its serving model.

    Made again from what the caller gave when the name belongs to another collection by now.
    """

    def __init__(self, given: AttributesInput, *, rows: int, collection: Collection) -> None:
        self._given = given
        self._rows = rows
        self._adopt(collection)

    def _adopt(self, collection: Collection) -> None:
        self.columns: dict[str, Any] = as_attributes(
            self._given, rows=self._rows, schema=collection.schema
        )
        self.collection_id = collection.id
        self._serving = collection.model.name

    def change_to(self, collection: Collection) -> None:
        """Make the columns again if `collection` is another one; raises `InvalidArgument`."""
        if collection.id != self.collection_id:
            self._adopt(collection)

    def coded(self, rows: Rows) -> Rows:
        """Return `rows` with their attributes in the present coding."""
        columns = self.columns
        if len(rows) != self._rows:
            index: Any = pa.array(rows.places)
            columns = {name: column.take(index) for name, column in columns.items()}
        return replace(
            rows, attributes=columns, coded_for=self.collection_id, serving=self._serving
        )


def uncoded(
    ids: Iterable[str],
    vectors: Any,
    payloads: PayloadsInput,
    if_versions: VersionsInput = None,
    *,
    texts: Any = None,
    model: str | None = None,
) -> Rows:
    """Return what the caller gave, without the attributes."""
    names = as_ids(ids, ordered=True)
    if vectors is not None and texts is not None:
        raise InvalidArgument.of("texts", "is given together with vectors; give one of the two")
    given = None if texts is None else as_texts(texts)
    if given is not None and len(given) != len(names):
        raise InvalidArgument.of("texts", f"has {len(given)} rows for {len(names)} ids")
    return Rows(
        names,
        () if vectors is None else as_model_vectors(vectors, model=model, rows=len(names)),
        {},
        as_payloads(payloads, rows=len(names)),
        np.arange(len(names)),
        as_versions(if_versions, rows=len(names)),
        texts=given,
    )


def last_of_each(rows: Rows) -> Rows:
    """Drop all but the last row of each id: requests under way at once have no order.

    Raises `InvalidArgument` where rows have conditions: the condition of one would be that of all.
    """
    last = {name: row for row, name in enumerate(rows.ids)}
    if len(last) == len(rows):
        return rows
    if rows.if_versions is not None:
        row = next(row for row, name in enumerate(rows.ids) if last[name] != row)
        raise InvalidArgument.of(
            f"ids[{row}]",
            f"{rows.ids[row]!r} is named again in row {last[rows.ids[row]]}; with if_versions name"
            " each id once",
        )
    return rows.take(np.array(sorted(last.values()), dtype=np.int64))


def requests(rows: Rows, batch_rows: int) -> Iterator[Rows]:
    """Yield `rows` in requests of at most `batch_rows` rows and about `BATCH_BYTES` bytes."""
    start = 0
    row_bytes = max(1, rows.size_bytes // len(rows))
    step = max(1, min(batch_rows, BATCH_BYTES // row_bytes))
    while start < len(rows):
        stop = min(start + step, len(rows))
        yield from _halved(rows.cut(start, stop))
        start = stop


def _halved(rows: Rows) -> Iterator[Rows]:
    """Yield `rows`, cut while some payloads make them far larger than the average said."""
    if rows.size_bytes <= REQUEST_BYTES_MAX // 2 or len(rows) == 1:
        yield rows
        return
    for half in rows.halves():
        yield from _halved(half)
