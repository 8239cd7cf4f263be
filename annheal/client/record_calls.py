"""Calls that write and read records by id."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.client.arguments import as_count, as_text
from annheal.client.connection import ServerConnection
from annheal.client.inputs import (
    AttributesInput,
    FilterInput,
    PayloadsInput,
    as_attributes,
    as_filter,
    as_ids,
    as_matrix,
    as_payloads,
    as_projection,
    in_callers_words,
    rows_renamed,
)
from annheal.client.public_api import ReadFreshness
from annheal.client.results import Records, WriteResult
from annheal.errors import AnnhealError, InvalidArgument
from annheal.model.collection import Collection
from annheal.model.limits import GET_IDS_MAX, REQUEST_BYTES_MAX, SCAN_PAGE_ROWS_MAX, WRITE_ROWS_MAX
from annheal.model.records import RecordSet
from annheal.model.search import Consistency
from annheal.model.session import SessionToken
from annheal.model.values.answer_size import ANSWER_TOO_LARGE
from annheal.runtime.deadline import Deadline
from annheal.runtime.tasks import run_all

BATCH_ROWS: Final = 2_000
"""Rows of one upsert request, unless the caller says otherwise."""
BATCH_BYTES: Final = 8 << 20
"""Requests are cut at about this size: large ones hold up what shares the connection."""
CONCURRENCY: Final = 4
CONCURRENCY_MAX: Final = 64

Progress = Callable[[int, int], None]
"""Called with rows acknowledged and rows in all."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Columns of one upsert call, cut into requests by slicing; `places` are the caller's rows.

    `attributes` are coded for the schema of the collection with the id `coded_for`.
    """

    ids: list[str]
    vectors: npt.NDArray[Any]
    attributes: dict[str, Any]
    payloads: pa.BinaryArray | None
    places: npt.NDArray[np.int64]
    coded_for: str = ""

    def __len__(self) -> int:
        return len(self.ids)

    def cut(self, start: int, stop: int) -> _Rows:
        return _Rows(
            self.ids[start:stop],
            self.vectors[start:stop],
            {name: column.slice(start, stop - start) for name, column in self.attributes.items()},
            None if self.payloads is None else self.payloads.slice(start, stop - start),
            self.places[start:stop],
            self.coded_for,
        )

    def take(self, rows: npt.NDArray[np.int64]) -> _Rows:
        index: Any = pa.array(rows)
        return _Rows(
            [self.ids[row] for row in rows],
            self.vectors[rows],
            {name: column.take(index) for name, column in self.attributes.items()},
            None if self.payloads is None else self.payloads.take(index),
            self.places[rows],
            self.coded_for,
        )

    @property
    def size_bytes(self) -> int:
        columns: int = sum(column.nbytes for column in self.attributes.values())
        payloads = 0 if self.payloads is None else self.payloads.nbytes
        return self.vectors.size * 4 + columns + payloads + 24 * len(self)


class _Coding:
    """The attributes of one upsert call as columns of the collection's schema.

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

    def change_to(self, collection: Collection) -> None:
        """Make the columns again if `collection` is another one; raises `InvalidArgument`."""
        if collection.id != self.collection_id:
            self._adopt(collection)

    def coded(self, rows: _Rows) -> _Rows:
        """Return `rows` with their attributes in the present coding."""
        columns = self.columns
        if len(rows) != self._rows:
            index: Any = pa.array(rows.places)
            columns = {name: column.take(index) for name, column in columns.items()}
        return replace(rows, attributes=columns, coded_for=self.collection_id)


