"""Calls that read records."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from annheal.client.arguments import as_count, as_text
from annheal.client.connection import ServerConnection
from annheal.client.inputs import FilterInput, as_filter, as_ids, as_models, as_projection
from annheal.client.public_api import ReadFreshness
from annheal.client.records.parts import parts, rows_from
from annheal.client.results import Records
from annheal.errors import InvalidArgument
from annheal.model.limits import GET_IDS_MAX, SCAN_PAGE_ROWS_MAX
from annheal.model.records import ModelVectors, RecordSet
from annheal.model.search import Consistency
from annheal.model.session import SessionToken
from annheal.model.values.answer_size import ANSWER_TOO_LARGE


class ReadCalls:
    """Part of `AsyncClient`."""

    _connection: ServerConnection

    async def get(
        self,
        collection: str,
        ids: Iterable[str],
        *,
        include: Iterable[str] | str | None = "all",
        model: str | Sequence[str] | None = None,
        consistency: Consistency | str | None = None,
        session: SessionToken | None = None,
        timeout_s: float | None = None,
    ) -> Records:
        """Read records by id, in the order of `ids`; those that do not exist are left out.

        `include`: any of "attributes", "payload", "vector", "version", names of attributes, or
        "all". `model`: the model whose vectors are read, without it the serving one, or a list of
        several. Records that are too large for one answer are read in several.
        """
        projection, by_model = as_models(model, as_projection(include))
        api = self._connection.api
        deadline = self._connection.deadline(timeout_s)
        as_text(collection, "collection")
        found: list[RecordSet] = []
        pending = deque(parts(as_ids(ids), GET_IDS_MAX))
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
                with rows_from(start):
                    records = await self._connection.fresh_read(
                        collection, consistency, session, read
                    )
            except InvalidArgument as error:
                if error.reason != ANSWER_TOO_LARGE or len(part) == 1:
                    raise
                smaller = parts(part, _fitting(len(part), error))
                pending.extendleft(reversed([(start + first, names) for first, names in smaller]))
            else:
                found.append(records)
        return Records(_joined(found), by_model=by_model)

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
        model: str | Sequence[str] | None = None,
        page_rows: int = 1_000,
        cursor: str = "",
        timeout_s: float | None = None,
    ) -> AsyncIterator[Records]:
        """Iterate over the collection, page by page, in an order of the server's choice.

        Every record that lives throughout the scan is seen exactly once. A page has `page_rows`
        records or fewer: it ends where its shard ends, and where its records are large. `cursor` is
        that of a page (`Records.cursor`): the scan goes on behind it, in another process too.
        `model` is as in `get`, `timeout_s` is for each page.
        """
        as_text(collection, "collection")
        as_count(page_rows, "page_rows", least=1, most=SCAN_PAGE_ROWS_MAX)
        projection, by_model = as_models(model, as_projection(include))
        tree, api = as_filter(filter), self._connection.api
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
                yield Records(records, cursor=cursor, by_model=by_model)
            if not cursor:
                return


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
    versions = [part.versions for part in found if part.versions is not None]
    joined: Any = pa.concat_arrays(payloads) if payloads else None
    return RecordSet(
        ids=[name for part in found for name in part.ids],
        attributes=pa.Table.from_batches(tables).combine_chunks().to_batches()[0]
        if tables
        else None,
        payloads=joined,
        vectors=np.concatenate(vectors) if vectors else None,
        versions=np.concatenate(versions) if versions else None,
        model=next((part.model for part in found if len(part)), ""),
        further=_joined_further([part for part in found if len(part)]),
    )


def _joined_further(found: Sequence[RecordSet]) -> tuple[ModelVectors, ...]:
    if not found:
        return ()
    return tuple(
        ModelVectors(one.model, np.concatenate([part.further[number].vectors for part in found]))
        for number, one in enumerate(found[0].further)
    )
