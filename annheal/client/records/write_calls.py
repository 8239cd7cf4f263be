"""Calls that write records by id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from annheal.client.arguments import as_count, as_text
from annheal.client.connection import ServerConnection, without_effect
from annheal.client.inputs import (
    AttributesInput,
    FilterInput,
    PayloadsInput,
    VersionsInput,
    as_filter,
    as_ids,
    as_versions,
    check_same_names,
    check_some_vector,
    in_callers_words,
    rows_renamed,
)
from annheal.client.records.parts import parts, rows_from
from annheal.client.records.rows import Coding, Rows, last_of_each, requests, uncoded
from annheal.client.results import WriteResult
from annheal.errors import AnnhealError, InvalidArgument
from annheal.model.limits import WRITE_ROWS_MAX
from annheal.model.records import Versions
from annheal.model.values.answer_size import ANSWER_TOO_LARGE
from annheal.model.write import VersionConflict
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import is_retryable
from annheal.runtime.tasks import run_all
from annheal.wire.records import Written

BATCH_ROWS: Final = 2_000
"""Rows of one request of a write, unless the caller says otherwise."""
TEXT_BATCH_ROWS: Final = 256
"""Rows of one upsert request that the server has to embed: an embedder is slow, and a call has its
time."""
CONCURRENCY: Final = 4
CONCURRENCY_MAX: Final = 64

Progress = Callable[[int, int], None]
"""Called with rows acknowledged and rows in all."""


@dataclass(slots=True)
class _Outcome:
    """What the requests of one call have written so far, and what they have not."""

    count: int = 0
    missing: list[str] = field(default_factory=list)
    conflicts: list[VersionConflict] = field(default_factory=list)

    def add(self, written: Written) -> None:
        self.count += written.count
        self.missing += written.missing
        self.conflicts += written.conflicts


SendRows = Callable[[Rows, float], Awaitable[Written]]
"""Sends one request; its second argument is the time for it in seconds."""


@dataclass(frozen=True, slots=True)
class _Write:
    """One call: its collection, its attributes, how a request is sent, and what came of it."""

    collection: str
    coding: Coding
    send: SendRows
    is_conditional: bool
    outcome: _Outcome = field(default_factory=_Outcome)


class WriteCalls:
    """Part of `AsyncClient`."""

    _connection: ServerConnection

    async def upsert(
        self,
        collection: str,
        ids: Iterable[str],
        vectors: Any = None,
        *,
        texts: Any = None,
        attributes: AttributesInput = None,
        payloads: PayloadsInput = None,
        model: str | None = None,
        if_versions: VersionsInput = None,
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
                travel as float32. For several models a mapping of their names to such vectors, in
                which None says that a record has none of a model.
            texts: n texts that the server embeds instead; they are not stored. Without vectors and
                texts the source of the collection's model gives them, such as `{name}: {summary}`
                over attributes and payloads.
            attributes: columns by name, a mapping a row, an Arrow table or a DataFrame, of n rows.
                A missing value is None. What is left out has no value. What the declared type does
                not hold exactly is refused (docs/python-sdk.md has the table).
            payloads: a JSON value a row, or None; `bytes` are JSON already.
            model: the model that made the vectors, without it the serving one; refused when the
                collection does not have it.
            if_versions: n wanted versions, as reads return them: a record is written only while it
                has this version; 0: while it does not exist. Records that have another one are the
                result's `conflicts`. An id must not repeat.
            batch_rows: rows of one request, at most 10,000; without vectors at most 256 are sent.
            concurrency: requests under way at once.
            progress: called with (rows acknowledged, n) after every request.
            timeout_s: time for each request; the client's by default.

        If the collection was dropped and created again with another schema since this client last
        saw it, a request that the server refuses is sent once more, by the new schema.

        Raises:
            InvalidArgument: something does not fit; the field has the row as the caller counts it.
                Nothing was written if it was found here.
            UnknownOutcome: the answer was lost. Without conditions the call can be repeated; with
                them, read the records first: what was written has another version now.
            AnnhealError: a request failed for good. Others may have been written.
        """
        api = self._connection.api
        rows = uncoded(ids, vectors, payloads, if_versions, texts=texts, model=model)
        check_some_vector(rows.vectors)
        if not rows.vectors:
            if model is not None:
                raise InvalidArgument.of(
                    "model", "belongs to vectors; texts are embedded by the collection's own model"
                )
            batch_rows = min(as_count(batch_rows, "batch_rows", least=1), TEXT_BATCH_ROWS)

        async def send(rows: Rows, left_s: float) -> Written:
            return await api.upsert(
                collection,
                ids=rows.ids,
                vectors=rows.tagged,
                texts=rows.texts,
                attributes=rows.attributes,
                payloads=rows.payloads,
                if_versions=rows.if_versions,
                timeout_s=left_s,
            )

        return await self._write(
            collection, rows, attributes, send, batch_rows, concurrency, progress, timeout_s
        )

    async def update(
        self,
        collection: str,
        ids: Iterable[str],
        *,
        attributes: AttributesInput = None,
        payloads: PayloadsInput = None,
        vectors: Any = None,
        model: str | None = None,
        if_versions: VersionsInput = None,
        batch_rows: int = BATCH_ROWS,
        concurrency: int = CONCURRENCY,
        progress: Progress | None = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Replace parts of records that exist; what is not given stays as it is.

        Args as for `upsert`, and:
            attributes: the attributes to replace, in every row the same ones. None takes the value
                of a row away.
            payloads: replace whole payloads; None takes the payload of a row away.
            vectors: replace the vectors of `model`, (n, d), or those of several models by name. The
                vectors of other models stay, and so do those for which there is None.

        Ids that do not exist are the result's `missing`; they are no error. Rows of one id that are
        updated at the same time do not overwrite each other's other parts.

        Raises as `upsert` does.
        """
        if attributes is None and payloads is None and vectors is None:
            raise InvalidArgument.of(
                "attributes", "nothing to change; give attributes, payloads or vectors"
            )
        check_same_names(attributes)
        api = self._connection.api
        rows = uncoded(ids, vectors, payloads, if_versions, model=model)

        async def send(rows: Rows, left_s: float) -> Written:
            return await api.update(
                collection,
                ids=rows.ids,
                vectors=rows.tagged,
                attributes=rows.attributes,
                payloads=rows.payloads,
                if_versions=rows.if_versions,
                timeout_s=left_s,
            )

        return await self._write(
            collection, rows, attributes, send, batch_rows, concurrency, progress, timeout_s
        )

    async def _write(
        self,
        collection: str,
        rows: Rows,
        attributes: AttributesInput,
        send: SendRows,
        batch_rows: int,
        concurrency: int,
        progress: Progress | None,
        timeout_s: float | None,
    ) -> WriteResult:
        """Cut `rows` into requests and send them, several at once."""
        as_text(collection, "collection")
        as_count(batch_rows, "batch_rows", least=1, most=WRITE_ROWS_MAX)
        as_count(concurrency, "concurrency", least=1, most=CONCURRENCY_MAX)
        deadline = self._connection.deadline(timeout_s)
        if not len(rows):
            return WriteResult(0, self._connection.session(collection))
        coding = await self._coding(collection, attributes, rows=len(rows), deadline=deadline)
        rows = last_of_each(coding.coded(rows))
        write = _Write(collection, coding, send, rows.if_versions is not None)
        total, done = len(rows), 0
        pending = requests(rows, batch_rows)

        async def send_all() -> None:
            nonlocal done
            # All senders draw from one iterator: whoever is free takes the next request.
            for request in pending:
                await self._request(write, request, timeout_s=timeout_s)
                done += len(request)
                if progress is not None:
                    progress(done, total)

        await run_all((send_all() for _ in range(concurrency)), name="annheal-write")
        outcome = write.outcome
        return WriteResult(
            outcome.count,
            self._connection.session(collection),
            tuple(outcome.missing),
            tuple(outcome.conflicts),
        )

    async def _coding(
        self, collection: str, given: AttributesInput, *, rows: int, deadline: Deadline
    ) -> Coding:
        """Return the attributes as columns of the schema that the collection has now."""
        known = await self._connection.collection(collection, deadline=deadline)
        try:
            return Coding(given, rows=rows, collection=known)
        except InvalidArgument:
            current = await self._connection.current_collection(collection, deadline=deadline)
            if current.id == known.id:
                raise
            # What was known is a collection that was dropped; this one has its name.
            return Coding(given, rows=rows, collection=current)

    async def _request(self, write: _Write, rows: Rows, *, timeout_s: float | None) -> None:
        """Send `rows`; in halves if the records that they update are too large together.

        Once more if they were refused by the schema of another collection. The server validates a
        whole request before it writes a row, so a refused one wrote nothing.
        """
        deadline = self._connection.deadline(timeout_s)
        if rows.coded_for != write.coding.collection_id:
            rows = write.coding.coded(rows)
        try:
            await self._once(write, rows, deadline=deadline)
        except InvalidArgument as error:
            if error.reason == ANSWER_TOO_LARGE and len(rows) > 1:
                for half in rows.halves():
                    await self._request(write, half, timeout_s=timeout_s)
                return
            current = await self._connection.current_collection(write.collection, deadline=deadline)
            if current.id == rows.coded_for:
                raise
            write.coding.change_to(current)
            await self._once(write, write.coding.coded(rows), deadline=deadline)

    async def _once(self, write: _Write, rows: Rows, *, deadline: Deadline) -> None:
        try:
            written = await self._connection.write(
                lambda left_s: write.send(rows, left_s),
                deadline=deadline,
                retryable=without_effect if write.is_conditional else is_retryable,
            )
        except AnnhealError as error:
            self._connection.forget_after(write.collection, error)
            if isinstance(error, InvalidArgument):
                rename = rows_renamed(lambda row: int(rows.places[row]))
                raise in_callers_words(error, rename) from error
            raise
        self._connection.remember(write.collection, written.session)
        write.outcome.add(written)

    async def delete(
        self,
        collection: str,
        ids: Iterable[str] | None = None,
        *,
        filter: FilterInput = None,
        if_versions: VersionsInput = None,
        timeout_s: float | None = None,
    ) -> WriteResult:
        """Delete by id, or everything that matches `filter`; give one of the two.

        Ids that do not exist are no error. Returns how many records were deleted.

        `if_versions`: a wanted version for each id, at least 1; a record is deleted only while it
        has this version. Others are the result's `conflicts`.
        """
        deadline, api = self._connection.deadline(timeout_s), self._connection.api
        as_text(collection, "collection")
        if (ids is None) == (filter is None):
            raise InvalidArgument.of("ids", "give either ids or a filter")
        if ids is None:
            if if_versions is not None:
                raise InvalidArgument.of("if_versions", "belongs to ids; a filter has no versions")
            tree = as_filter(filter)
            assert tree is not None
            written = await self._connection.write(
                lambda left_s: api.delete_where(collection, filter=tree, timeout_s=left_s),
                deadline=deadline,
            )
            self._connection.remember(collection, written.session)
            return WriteResult(written.count, self._connection.session(collection))
        names = as_ids(ids, ordered=if_versions is not None)
        versions = as_versions(if_versions, rows=len(names))
        outcome = _Outcome()
        for start, part in parts(names, WRITE_ROWS_MAX):
            wanted = None if versions is None else versions[start : start + len(part)]

            async def once(
                left_s: float, part: list[str] = part, wanted: Versions | None = wanted
            ) -> Written:
                return await api.delete_ids(
                    collection, ids=part, if_versions=wanted, timeout_s=left_s
                )

            retryable = is_retryable if wanted is None else without_effect
            with rows_from(start):
                written = await self._connection.write(once, deadline=deadline, retryable=retryable)
            self._connection.remember(collection, written.session)
            outcome.add(written)
        return WriteResult(
            outcome.count,
            self._connection.session(collection),
            conflicts=tuple(outcome.conflicts),
        )
