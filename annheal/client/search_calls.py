"""Calls that find nearest neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from annheal.client.batching import SearchGatherer, SearchKey
from annheal.client.connection import ServerConnection, as_consistency
from annheal.client.embedder import Embedder
from annheal.client.inputs import (
    FilterInput,
    as_filter,
    as_ids,
    as_matrix,
    as_projection,
    as_vector,
)
from annheal.client.public_api import ReadFreshness
from annheal.client.results import SearchBatch, SearchResult
from annheal.errors import InvalidArgument
from annheal.model.search import Consistency, SearchOptions
from annheal.model.session import SessionToken
from annheal.runtime.deadline import Deadline
from annheal.wire.search import SearchResult as FlatResult


class SearchCalls:
    """Part of `AsyncClient`."""

    _connection: ServerConnection
    _gatherer: SearchGatherer | None
    _embedder: Embedder | None
    _embedder_lock: asyncio.Lock

    async def search(
        self,
        collection: str,
        vector: Any = None,
        *,
        id: str | None = None,
        text: str | None = None,
        k: int = 10,
        filter: FilterInput = None,
        include: Iterable[str] | str | None = None,
        exact: bool = False,
        ef: int | None = None,
        recall_objective: float | None = None,
        consistency: Consistency | str | None = None,
        session: SessionToken | None = None,
        allow_partial: bool = False,
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> SearchResult:
        """Return the k nearest records of one query, best first.

        Args:
            collection: its name.
            vector: (d,) numbers; or give `id` (of a stored record, which is among its own hits),
                or `text` (needs the extra `text`; the collection must hold that model's vectors).
            k: hits wanted, 1 to 16,384.
            filter: an expression such as `"year >= 2024 and ecosystem = 'pypi'"`, or a tree.
            include: what to return beside id and score: any of "attributes", "payload", "vector",
                names of attributes, or "all".
            exact: compare every record.
            ef: beam width of graph walks; chosen from measurements without it.
            recall_objective: instead of the collection's; not together with `ef`.
            consistency: "eventual", "session" or "strong"; without it, what this client wrote is
                seen.
            session: a token that another client handed over.
            allow_partial: answer although shards are missing; `missing_shards` names them.
            explain: say how each segment answered.
            timeout_s: time for the call; the client's by default.

        Searches by vector that run at the same time and ask for the same travel together, unless
        the client was made with `batch_searches=False`.
        """
        options = _options(
            k=k,
            filter=filter,
            include=include,
            exact=exact,
            ef=ef,
            recall_objective=recall_objective,
            explain=explain,
        )
        deadline = self._connection.deadline(timeout_s)
        if sum(given is not None for given in (vector, id, text)) != 1:
            raise InvalidArgument.of("vector", "give exactly one of vector, id and text")
        if id is not None:
            ids = as_ids([id], field="id")
            found = await self._search(
                collection, options, None, ids, deadline, consistency, session, allow_partial
            )
            return found[0]
        if text is not None:
            query: npt.NDArray[np.float32] = (await self.embed([text]))[0]
        else:
            query = as_vector(vector)
        if self._gatherer is None or explain or session is not None:
            found = await self._search(
                collection,
                options,
                query[np.newaxis],
                (),
                deadline,
                consistency,
                session,
                allow_partial,
            )
            return found[0]
        key = SearchKey(collection, options, len(query), as_consistency(consistency), allow_partial)
        return await self._gatherer.search(key, query, deadline=deadline)

    async def search_batch(
        self,
        collection: str,
        vectors: Any = None,
        *,
        ids: Iterable[str] | None = None,
        texts: Sequence[str] | None = None,
        k: int = 10,
        filter: FilterInput = None,
        include: Iterable[str] | str | None = None,
        exact: bool = False,
        ef: int | None = None,
        recall_objective: float | None = None,
        consistency: Consistency | str | None = None,
        session: SessionToken | None = None,
        allow_partial: bool = False,
        explain: bool = False,
        timeout_s: float | None = None,
    ) -> SearchBatch:
        """Return the hits of n queries (at most 1,000) that travel in one call.

        `vectors` is (n, d) numbers; or give `ids` or `texts`. The rest is as in `search`.
        """
        options = _options(
            k=k,
            filter=filter,
            include=include,
            exact=exact,
            ef=ef,
            recall_objective=recall_objective,
            explain=explain,
        )
        if sum(given is not None for given in (vectors, ids, texts)) != 1:
            raise InvalidArgument.of("vectors", "give exactly one of vectors, ids and texts")
        deadline = self._connection.deadline(timeout_s)
        names: Sequence[str] = ()
        matrix: npt.NDArray[Any] | None = None
        if ids is not None:
            names = as_ids(ids)
        else:
            matrix = await self.embed(texts) if texts is not None else as_matrix(vectors)
        if not names and (matrix is None or len(matrix) == 0):
            raise InvalidArgument.of("vectors", "holds no query")
        return await self._search(
            collection, options, matrix, names, deadline, consistency, session, allow_partial
        )

    async def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return (n, d) float32 unit vectors of `texts`; the model is loaded at first use."""
        async with self._embedder_lock:
            if self._embedder is None:
                self._embedder = await asyncio.to_thread(Embedder.load)
        return await asyncio.to_thread(self._embedder.embed, texts)

    async def _search_gathered(
        self, key: SearchKey, vectors: npt.NDArray[np.float32], deadline: Deadline
    ) -> SearchBatch:
        return await self._search(
            key.collection,
            key.options,
            vectors,
            (),
            deadline,
            key.consistency,
            None,
            key.allow_partial,
        )

    async def _search(
        self,
        collection: str,
        options: SearchOptions,
        vectors: npt.NDArray[Any] | None,
        ids: Sequence[str],
        deadline: Deadline,
        consistency: Consistency | str | None,
        session: SessionToken | None,
        allow_partial: bool,
    ) -> SearchBatch:
        api = self._connection.api

        async def read(freshness: ReadFreshness) -> FlatResult:
            return await self._connection.read(
                lambda left_s: api.search(
                    collection,
                    options,
                    queries=vectors,
                    query_ids=ids,
                    freshness=freshness,
                    allow_partial=allow_partial,
                    timeout_s=left_s,
                ),
                deadline=deadline,
            )

        flat = await self._connection.fresh_read(collection, consistency, session, read)
        self._connection.remember(collection, flat.session)
        return SearchBatch(
            flat.records,
            flat.scores,
            flat.counts,
            missing_shards=flat.missing_shards,
            explain=flat.explain,
        )


_DEFAULTS = SearchOptions(k=10)


def _options(
    *,
    k: int,
    filter: FilterInput,
    include: Iterable[str] | str | None,
    exact: bool,
    ef: int | None,
    recall_objective: float | None,
    explain: bool,
) -> SearchOptions:
    return replace(
        _DEFAULTS,
        k=_whole("k", k),
        filter=as_filter(filter),
        projection=as_projection(include),
        exact=exact,
        ef=None if ef is None else _whole("ef", ef),
        recall_objective=recall_objective,
        explain=explain,
    )


def _whole(field: str, value: int) -> int:
    # What protobuf cannot hold would be an error of its own; the rest the server checks.
    if type(value) is not int or not 0 <= value < 2**31:
        raise InvalidArgument.of(field, f"{value!r} is no count")
    return value
