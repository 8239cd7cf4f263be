"""Searches at the public edge, where l2 scores become squared distances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from annheal.errors import InvalidArgument
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.filter import Filter
from annheal.model.records import IDS_ONLY, Float32Matrix, Projection, RecordSet
from annheal.model.search import Consistency, SearchAnswer, SearchOptions, SegmentExplain
from annheal.model.session import SessionToken
from annheal.model.validation import usable_model
from annheal.v1 import search_pb2
from annheal.wire.columns import (
    decode_projection,
    decode_record_set,
    decode_vectors,
    encode_projection,
    encode_record_set,
    encode_vectors,
)
from annheal.wire.enums import CONSISTENCY
from annheal.wire.filters import decode_filter, encode_filter
from annheal.wire.session import decode_freshness, decode_session, encode_session

_FLOAT32 = np.dtype("<f4")


@dataclass(frozen=True, slots=True)
class PublicSearch:
    """A Search of one collection: one of `queries` (n, d) float32, `query_ids` and `texts` is set.

    `queries` may be read-only. `model` is the one that is searched, as `options` say to nodes.
    `timeout_s` None leaves the time to the call's deadline.
    """

    queries: Float32Matrix | None
    query_ids: tuple[str, ...]
    texts: tuple[str, ...]
    model: ModelSpec
    options: SearchOptions
    consistency: Consistency
    min_sequences: dict[int, int]
    timeout_s: float | None
    allow_partial: bool


@dataclass(frozen=True, slots=True)
class JoinedModels:
    """Who answered, where two models did: records without a vector of `model` by `fallback`.

    `by_fallback` (hits,) bool, for all queries one after the other. Scores are those of `model`; of
    hits by `fallback` they are estimates, made by the way `joined_by`.
    """

    model: str
    fallback: str
    by_fallback: npt.NDArray[np.bool_]
    joined_by: str

    def model_at(self, row: int) -> str:
        """Return the model that found a hit."""
        return self.fallback if self.by_fallback[row] else self.model


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a client gets: as `SearchAnswer`, but l2 scores are squared distances, lower = better.

    Query i has `counts[i]` hits, best first, one query after the other in `scores` (float32) and
    `records`.
    """

    counts: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float32]
    records: RecordSet
    session: SessionToken | None = None
    missing_shards: tuple[int, ...] = ()
    explain: tuple[SegmentExplain, ...] = field(default_factory=tuple)
    below_objective: bool = False
    joined: JoinedModels | None = None


def encode_search(
    collection: str,
    *,
    k: int,
    queries: npt.NDArray[np.floating[Any]] | None = None,
    query_ids: Sequence[str] = (),
    texts: Sequence[str] = (),
    model: str = "",
    filter: Filter | None = None,
    projection: Projection = IDS_ONLY,
    consistency: Consistency | None = None,
    session: SessionToken | None = None,
    exact: bool = False,
    ef: int | None = None,
    recall_objective: float | None = None,
    timeout_s: float | None = None,
    allow_partial: bool = False,
    explain: bool = False,
    tag: str = "",
) -> search_pb2.SearchRequest:
    """Return a search by vectors (n, d) or, when `queries` is None, by texts or stored records."""
    request = search_pb2.SearchRequest(collection=collection, k=k)
    if queries is not None:
        request.vectors.CopyFrom(encode_vectors(queries, model=model))
    elif texts:
        request.texts.CopyFrom(search_pb2.QueryTexts(texts=texts, model=model))
    else:
        request.query_ids.CopyFrom(search_pb2.QueryIds(ids=query_ids, model=model))
    if filter is not None:
        request.filter.CopyFrom(encode_filter(filter))
    if not projection.ids_only:
        request.projection.CopyFrom(encode_projection(projection))
    if consistency is not None:
        request.consistency = CONSISTENCY.encode(consistency)
    if session is not None:
        request.session.CopyFrom(encode_session(session))
    if ef is not None:
        request.ef = ef
    if recall_objective is not None:
        request.recall_objective = recall_objective
    if timeout_s is not None:
        request.timeout_ms = max(1, round(timeout_s * 1_000))
    request.exact = exact
    request.allow_partial = allow_partial
    request.explain = explain
    request.tag = tag
    return request


def decode_search(request: search_pb2.SearchRequest, *, collection: Collection) -> PublicSearch:
    """Return the search; ranges of k, ef and the rest are for `annheal.model.validation`.

    Raises `InvalidArgument` for what contradicts itself or does not fit the collection, and
    `FailedPrecondition` for a session token of another collection.
    """
    queries: Float32Matrix | None = None
    query_ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    kind = request.WhichOneof("queries")
    model = decode_searched_model(request, collection=collection)
    if kind == "vectors":
        _, queries = decode_vectors(request.vectors, collection=collection, field="vectors")
    elif kind == "query_ids":
        query_ids = tuple(request.query_ids.ids)
        if not query_ids:
            raise InvalidArgument.of("query_ids.ids", "is empty; name at least one record")
    elif kind == "texts":
        texts = tuple(request.texts.texts)
        if not texts:
            raise InvalidArgument.of("texts.texts", "is empty; give at least one text")
    else:
        raise InvalidArgument.of("queries", "holds no query; set vectors, query_ids or texts")
    consistency, min_sequences = decode_freshness(request, collection_id=collection.id)
    return PublicSearch(
        queries=queries,
        query_ids=query_ids,
        texts=texts,
        model=model,
        options=_decode_options(request, model="" if len(collection.models) == 1 else model.name),
        consistency=consistency,
        min_sequences=min_sequences,
        timeout_s=request.timeout_ms / 1_000 if request.HasField("timeout_ms") else None,
        allow_partial=request.allow_partial,
    )


