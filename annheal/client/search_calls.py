"""Calls that find nearest neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from annheal.client.arguments import as_count, as_flag, as_share, as_text
from annheal.client.batching import SearchGatherer, SearchKey
from annheal.client.connection import ServerConnection, as_consistency
from annheal.client.embedder import DEFAULT_MODEL, MODELS, Embedder
from annheal.client.inputs import (
    FilterInput,
    as_filter,
    as_ids,
    as_matrix,
    as_projection,
    as_texts,
    as_vector,
    in_callers_words,
)
from annheal.client.public_api import ReadFreshness
from annheal.client.results import SearchBatch, SearchResult
from annheal.errors import InvalidArgument
from annheal.model.collection import Collection
from annheal.model.measures.recall_tags import checked_tag
from annheal.model.search import Consistency, SearchOptions
from annheal.model.session import SessionToken
from annheal.runtime.deadline import Deadline
from annheal.wire.search import SearchResult as FlatResult

FoundT = TypeVar("FoundT")


class SearchCalls:
    """Part of `AsyncClient`."""

    _connection: ServerConnection
    _gatherer: SearchGatherer | None
    _embedders: dict[str, Embedder]
    _embedder_lock: asyncio.Lock

    async def search(
        self,
        collection: str,
        vector: Any = None,
        *,
        id: str | None = None,
        text: str | None = None,
        model: str | None = None,
        k: int = 10,
        filter: FilterInput = None,
        include: Iterable[str] | str | None = None,
        exact: bool = False,
        ef: int | None = None,
        recall_objective: float | None = None,
        tag: str | None = None,
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
                or `text`. The server embeds a text if the collection's model has an embedder;
                otherwise this process does (it needs the extra `text`, and the collection must
                hold that model's vectors).
            model: the model that made `vector`, that shall embed `text`, or whose vector of the
                record `id` is the query; by default the serving one. The answer comes from its
                vectors only. A model that the collection does not have is refused: vectors of two
                models cannot be compared.
            k: hits wanted, 1 to 16,384.
            filter: an expression such as `"year >= 2024 and ecosystem = 'pypi'"`, or a tree.
            include: what to return beside id and score: any of "attributes", "payload", "vector",
                names of attributes, or "all".
            exact: compare every record.
            ef: beam width of graph walks; chosen from measurements without it.
            recall_objective: instead of the collection's; not together with `ef`.
            tag: what you call this kind of query, such as "autocomplete". Recall is measured for
                each tag, and `recall` reports it.
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
            tag=tag,
            explain=explain,
        )
        as_text(collection, "collection")
        deadline = self._connection.deadline(timeout_s)
        if sum(given is not None for given in (vector, id, text)) != 1:
            raise InvalidArgument.of("vector", "give exactly one of vector, id and text")
        tag = None if model is None else as_text(model, "model")
        if id is not None:
            options = replace(options, model=tag or "")
            ids = [as_text(id, "id")]
            with _named_once():
                found = await self._search(
                    collection, options, None, ids, deadline, consistency, session, allow_partial
                )
            return found[0]
        if text is not None:
            texts = [as_text(text, "text")]
            if await self._server_embeds(collection, tag, deadline):
                options = replace(options, model=tag or "")
                with _named_once():
                    found = await self._search(
                        collection, options, None, (), deadline, consistency, session,
                        allow_partial, texts=texts,
                    )  # fmt: skip
                return found[0]
            tag, queries = await self._embedded(collection, texts, tag, deadline)
            query = queries[0]
        else:
            query = as_vector(vector)

        async def tagged(model: str) -> SearchResult:
            return await self._search_one(
                collection, replace(options, model=model), query, deadline, consistency, session,
                allow_partial,
            )  # fmt: skip

        with _named_once():
            return await self._of_model(collection, tag, deadline, tagged)

    async def _search_one(
        self,
        collection: str,
        options: SearchOptions,
        query: npt.NDArray[np.float32],
        deadline: Deadline,
        consistency: Consistency | str | None,
        session: SessionToken | None,
        allow_partial: bool,
    ) -> SearchResult:
        """Search for one vector, together with others where that is possible."""
        if self._gatherer is None or options.explain or session is not None:
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
        as_flag(allow_partial, "allow_partial")
        key = SearchKey(collection, options, len(query), as_consistency(consistency), allow_partial)
        return await self._gatherer.search(key, query, deadline=deadline)

    async def search_batch(
        self,
        collection: str,
        vectors: Any = None,
        *,
        ids: Iterable[str] | None = None,
        texts: Sequence[str] | None = None,
        model: str | None = None,
        k: int = 10,
        filter: FilterInput = None,
        include: Iterable[str] | str | None = None,
        exact: bool = False,
        ef: int | None = None,
        recall_objective: float | None = None,
        tag: str | None = None,
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
            tag=tag,
            explain=explain,
        )
        if sum(given is not None for given in (vectors, ids, texts)) != 1:
            raise InvalidArgument.of("vectors", "give exactly one of vectors, ids and texts")
        deadline = self._connection.deadline(timeout_s)
        names: Sequence[str] = ()
        asked: Sequence[str] = ()
        matrix: npt.NDArray[Any] | None = None
        tag = None if model is None else as_text(model, "model")
        if ids is not None:
            names = as_ids(ids)
        elif texts is None:
            matrix = as_matrix(vectors)
        elif await self._server_embeds(collection, tag, deadline):
            asked = as_texts(texts)
        else:
            tag, matrix = await self._embedded(collection, texts, tag, deadline)
        if not names and not asked and (matrix is None or len(matrix) == 0):
            raise InvalidArgument.of("vectors", "holds no query")

        async def tagged(model: str) -> SearchBatch:
            return await self._search(
                collection, replace(options, model=model), matrix, names, deadline, consistency,
                session, allow_partial, texts=asked,
            )  # fmt: skip

        if matrix is None:  # the server knows best which model serves
            return await tagged(tag or "")
        return await self._of_model(collection, tag, deadline, tagged)

    async def _of_model(
        self,
        collection: str,
        model: str | None,
        deadline: Deadline,
        search: Callable[[str], Awaitable[FoundT]],
    ) -> FoundT:
        """Return `search(model)`, for None the serving model as this client knows it.

        The vectors are then tagged, and never compared with those of a model that serves later.
        What is known may be a collection that was dropped; another one may have its name by now.
        """
        if model is not None:
            return await search(model)
        known = await self._connection.collection(
            as_text(collection, "collection"), deadline=deadline
        )
        try:
            return await search(known.model.name)
        except InvalidArgument as error:
            if not any(one.field.endswith(".model") for one in error.violations):
                raise
            current = await self._connection.current_collection(collection, deadline=deadline)
            if current.id == known.id:
                raise
            return await search(current.model.name)

    async def embed(
        self, texts: Sequence[str], *, model: str | None = None
    ) -> npt.NDArray[np.float32]:
        """Return (n, d) float32 unit vectors of `texts`; the model is loaded at first use.

        `model` is one of `annheal.client.embedder.MODELS`, "minilm_l6" by default.
        """
        name = _embedder_name(model)
        async with self._embedder_lock:
            embedder = self._embedders.get(name)
            if embedder is None:
                embedder = await asyncio.to_thread(Embedder.load, name)
                self._embedders[name] = embedder
        return await asyncio.to_thread(embedder.embed, texts)

    async def _server_embeds(self, collection: str, model: str | None, deadline: Deadline) -> bool:
        """Tell whether texts for `collection` are sent as texts.

        What is known of the collection may be old; it is read again before another embedder is
        used for a model that has one of the same name here.
        """
        known = await self._connection.collection(
            as_text(collection, "collection"), deadline=deadline
        )
        if known.text_model(model or known.model.name) is not None:
            return True
        if _embedded_here(known, model):
            return False
        known = await self._connection.current_collection(collection, deadline=deadline)
        name = model or known.model.name
        # Of a model that nobody here knows, a server that embeds says which ones there are.
        is_strange = known.model_named(name) is None and name not in MODELS
        return known.text_model(name) is not None or (is_strange and bool(known.text_models))

    async def _embedded(
        self, collection: str, texts: Sequence[str], tag: str | None, deadline: Deadline
    ) -> tuple[str, npt.NDArray[np.float32]]:
        """Return the embedder's name and queries made by it, if the collection has its vectors.

        The server refuses the tag as well; here it is known before a model is loaded.
        """
        model = _embedder_name(tag)
        known = await self._connection.collection(collection, deadline=deadline)
        if not _embedded_here(known, tag):
            known = await self._connection.current_collection(collection, deadline=deadline)
        if not _embedded_here(known, tag):
            held = ", ".join(repr(one.name) for one in known.models)
            raise InvalidArgument.of(
                "model",
                f"texts are embedded with {model!r}, but collection {collection!r} holds vectors of"
                f" {held}, and vectors of two models cannot be compared; there are"
                f" embedders for {', '.join(sorted(MODELS))}: search by vector, or name the model,"
                " or an embedder of the server, when the collection is created",
            )
        return model, await self.embed(texts, model=model)

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
        *,
        texts: Sequence[str] = (),
    ) -> SearchBatch:
        api = self._connection.api
        as_text(collection, "collection")
        as_flag(allow_partial, "allow_partial")

        async def read(freshness: ReadFreshness) -> FlatResult:
            return await self._connection.read(
                lambda left_s: api.search(
                    collection,
                    options,
                    queries=vectors,
                    query_ids=ids,
                    texts=texts,
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
            below_objective=flat.below_objective,
            joined=flat.joined,
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
    tag: str | None,
    explain: bool,
) -> SearchOptions:
    if ef is not None and recall_objective is not None:
        raise InvalidArgument.of("ef", "is given together with recall_objective; give one of them")
    return replace(
        _DEFAULTS,
        k=as_count(k, "k"),
        filter=as_filter(filter),
        projection=as_projection(include),
        exact=as_flag(exact, "exact"),
        ef=None if ef is None else as_count(ef, "ef"),
        recall_objective=(
            None if recall_objective is None else as_share(recall_objective, "recall_objective")
        ),
        explain=as_flag(explain, "explain"),
        tag="" if tag is None else checked_tag(as_text(tag, "tag")),
    )


def _embedded_here(collection: Collection, model: str | None) -> bool:
    """Return whether the collection has the model of an embedder of this process.

    Without a name it is that of the default one, which must serve.
    """
    if model is None:
        return collection.model.name == DEFAULT_MODEL
    return collection.model_named(model) is not None


def _embedder_name(model: str | None) -> str:
    name = DEFAULT_MODEL if model is None else as_text(model, "model")
    if name not in MODELS:
        known = ", ".join(sorted(MODELS))
        raise InvalidArgument.of("model", f"there is no embedder {name!r}; there are {known}")
    return name


@contextmanager
def _named_once() -> Iterator[None]:
    """Name the one query as the caller does: `vector` and `id`, not `vectors[0]`."""
    try:
        yield
    except InvalidArgument as error:
        raise in_callers_words(error, _singular) from error


_SINGULAR = (
    ("query_ids.ids[0]", "id"), ("vectors[0]", "vector"), ("ids[0]", "id"), ("texts[0]", "text")
)  # fmt: skip


def _singular(field: str) -> str:
    for plural, single in _SINGULAR:
        if field.startswith(plural):
            return single + field.removeprefix(plural)
    return "vector" + field.removeprefix("vectors") if field.startswith("vectors") else field
