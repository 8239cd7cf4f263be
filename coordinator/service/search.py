"""The service of searches.

Search is the hot path: the options of a request (k, filter, projection and so on) are decoded and
checked once and looked up by their bytes afterwards, vectors are views into the request's bytes,
and equal options are one object, so that the batcher's keys are cheap to compare.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from annheal.coordinator.app import Coordinator
from annheal.coordinator.data_path.dual import DualQueries
from annheal.coordinator.data_path.router import check_sequences
from annheal.errors import AnnhealError
from annheal.filters import validate_filter
from annheal.model.collection import Collection, ModelSpec
from annheal.model.records import Float32Matrix
from annheal.model.search import Consistency, SearchOptions
from annheal.model.session import SessionToken
from annheal.model.topology.migration.state import Migration
from annheal.model.validation import (
    validate_projection,
    validate_search,
    validate_search_options,
    validate_timeout,
    validate_vectors,
)
from annheal.rpc.server import Context, deadline_of
from annheal.runtime.deadline import Deadline
from annheal.runtime.metrics import Metrics
from annheal.v1 import search_pb2
from annheal.wire import search as wire_search
from annheal.wire.columns import decode_vectors
from annheal.wire.session import decode_freshness

OPTIONS_CACHED_MAX = 1_024

_log = logging.getLogger(__name__)

OptionsKey: TypeAlias = tuple[object, ...]


class SearchServicer:
    """`annheal.v1.SearchService`."""

    def __init__(self, coordinator: Coordinator, metrics: Metrics) -> None:
        self._coordinator = coordinator
        self._metrics = metrics
        self._options: dict[OptionsKey, SearchOptions] = {}

    async def Search(
        self, request: search_pb2.SearchRequest, context: Context
    ) -> search_pb2.SearchResponse:
        """Find the nearest records of each query."""
        began_s = time.perf_counter()
        coordinator = self._coordinator
        collection = coordinator.catalog.collection_or_none(request.collection)
        if collection is None:
            collection = await coordinator.collections.get(request.collection)
        model = wire_search.decode_searched_model(request, collection=collection)
        options = self._options_of(request, collection, model)
        timeout_s = None
        if request.HasField("timeout_ms"):
            timeout_s = request.timeout_ms / 1_000
            validate_timeout(timeout_s)
        deadline = deadline_of(context, timeout_s=timeout_s)
        consistency, min_sequences = decode_freshness(request, collection_id=collection.id)
        if min_sequences:
            check_sequences(collection, min_sequences)
        queries = await self._queries(
            request, collection, model, options, deadline, consistency, min_sequences
        )
        search = partial(coordinator.search.search, collection, queries)
        migration = coordinator.dual.migration(collection, model)
        if migration is not None:
            both = await self._dual_queries(
                request, collection, migration, model, queries, deadline
            )
            search = partial(coordinator.dual.search, collection, migration, both)
        answer = await search(
            options=options,
            deadline=deadline,
            consistency=consistency,
            min_sequences=min_sequences,
            allow_partial=request.allow_partial,
        )
        session = None
        if consistency is not Consistency.EVENTUAL:
            session = SessionToken(collection.id, answer.sequences)
        self._metrics.observe_search(
            collection.name,
            filtered=options.filter is not None,
            queries=len(queries),
            duration_s=time.perf_counter() - began_s,
            below_objective=answer.below_objective,
        )
        fallback = ""
        if migration is not None:  # scores are on the scale of the new model
            fallback = migration.from_model
            model = collection.model_named(migration.to_model) or model
        return wire_search.encode_search_response(
            answer, metric=model.metric, model=model.name, fallback=fallback, session=session
        )

    async def _queries(
        self,
        request: search_pb2.SearchRequest,
        collection: Collection,
        model: ModelSpec,
        options: SearchOptions,
        deadline: Deadline,
        consistency: Consistency,
        min_sequences: Mapping[int, int],
    ) -> Float32Matrix:
        """Return the queries (n, d) of `model`: vectors as given, of texts, or of records."""
        if request.WhichOneof("queries") == "vectors":
            _, queries = decode_vectors(request.vectors, collection=collection, field="vectors")
            validate_search(queries, options, model=model)
            return validate_vectors(queries, model=model)
        if request.WhichOneof("queries") == "texts":
            asked = wire_search.decode_search(request, collection=collection)
            queries = await self._coordinator.texts.queries(
                collection, asked.texts, model=model, deadline=deadline
            )
            validate_search(queries, options, model=model)
            return validate_vectors(queries, model=model, field="texts")
        read = wire_search.decode_search(request, collection=collection)
        queries = await self._coordinator.reads.vectors(
            collection,
            read.query_ids,
            model=model,
            deadline=deadline,
            consistency=consistency,
            min_sequences=min_sequences,
        )
        validate_search(queries, options, model=model)
        return queries

    async def _dual_queries(
        self,
        request: search_pb2.SearchRequest,
        collection: Collection,
        migration: Migration,
        model: ModelSpec,
        queries: Float32Matrix,
        deadline: Deadline,
    ) -> DualQueries:
        """Return the queries by both models where the texts are known, else by `model` alone.

        A text is embedded a second time if the other model has an embedder that answers; if not, a
        bridge carries the query over.
        """
        is_new = model.name == migration.to_model
        given = DualQueries(new=queries) if is_new else DualQueries(old=queries)
        other = collection.model_named(migration.from_model if is_new else migration.to_model)
        if request.WhichOneof("queries") != "texts" or other is None:
            return given
        if collection.text_model(other.name) is None:
            return given
        try:
            found = await self._coordinator.texts.queries(
                collection, list(request.texts.texts), model=other, deadline=deadline
            )
            found = validate_vectors(found, model=other, field="texts")
        except AnnhealError as error:
            _log.info("queries are not embedded by %s too: %s", other.name, error.message)
            return given
        return replace(given, old=found) if is_new else replace(given, new=found)

    def _options_of(
        self, request: search_pb2.SearchRequest, collection: Collection, model: ModelSpec
    ) -> SearchOptions:
        """Return the checked options; the same object for the same bytes and collection."""
        key = (
            collection.id,
            collection.models,
            collection.removed,
            model.name,
            request.k,
            request.exact,
            request.explain,
            request.ef if request.HasField("ef") else None,
            request.recall_objective if request.HasField("recall_objective") else None,
            request.filter.SerializeToString() if request.HasField("filter") else None,
            request.projection.SerializeToString() if request.HasField("projection") else None,
        )
        known = self._options.get(key)
        if known is not None:
            return known
        options = wire_search.decode_search(request, collection=collection).options
        validate_search_options(options, model=model)
        validate_projection(options.projection, collection=collection)
        if len(collection.models) == 1:
            options = replace(options, projection=replace(options.projection, models=()))
        if options.filter is not None:
            canonical = validate_filter(options.filter, collection.schema)
            options = replace(options, filter=canonical)
        if len(self._options) >= OPTIONS_CACHED_MAX:
            self._options.pop(next(iter(self._options)))
        self._options[key] = options
        return options
