"""Reads and compare-and-swaps of manifests; the only module that does them."""

from __future__ import annotations

from dataclasses import dataclass

from annheal.errors import Conflict, UnknownOutcome
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.keys import collected_key, manifest_key
from annheal.metastore.protocol import Compare, MetaStore, Put
from annheal.model.topology.manifest import CollectedObjects, Manifest
from annheal.model.topology.shard import ShardId


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest and the revision of its key; 0: not stored yet."""

    manifest: Manifest
    revision: int


@dataclass(frozen=True, slots=True)
class Collected:
    """The objects of a shard that garbage collection deletes, and the revision of their key."""

    units: frozenset[str] = frozenset()
    revision: int = 0


class ManifestStore:
    """Manifests in the metadata store."""

    def __init__(self, meta: MetaStore) -> None:
        self._meta = meta

    async def read(self, shard: ShardId) -> StoredManifest:
        """Return the stored manifest, or an empty one."""
        key = manifest_key(shard.collection_id, shard.number)
        stored = await self._meta.get(key)
        if stored is None:
            return StoredManifest(Manifest(shard.collection_id, shard.number), 0)
        return StoredManifest(decode_value(stored.value, Manifest, key=key), stored.mod_revision)

    async def collected(self, shard: ShardId) -> Collected:
        """Return the objects that garbage collection deletes."""
        key = collected_key(shard.collection_id, shard.number)
        stored = await self._meta.get(key)
        if stored is None:
            return Collected()
        value = decode_value(stored.value, CollectedObjects, key=key)
        return Collected(frozenset(value.units), stored.mod_revision)

    async def publish(
        self,
        manifest: Manifest,
        *,
        expected_revision: int,
        collected_revision: int | None = None,
    ) -> StoredManifest:
        """Store `manifest` if its key still has `expected_revision`; raises `Conflict` otherwise.

        `Conflict` also if the key of the collected objects does not have `collected_revision`;
        None, for a manifest without a new object, compares nothing. After an unknown outcome the
        stored manifest is read and compared with `manifest`. Raises `UnknownOutcome` when it was
        not changed yet, `Unavailable` when it cannot be read.
        """
        key = manifest_key(manifest.collection_id, manifest.shard)
        compares = [Compare(key, expected_revision)]
        if collected_revision is not None:
            collected = collected_key(manifest.collection_id, manifest.shard)
            compares.append(Compare(collected, collected_revision))
        try:
            revision = await self._meta.commit(
                [Put(key, encode_value(manifest))], compares=compares
            )
        except UnknownOutcome:
            stored = await self.read(ShardId(manifest.collection_id, manifest.shard))
            if stored.manifest == manifest:
                return stored
            if stored.revision == expected_revision:
                raise
            raise Conflict(f"manifest {key} was changed by another writer") from None
        return StoredManifest(manifest, revision)