class RecordCalls:
    """Part of `AsyncClient`."""

    _connection: ServerConnection

    async def upsert(
        self,
        collection: str,
        ids: Iterable[str],
        vectors: Any,
        *,
        attributes: AttributesInput = None,
        payloads: PayloadsInput = None,
        model: str | None = None,
        batch_rows: int = BATCH_ROWS,
        concurrency: int = CONCURRENCY,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Insert records, or wholly replace those with the same id; returns when all are durable.

        Args:
            collection: its name.
            ids: n texts of 1 to 512 bytes. Of equal ids the last row wins.
            vectors: (n, d) numbers of any type, an Arrow column of lists, or nested lists; they
                travel as float32.
            attributes: columns by name, a mapping a row, an Arrow table or a DataFrame, of n rows.
                A missing value is None. What is left out has no value. What the declared type does
                not hold exactly is refused (docs/python-sdk.md has the table).
            payloads: a JSON value a row, or None; `bytes` are JSON already.
            model: the model that made the vectors; refused when the collection has another one.
            batch_rows: rows of one request, at most 10,000.
            concurrency: requests under way at once.
            progress: called with (rows acknowledged, n) after every request.
            timeout_s: time for each request; the client's by default.

        If the collection was dropped and created again with another schema since this client last
        saw it, a request that the server refuses is sent once more, by the new schema.

        Raises:
            InvalidArgument: something does not fit; the field has the row as the caller counts it.
                Nothing was written if it was found here.
            AnnhealError: a request failed for good. Others may have been written; writing is
                idempotent, so the call can be repeated.
        """
        as_text(collection, "collection")
        as_count(batch_rows, "batch_rows", least=1, most=WRITE_ROWS_MAX)
        as_count(concurrency, "concurrency", least=1, most=CONCURRENCY_MAX)
        tag = "" if model is None else as_text(model, "model")
        deadline = self._connection.deadline(timeout_s)
        rows = _uncoded(ids, vectors, payloads)
        if not len(rows):
            return WriteResult(0, self._connection.session(collection))
        coding = await self._coding(collection, attributes, rows=len(rows), deadline=deadline)
        rows = _last_of_each(coding.coded(rows))
        total, done = len(rows), 0
        pending = _requests(rows, batch_rows)

        async def send() -> None:
            nonlocal done
            # All senders draw from one iterator: whoever is free takes the next request.
            for request in pending:
                request_deadline = self._connection.deadline(timeout_s)
                await self._upsert_request(
                    collection, request, tag, coding, deadline=request_deadline
                )
                done += len(request)
                if progress is not None:
                    progress(done, total)

        await run_all((send() for _ in range(concurrency)), name="annheal-upsert")
        return WriteResult(done, self._connection.session(collection))

    async def _coding(
        self, collection: str, given: AttributesInput, *, rows: int, deadline: Deadline
    ) -> _Coding:
        """Return the attributes as columns of the schema that the collection has now."""
        known = await self._connection.collection(collection, deadline=deadline)
        try:
            return _Coding(given, rows=rows, collection=known)
        except InvalidArgument:
            current = await self._connection.current_collection(collection, deadline=deadline)
            if current.id == known.id:
                raise
            # What was known is a collection that was dropped; this one has its name.
            return _Coding(given, rows=rows, collection=current)

    async def _upsert_request(
        self, collection: str, rows: _Rows, model: str, coding: _Coding, *, deadline: Deadline
    ) -> None:
        """Send `rows`; once more if they were refused by the schema of another collection.

        The server validates a whole request before it writes a row, so a refused one wrote nothing.
        """
        if rows.coded_for != coding.collection_id:
            rows = coding.coded(rows)
        try:
            await self._upsert_once(collection, rows, model, deadline=deadline)
        except InvalidArgument:
            current = await self._connection.current_collection(collection, deadline=deadline)
            if current.id == rows.coded_for:
                raise
            coding.change_to(current)
            await self._upsert_once(collection, coding.coded(rows), model, deadline=deadline)

    async def _upsert_once(
        self, collection: str, rows: _Rows, model: str, *, deadline: Deadline
    ) -> None:
        api = self._connection.api
        try:
            _, token = await self._connection.write(
                lambda left_s: api.upsert(
                    collection,
                    ids=rows.ids,
                    vectors=rows.vectors,
                    attributes=rows.attributes,
                    payloads=rows.payloads,
                    model=model,
                    timeout_s=left_s,
                ),
                deadline=deadline,
            )
        except AnnhealError as error:
            self._connection.forget_after(collection, error)
            if isinstance(error, InvalidArgument):
                rename = rows_renamed(lambda row: int(rows.places[row]))
                raise in_callers_words(error, rename) from error
            raise
        self._connection.remember(collection, token)

    async def delete(
        self,
        collection: str,
        ids: Iterable[str] | None = None,
        *,
        filter: FilterInput = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Delete by id, or everything that matches `filter`; give one of the two.

        Ids that do not exist are no error. Returns how many records were deleted.
        """
        deadline, api = self._connection.deadline(timeout_s), self._connection.api
        as_text(collection, "collection")
        if (ids is None) == (filter is None):
            raise InvalidArgument.of("ids", "give either ids or a filter")
        deleted = 0
        if ids is None:
            tree = as_filter(filter)
            assert tree is not None
            deleted, token = await self._connection.write(
                lambda left_s: api.delete_where(collection, filter=tree, timeout_s=left_s),
                deadline=deadline,
            )
            self._connection.remember(collection, token)
            return WriteResult(deleted, self._connection.session(collection))
        for start, part in _parts(as_ids(ids), WRITE_ROWS_MAX):

            async def once(left_s: float, part: list[str] = part) -> tuple[int, SessionToken]:
                return await api.delete_ids(collection, ids=part, timeout_s=left_s)

            with _rows_from(start):
                count, token = await self._connection.write(once, deadline=deadline)
            self._connection.remember(collection, token)
            deleted += count
        return WriteResult(deleted, self._connection.session(collection))

    async def get(
        self,
        collection: str,
        ids: Iterable[str],
        *,
        include: Iterable[str] | str | None = "all",
        consistency: Consistency | str | None = None,
        session: SessionToken | None = None,
        timeout_s: float | None = None,
    ) -> Records:
        """Read records by id, in the order of `ids`; those that do not exist are left out.

        `include`: any of "attributes", "payload", "vector", names of attributes, or "all". Records
        that are too large for one answer are read in several.
        """
        projection, api = as_projection(include), self._connection.api
        deadline = self._connection.deadline(timeout_s)
        as_text(collection, "collection")
        found: list[RecordSet] = []
        pending = deque(_parts(as_ids(ids), GET_IDS_MAX))
        while pending:
            start, part = pending.popleft()

            async def read(freshness: ReadFreshness, part: list[str] = part) -> RecordSet:
                records, token = await self._connection.read(
                    lambda left_s: api.get(
                        collection,
                        ids=part,
                        projection=projection,
                        freshness=freshness,
                        timeout_s=left_s,
                    ),
                    deadline=deadline,
                )
                self._connection.remember(collection, token)
                return records

            try:
                with _rows_from(start):
                    records = await self._connection.fresh_read(
                        collection, consistency, session, read
                    )
            except InvalidArgument as error:
                if error.reason != ANSWER_TOO_LARGE or len(part) == 1:
                    raise
                smaller = _parts(part, _fitting(len(part), error))
                pending.extendleft(reversed([(start + first, names) for first, names in smaller]))
            else:
                found.append(records)
        return Records(_joined(found))

    async def count(
        self,
        collection: str,
        *,
        filter: FilterInput = None,
        consistency: Consistency | str | None = None,
        session: SessionToken | None = None,
        timeout_s: float | None = None,
    ) -> int:
        """Count the records that match `filter` (all without one)."""
        tree, api = as_filter(filter), self._connection.api
        deadline = self._connection.deadline(timeout_s)
        as_text(collection, "collection")

        async def read(freshness: ReadFreshness) -> int:
            return await self._connection.read(
                lambda left_s: api.count(
                    collection, filter=tree, freshness=freshness, timeout_s=left_s
                ),
                deadline=deadline,
            )

        return await self._connection.fresh_read(collection, consistency, session, read)

    async def scan(
        self,
        collection: str,
        *,
        filter: FilterInput = None,
        include: Iterable[str] | str | None = "all",
        page_rows: int = 1_000,
        cursor: str = "",
        timeout_s: float | None = None,
    ) -> AsyncIterator[Records]:
        """Iterate over the collection, page by page, in an order of the server's choice.

        Every record that lives throughout the scan is seen exactly once. A page has `page_rows`
        records or fewer: it ends where its shard ends, and where its records are large. `cursor` is
        that of a page (`Records.cursor`): the scan goes on behind it, in another process too.
        `timeout_s` is for each page.
        """
        as_text(collection, "collection")
        as_count(page_rows, "page_rows", least=1, most=SCAN_PAGE_ROWS_MAX)
        tree, projection, api = as_filter(filter), as_projection(include), self._connection.api
        while True:

            async def page(left_s: float, cursor: str = cursor) -> tuple[RecordSet, str]:
                return await api.scan(
                    collection,
                    filter=tree,
                    projection=projection,
                    page_size=page_rows,
                    cursor=cursor,
                    timeout_s=left_s,
                )

            records, cursor = await self._connection.read(
                page, deadline=self._connection.deadline(timeout_s)
            )
            if len(records):
                yield Records(records, cursor=cursor)
            if not cursor:
                return


def _requests(rows: _Rows, batch_rows: int) -> Iterator[_Rows]:
    start = 0
    row_bytes = max(1, rows.size_bytes // len(rows))
    step = max(1, min(batch_rows, BATCH_BYTES // row_bytes))
    while start < len(rows):
        stop = min(start + step, len(rows))
        yield from _halved(rows.cut(start, stop))
        start = stop


def _halved(rows: _Rows) -> Iterator[_Rows]:
    """Yield `rows`, cut while some payloads make them far larger than the average said."""
    if rows.size_bytes <= REQUEST_BYTES_MAX // 2 or len(rows) == 1:
        yield rows
        return
    middle = len(rows) // 2
    yield from _halved(rows.cut(0, middle))
    yield from _halved(rows.cut(middle, len(rows)))


def _uncoded(ids: Iterable[str], vectors: Any, payloads: PayloadsInput) -> _Rows:
    """Return what the caller gave, without the attributes."""
    names = as_ids(ids, ordered=True)
    matrix = as_matrix(vectors)
    if len(matrix) != len(names):
        raise InvalidArgument.of("vectors", f"has {len(matrix)} rows for {len(names)} ids")
    return _Rows(names, matrix, {}, as_payloads(payloads, rows=len(names)), np.arange(len(names)))


def _last_of_each(rows: _Rows) -> _Rows:
    """Drop all but the last row of each id: requests under way at once have no order."""
    last = {name: row for row, name in enumerate(rows.ids)}
    if len(last) == len(rows):
        return rows
    return rows.take(np.array(sorted(last.values()), dtype=np.int64))


def _parts(ids: list[str], length: int) -> Iterator[tuple[int, list[str]]]:
    for start in range(0, len(ids), length):
        yield start, ids[start : start + length]


@contextmanager
def _rows_from(start: int) -> Iterator[None]:
    """Name rows of a request that begins with the caller's row `start` as the caller counts."""
    try:
        yield
    except InvalidArgument as error:
        raise in_callers_words(error, rows_renamed(lambda row: start + row)) from error


def _fitting(rows: int, error: InvalidArgument) -> int:
    """Return how many of `rows` records, of which all are too large for an answer, may fit."""
    share = int(error.metadata["bytes_max"]) / int(error.metadata["answer_bytes"])
    return max(1, min(int(rows * share), rows // 2))


def _joined(found: Sequence[RecordSet]) -> RecordSet:
    if len(found) == 1:
        return found[0]
    if not found:
        return RecordSet(ids=[])
    tables = [part.attributes for part in found if part.attributes is not None and len(part)]
    payloads: list[Any] = [part.payloads for part in found if part.payloads is not None]
    vectors = [part.vectors for part in found if part.vectors is not None and len(part)]
    joined: Any = pa.concat_arrays(payloads) if payloads else None
    return RecordSet(
        ids=[name for part in found for name in part.ids],
        attributes=pa.Table.from_batches(tables).combine_chunks().to_batches()[0]
        if tables
        else None,
        payloads=joined,
        vectors=np.concatenate(vectors) if vectors else None,
    )
