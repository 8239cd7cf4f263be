"""Taking over a shard: load, replay, fence the log, write the manifest (docs/adr/0008)."""

from __future__ import annotations

import asyncio
import logging

from annheal.errors import Conflict, DataCorruption, Fenced, NotFound
from annheal.model.collection import Collection
from annheal.model.measures.part_health import PartKind
from annheal.model.topology.shard import ShardId
from annheal.runtime.part_tracker import PartTracker
from annheal.shard_node.owner.dependencies import ShardDependencies
from annheal.shard_node.owner.manifest_store import StoredManifest
from annheal.shard_node.owner.owned_shard import OwnedShard
from annheal.shard_node.owner.replay import (
    LogPosition,
    SegmentLoader,
    list_trimmable,
    load_manifest,
    replay_log,
    replay_slot,
)
from annheal.shard_node.owner.wal_writer import WalWriter
from annheal.shard_node.rows.shard import Shard
from annheal.shards import transitions

OPEN_ATTEMPTS_MAX = 20
OPEN_RETRY_S = 0.02

_log = logging.getLogger(__name__)


async def open_shard(
    collection: Collection, number: int, *, assignment_epoch: int, shared: ShardDependencies
) -> OwnedShard:
    """Load the shard, replay its log, and take it over by a fence in the next log slot.

    The former owner serves until the fence; after it, it cannot acknowledge a write (INV-4). The
    manifest gets the new epoch by compare-and-swap before this returns. If the log was trimmed
    meanwhile, so that the fence is in a slot that was already used, the swap fails and no write
    follows the fence. Raises `Conflict` when other owners won `OPEN_ATTEMPTS_MAX` times,
    `DataCorruption` when stored bytes are damaged or missing.
    """
    shard_id = ShardId(collection.id, number)
    for attempt in range(OPEN_ATTEMPTS_MAX):
        stored = await shared.manifests.read(shard_id)
        try:
            return await _open(
                collection, number, stored, assignment_epoch=assignment_epoch, shared=shared
            )
        except NotFound as error:
            # A trim or a compaction deletes objects while they are read, but after a new manifest.
            present = await shared.manifests.read(shard_id)
            if present.revision == stored.revision:
                raise DataCorruption(
                    f"shard {shard_id} names what does not exist ({error}): objects were lost, or "
                    "the metadata is older than the objects (restored from a backup?)",
                    metadata={"shard": str(shard_id)},
                ) from error
            _log.info("opening %s again: %s", shard_id, error)
        except Conflict as error:
            # The former owner published meanwhile, or another node took over.
            _log.info("opening %s again: %s", shard_id, error)
        await asyncio.sleep(OPEN_RETRY_S * attempt * shared.jitter())
    raise Conflict(f"shard {shard_id} could not be taken over in {OPEN_ATTEMPTS_MAX} attempts")


async def _open(
    collection: Collection,
    number: int,
    stored: StoredManifest,
    *,
    assignment_epoch: int,
    shared: ShardDependencies,
) -> OwnedShard:
    shard = Shard(collection, number)
    loader = SegmentLoader(
        shared.objects, collection, number, cache=shared.cache, lanes=shared.lanes
    )
    checkpoint_slot = stored.manifest.checkpoint_slot
    position = LogPosition(checkpoint_slot + 1, stored.manifest.epoch, [])
    await load_manifest(shard, stored.manifest, loader)
    await replay_log(shared.objects, shard, position, lanes=shared.lanes)
    wal = await _fence(shard, position, assignment_epoch, shared=shared)
    taken = await shared.manifests.publish(
        transitions.take_over(stored.manifest, epoch=wal.epoch), expected_revision=stored.revision
    )
    left = await list_trimmable(
        shared.objects, collection.id, number, checkpoint_slot=checkpoint_slot
    )
    await loader.discard_others(taken.manifest)
    return OwnedShard(
        shard,
        shared=shared,
        stored=taken,
        wal=wal,
        loader=loader,
        data_slots=[*left, *position.data_slots],
    )


async def _fence(
    shard: Shard, position: LogPosition, assignment_epoch: int, *, shared: ShardDependencies
) -> WalWriter:
    """Put an empty object with a new epoch into the next free slot, replaying taken slots.

    While the former owner writes, each slot that it took first is read and the next one is tried,
    without listing the log: that is as fast as the owner writes, so a slot is won soon.
    """
    name = f"{shard.collection.name}/{shard.number}"
    while True:
        epoch = max(position.epoch, assignment_epoch) + 1
        wal = WalWriter(
            shared.objects,
            ShardId(shard.collection.id, shard.number),
            epoch=epoch,
            writer=shared.writer,
            next_slot=position.next_slot,
            jitter=shared.jitter,
            log=PartTracker(PartKind.LOG, process=shared.node_id, place=name),
        )
        body = wal.encode([], slot=wal.next_slot, last_sequence=shard.sequence)
        try:
            slot = await wal.put(body)
        except Fenced:
            await replay_slot(shared.objects, shard, position, lanes=shared.lanes)
            continue
        shard.apply((), slot=slot, last_sequence=shard.sequence)
        return wal