def decode_searched_model(
    request: search_pb2.SearchRequest, *, collection: Collection
) -> ModelSpec:
    """Return the model whose vectors are searched; raises `InvalidArgument` for an unknown one."""
    kind = request.WhichOneof("queries")
    tag = "" if kind is None else getattr(request, kind).model
    return usable_model(tag, collection=collection, field=f"{kind}.model")


def _decode_options(request: search_pb2.SearchRequest, *, model: str) -> SearchOptions:
    ef = request.ef if request.HasField("ef") else None
    objective = request.recall_objective if request.HasField("recall_objective") else None
    if ef is not None and objective is not None:
        raise InvalidArgument.of("ef", "is set together with recall_objective; set one of the two")
    return SearchOptions(
        k=request.k,
        filter=decode_filter(request.filter) if request.HasField("filter") else None,
        exact=request.exact,
        ef=ef,
        recall_objective=objective,
        projection=(
            decode_projection(request.projection) if request.HasField("projection") else IDS_ONLY
        ),
        explain=request.explain,
        model=model,
        tag=request.tag,
    )


def encode_search_response(
    answer: SearchAnswer,
    *,
    metric: Metric,
    model: str = "",
    fallback: str = "",
    session: SessionToken | None = None,
) -> search_pb2.SearchResponse:
    """Return the answer as clients see it; `session` for session and strong reads.

    `fallback` is the model of hits that `model` did not answer, if there may be such.
    """
    # The negation of 0.0 is -0.0, which people find odd; adding 0.0 makes it 0.0.
    scores = 0.0 - answer.scores if metric is Metric.L2 else answer.scores
    records = answer.records
    response = search_pb2.SearchResponse(
        counts=answer.counts.tolist(),
        scores=scores.astype(_FLOAT32, copy=False).tobytes(),
        ids=records.ids,
        below_objective=answer.below_objective,
    )
    if not records.has_only_ids:
        response.records.CopyFrom(encode_record_set(records, model=model, with_ids=False))
    if session is not None:
        response.session.CopyFrom(encode_session(session))
    if answer.missing_shards:
        response.missing_shards.extend(shard.number for shard in answer.missing_shards)
    if answer.explain:
        response.explain.extend(encode_explain(entry) for entry in answer.explain)
    if fallback and answer.by_fallback is not None:
        response.joined.CopyFrom(
            search_pb2.JoinedModels(
                model=model,
                fallback=fallback,
                by_fallback=answer.by_fallback.tobytes(),
                joined_by=answer.joined_by,
            )
        )
    return response


def decode_search_response(
    response: search_pb2.SearchResponse, *, projection: Projection = IDS_ONLY
) -> SearchResult:
    """Return the answer to a search with `projection`."""
    ids = list(response.ids)
    if projection.ids_only:
        records = RecordSet(ids=ids)
    else:
        records = decode_record_set(response.records, projection=projection, ids=ids)
    return SearchResult(
        counts=np.array(response.counts, dtype=np.int32),
        scores=np.frombuffer(response.scores, dtype=_FLOAT32),
        records=records,
        session=decode_session(response.session) if response.HasField("session") else None,
        missing_shards=tuple(response.missing_shards),
        explain=tuple(decode_explain(entry) for entry in response.explain),
        below_objective=response.below_objective,
        joined=(
            JoinedModels(
                response.joined.model,
                response.joined.fallback,
                np.frombuffer(response.joined.by_fallback, dtype=np.uint8) != 0,
                response.joined.joined_by,
            )
            if response.HasField("joined")
            else None
        ),
    )


def encode_explain(entry: SegmentExplain) -> search_pb2.SegmentExplain:
    """Return how one segment answered, as a message."""
    return search_pb2.SegmentExplain(
        shard=entry.shard,
        segment_id=entry.segment_id,
        plan=entry.plan,
        rows=entry.rows,
        live_rows=entry.live_rows,
        matches=entry.matches,
        ef=entry.ef,
        visited=entry.visited,
        duration_s=entry.duration_s,
        without_kernels=entry.without_kernels,
    )


def decode_explain(message: search_pb2.SegmentExplain) -> SegmentExplain:
    """Return how one segment answered."""
    return SegmentExplain(
        shard=message.shard,
        segment_id=message.segment_id,
        plan=message.plan,
        rows=message.rows,
        live_rows=message.live_rows,
        matches=message.matches,
        ef=message.ef,
        visited=message.visited,
        duration_s=message.duration_s,
        without_kernels=message.without_kernels,
    )
