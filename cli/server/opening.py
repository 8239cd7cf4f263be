"""Waiting for the shards of an embedded server, so that it says ready when it can answer."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from annheal.metastore.keys import COLLECTIONS_PREFIX
from annheal.metastore.protocol import MetaStore
from annheal.metastore.table import readable
from annheal.model.collection import Collection
from annheal.model.topology.shard import ShardPhase
from annheal.rpc.port import ShardNode
from annheal.runtime.clock import monotonic_s
from annheal.runtime.tasks import TaskScope

OPEN_WITHIN_S: Final = 60.0
"""After so long the server answers for the shards that are open, and says which are not."""
SLOW_S: Final = 5.0
"""Between two messages about what is still opening."""
LOOK_INTERVAL_S: Final = 0.02
NAMED_MAX: Final = 10

_log = logging.getLogger(__name__)


async def wait_open(meta: MetaStore, node: ShardNode, scope: TaskScope) -> None:
    """Return when every shard is served, or was found damaged; at most `OPEN_WITHIN_S` later.

    Returns at once when a role in `scope` fails: who waits for the server is told why.
    """
    opening = asyncio.create_task(_wait_open(meta, node))
    failing = asyncio.create_task(scope.wait())
    try:
        await asyncio.wait({opening, failing}, return_when=asyncio.FIRST_COMPLETED)
        if opening.done():
            await opening
    finally:
        opening.cancel()
        failing.cancel()
        await asyncio.gather(opening, failing, return_exceptions=True)


async def _wait_open(meta: MetaStore, node: ShardNode) -> None:
    snapshot = await meta.list(COLLECTIONS_PREFIX)
    found = [stored.value for stored in readable(snapshot.items, Collection)]
    began_s = told_s = monotonic_s()
    while True:
        states = {(one.collection_id, one.shard): one for one in await node.shard_states()}
        settled = {
            shard
            for shard, one in states.items()
            if one.phase in (ShardPhase.SERVING, ShardPhase.FAILED)
        }
        closed = [
            f"{collection.name}/{number}"
            for collection in found
            for number in range(collection.shard_count)
            if (collection.id, number) not in settled
        ]
        now_s = monotonic_s()
        if not closed or now_s - began_s >= OPEN_WITHIN_S:
            break
        if now_s - told_s >= SLOW_S:
            told_s = now_s
            _log.info("still opening %s", _named(closed))
        await asyncio.sleep(LOOK_INTERVAL_S)
    if closed:
        _log.warning("answering now, although these are still opening: %s", _named(closed))
    for one in states.values():
        if one.phase == ShardPhase.FAILED:
            _log.error("shard %s/%d is not served: %s", one.collection_id, one.shard, one.error)


def _named(shards: list[str]) -> str:
    more = len(shards) - NAMED_MAX
    return ", ".join(shards[:NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
