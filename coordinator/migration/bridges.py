"""Bridges between the two models of a migration, learned from records that have both vectors.

Each coordinator learns its own, from records at random places of all shards, and again as pairs
grow. Until then, and where there are no pairs, the lists of the two models are joined by ranks.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from annheal.coordinator.data_path.reads import Reads
from annheal.embedding.bridge.bridge import Bridge
from annheal.embedding.bridge.choosing import choose, refit_due
from annheal.embedding.bridge.pairs import Pairs, Space
from annheal.errors import AnnhealError
from annheal.model.collection import Collection, ModelSpec
from annheal.model.records import Float32Matrix, Projection, lacking, vectors_of
from annheal.model.topology.migration.state import Migration
from annheal.model.write import ScanRequest
from annheal.runtime.clock import Clock
from annheal.runtime.deadline import Deadline
from annheal.runtime.offload import Offload
from annheal.runtime.tasks import TaskScope

PAIRS_FIRST: Final = 500
"""Pairs that the first bridge is learned from, while searches wait. With 384 floats that takes 6 s
of one core, with 4,000 pairs 18 s."""
PAIRS_SAMPLED: Final = 4_000
"""Pairs that later bridges are learned from."""
PAGE_ROWS: Final = 250
PAGES_MAX: Final = 64
"""Pages that are read to find them."""
LOOK_INTERVAL_MIN_S: Final = 10.0
LOOK_INTERVAL_MAX_S: Final = 300.0
"""Seconds between two looks for more pairs: the fewest after the bridge was learned again, twice as
many after each look that did not lead to that."""
FIRST_WAIT_S: Final = 5.0
"""A search by both models waits so long for the first bridge; without one, ranks are joined."""
WAIT_SHARE: Final = 0.8
"""Share of its time that a search may wait for it."""
BRIDGES_MAX: Final = 16
"""Bridges that are kept; beyond, the oldest is learned again when it is asked for. One may have
some megabytes."""
SAMPLE_TIMEOUT_S: Final = 60.0
_SEED: Final = 48

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    bridge: Bridge
    looked_s: float
    interval_s: float = LOOK_INTERVAL_MIN_S
    learning: asyncio.Task[None] | None = None


class Bridges:
    """The bridges of all migrations that searches have asked for."""

    def __init__(self, reads: Reads, *, offload: Offload, scope: TaskScope, clock: Clock) -> None:
        self._reads = reads
        self._offload = offload
        self._scope = scope
        self._clock = clock
        self._kept: dict[tuple[str, str, str], _Kept] = {}

    async def get(
        self,
        collection: Collection,
        migration: Migration,
        *,
        needs_pairs: bool,
        deadline: Deadline,
    ) -> Bridge:
        """Return the present bridge; learns a newer one in the background when that is due.

        While the first one is learned, a call that `needs_pairs` waits for it as long as its time
        allows, other calls for a moment.
        """
        key = (collection.id, migration.from_model, migration.to_model)
        kept = self._kept.get(key)
        if kept is None:
            if len(self._kept) >= BRIDGES_MAX:
                self._kept.pop(next(iter(self._kept)))
            kept = self._kept[key] = _Kept(_without_pairs(collection, migration), -np.inf)
        now_s = self._clock()
        if kept.learning is None and now_s - kept.looked_s >= kept.interval_s:
            kept.looked_s = now_s
            kept.learning = self._scope.start(
                self._learn(kept, collection, migration), name="bridge"
            )
        if kept.learning is not None and not kept.bridge.pairs:
            left_s = WAIT_SHARE * deadline.remaining_s
            patience_s = left_s if needs_pairs else min(left_s, FIRST_WAIT_S)
            await asyncio.wait([kept.learning], timeout=patience_s)
        return kept.bridge

    async def _learn(self, kept: _Kept, collection: Collection, migration: Migration) -> None:
        share = _migrated_share(migration)
        try:
            limit = PAIRS_SAMPLED if kept.bridge.pairs else PAIRS_FIRST
            pairs = await self._sample(collection, migration, limit)
            if _is_due(kept.bridge, pairs=len(pairs.old), share=share):
                work = partial(choose, pairs, share=share, seed=_SEED)
                kept.bridge = await self._offload.run(work)
                kept.interval_s = LOOK_INTERVAL_MIN_S
                _log.info(
                    "collection %s: the answers of %s and %s are joined by %s, from %d pairs",
                    collection.name,
                    migration.from_model,
                    migration.to_model,
                    ", ".join(f"{kind} {way.join}" for kind, way in kept.bridge.ways.items()),
                    len(pairs.old),
                )
            else:
                kept.interval_s = min(2.0 * kept.interval_s, LOOK_INTERVAL_MAX_S)
        except AnnhealError as error:
            _log.warning("no bridge was learned for %s: %s", collection.name, error)
        finally:
            kept.learning = None

    async def _sample(self, collection: Collection, migration: Migration, limit: int) -> Pairs:
        """Return about `limit` pairs, or fewer, from random places among all hashes of ids."""
        names = (migration.from_model, migration.to_model)
        projection = Projection(vector=True, models=names)
        draw = np.random.default_rng()
        deadline = Deadline.after(SAMPLE_TIMEOUT_S)
        olds: list[Float32Matrix] = []
        news: list[Float32Matrix] = []
        seen: set[str] = set()
        for _ in range(PAGES_MAX):
            if len(seen) >= limit or deadline.passed:
                break
            place = int(draw.integers(0, 1 << 64, dtype=np.uint64))
            request = ScanRequest(
                collection_id=collection.id,
                shard=place * collection.shard_count >> 64,  # each has a range of hashes
                rows_max=PAGE_ROWS,
                after_hash=place,
                projection=projection,
            )
            page = await self._reads.scan_shard(collection, request, deadline=deadline)
            old, new = (vectors_of(page.records, name) for name in names)
            if old is None or new is None:
                continue
            both = np.flatnonzero(~(lacking(old) | lacking(new))).tolist()
            rows = [row for row in both if page.records.ids[row] not in seen]
            seen.update(page.records.ids[row] for row in rows)
            olds.append(old[rows])
            news.append(new[rows])
        old_model, new_model = (_model(collection, name) for name in names)
        return Pairs(
            _space(old_model),
            _space(new_model),
            np.concatenate([_empty(old_model), *olds]),
            np.concatenate([_empty(new_model), *news]),
        )


def _is_due(bridge: Bridge, *, pairs: int, share: float) -> bool:
    """Return whether to learn from so many pairs.

    A few are not enough to measure ways to join lists by, but a query is carried over by what they
    teach, which is better than no answer: so the first ones count, and twice as many each time.
    """
    return refit_due(bridge, pairs=pairs, share=share) or pairs > 2 * bridge.pairs


def _without_pairs(collection: Collection, migration: Migration) -> Bridge:
    old, new = (_model(collection, n) for n in (migration.from_model, migration.to_model))
    pairs = Pairs(_space(old), _space(new), _empty(old), _empty(new))
    return choose(pairs, share=_migrated_share(migration), seed=_SEED)


def _migrated_share(migration: Migration) -> float:
    share = migration.lacking_share
    return 0.5 if share is None else 1.0 - share


def _model(collection: Collection, name: str) -> ModelSpec:
    model = collection.model_named(name)
    assert model is not None, name
    return model


def _space(model: ModelSpec) -> Space:
    return Space(model.dimension, model.metric)


def _empty(model: ModelSpec) -> Float32Matrix:
    return np.empty((0, model.dimension), dtype=np.float32)
