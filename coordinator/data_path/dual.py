"""Searches while the model of a collection changes: every record answered by one of two models.

Records with a vector of the new model are answered by it, the others by the old one. The two lists
are joined on the scale of the new model by a bridge (`annheal.embedding.bridge`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from annheal.coordinator.data_path.fanout import Fanout
from annheal.embedding.bridge.bridge import Bridge, BridgedQuery
from annheal.errors import FailedPrecondition
from annheal.model.collection import Collection, ModelSpec
from annheal.model.limits import SEARCH_HITS_MAX
from annheal.model.records import Float32Matrix, Projection, RecordSet, take_records, vectors_of
from annheal.model.search import Consistency, SearchAnswer, SearchOptions
from annheal.model.topology.migration.state import Migration
from annheal.runtime.deadline import Deadline
from annheal.runtime.offload import Offload

FALLBACK_K_FACTOR: Final = 3
"""Hits of the old model that are looked at, by `k`: a bridge orders them anew."""


class BridgeSource(Protocol):
    """Gives the present bridge of a migration."""

    async def get(
        self,
        collection: Collection,
        migration: Migration,
        *,
        needs_pairs: bool,
        deadline: Deadline,
    ) -> Bridge:
        """Return the present bridge; one without pairs carries no query from model to model."""
        ...


@dataclass(frozen=True, slots=True)
class DualQueries:
    """Queries by both models or one of them, (n, d) float32 each."""

    old: Float32Matrix | None = None
    new: Float32Matrix | None = None


class DualSearch:
    """Searches a collection by both models of its migration."""

    def __init__(
        self,
        fanout: Fanout,
        bridges: BridgeSource,
        migration_of: Callable[[str], Migration | None],
        *,
        offload: Offload,
    ) -> None:
        self._fanout = fanout
        self._offload = offload
        self._bridges = bridges
        self._migration_of = migration_of

    def migration(self, collection: Collection, model: ModelSpec) -> Migration | None:
        """Return the migration because of which `model` does not answer for all records.

        None where it does: there is no migration between it and another model, or all records have
        a vector of it, as far as the leader has seen.
        """
        if len(collection.models) == 1:
            return None
        migration = self._migration_of(collection.id)
        if migration is None or migration.ended:
            return None
        names = {migration.from_model, migration.to_model}
        if model.name not in names or names & set(collection.removed):
            return None
        seen = migration.coverage
        is_new = model.name == migration.to_model
        if seen is None:
            return migration if is_new else None
        return migration if (seen.rows_lacking if is_new else seen.rows_lacking_old) else None

    async def search(
        self,
        collection: Collection,
        migration: Migration,
        queries: DualQueries,
        *,
        options: SearchOptions,
        deadline: Deadline,
        consistency: Consistency,
        min_sequences: Mapping[int, int],
        allow_partial: bool,
    ) -> SearchAnswer:
        """Return the best `options.k` hits over all records, with scores of the new model.

        Those of the old model's hits are estimates (`SearchAnswer.joined_by` says how). Raises
        `FailedPrecondition` for queries of one model alone while no record has vectors of both:
        nothing has taught yet what such a query is in the other model.
        """
        bridge = await self._bridges.get(
            collection,
            migration,
            needs_pairs=queries.old is None or queries.new is None,
            deadline=deadline,
        )
        new_model = collection.model_named(migration.to_model)
        old_model = collection.model_named(migration.from_model)
        assert new_model is not None
        assert old_model is not None
        # A batch takes hundreds of milliseconds: nothing else on the event loop waits for it.
        bridged = await self._offload.run(_bridged, bridge, queries)
        _check_bridged(bridged, collection, migration)
        fallback_k = max(
            options.k,
            min(FALLBACK_K_FACTOR * options.k, SEARCH_HITS_MAX // len(bridged) - options.k),
        )
        wanted = replace(
            options,
            model=new_model.name,
            fallback=old_model.name,
            fallback_k=fallback_k,
            projection=_with_old_vectors(options.projection, old=old_model, new=new_model),
        )
        found = await self._fanout.search(
            collection,
            np.concatenate(
                [
                    _searched([one.search_new for one in bridged], new_model),
                    _searched([one.search_old for one in bridged], old_model),
                ],
                axis=1,
            ),
            options=wanted,
            deadline=deadline,
            consistency=consistency,
            min_sequences=min_sequences,
            allow_partial=allow_partial,
        )
        return await self._offload.run(_joined, found, bridged, options, old_model)


def _bridged(bridge: Bridge, queries: DualQueries) -> list[BridgedQuery]:
    """Return each query as both models are searched with it."""
    return [
        bridge.query(
            old=None if queries.old is None else queries.old[number],
            new=None if queries.new is None else queries.new[number],
        )
        for number in range(_count(queries))
    ]


def _check_bridged(
    bridged: Sequence[BridgedQuery], collection: Collection, migration: Migration
) -> None:
    """Raise `FailedPrecondition` where nothing is known of a query in the other model."""
    lacked = {migration.to_model for one in bridged if one.search_new is None}
    lacked |= {migration.from_model for one in bridged if one.search_old is None}
    if lacked:
        raise FailedPrecondition(
            f"some records of collection {collection.name!r} have a vector of model"
            f" {', '.join(map(repr, sorted(lacked)))} alone, and none with vectors of both models"
            " was found yet, so a query of the other model cannot be asked of them: wait for the"
            f" backfill, send a text that both models embed, or search by {migration.from_model!r}",
            reason="NO_PAIRS",
        )


def _count(queries: DualQueries) -> int:
    given = queries.new if queries.new is not None else queries.old
    return 0 if given is None else len(given)


def _searched(vectors: list[npt.NDArray[np.float32] | None], model: ModelSpec) -> Float32Matrix:
    """Return the queries of one model, (n, d) float32."""
    return np.array(vectors, dtype=np.float32).reshape(-1, model.dimension)


def _with_old_vectors(projection: Projection, *, old: ModelSpec, new: ModelSpec) -> Projection:
    """Return the projection with the old vectors too, by which a bridge orders hits, at the end."""
    wanted = (projection.models or (new.name,)) if projection.vector else ()
    models = wanted if old.name in wanted else (*wanted, old.name)
    return replace(projection, vector=True, models=models)


def _as_wanted(records: RecordSet, projection: Projection) -> RecordSet:
    """Return records without the vectors that only the bridge needed."""
    if not projection.vector:
        return replace(records, vectors=None, model="", further=())
    if not projection.models:
        return replace(records, model="", further=())
    return replace(records, further=records.further[: len(projection.models) - 1])


def _joined(
    found: SearchAnswer, bridged: Sequence[BridgedQuery], options: SearchOptions, old: ModelSpec
) -> SearchAnswer:
    """Return the best `options.k` hits of each query over both kinds."""
    if found.by_fallback is None:  # no shard has answered
        return replace(found, records=_as_wanted(found.records, options.projection))
    old_vectors = vectors_of(found.records, old.name)
    chosen: list[npt.NDArray[np.int64]] = []
    scores: list[npt.NDArray[np.float32]] = []
    ends = np.cumsum(found.counts).tolist()
    for query, (start, end) in zip(bridged, itertools.pairwise([0, *ends]), strict=True):
        rows = np.arange(start, end)
        own = rows[~found.by_fallback[start:end]]
        rest = rows[found.by_fallback[start:end]]
        places, best = query.join(
            found.scores[own],
            found.scores[rest],
            k=options.k,
            old_vectors=None if old_vectors is None else old_vectors[rest],
        )
        chosen.append(np.concatenate([own, rest])[places])
        scores.append(best)
    order = np.concatenate(chosen)
    records = take_records([found.records], order) if len(order) else RecordSet(ids=[])
    return replace(
        found,
        counts=np.array([len(one) for one in chosen], dtype=np.int32),
        scores=np.concatenate(scores).astype(np.float32),
        records=_as_wanted(records, options.projection),
        by_fallback=found.by_fallback[order],
        joined_by=", ".join(sorted({str(query.way.join) for query in bridged})),
    )
