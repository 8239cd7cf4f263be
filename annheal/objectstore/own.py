"""An object store in which foreign objects are passed over, and logged once."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.runtime.metrics import Metrics
from annheal.shards.object_keys import parse_key

FOREIGN_REMEMBERED_MAX = 1_000
"""Foreign keys that are remembered, so that each is logged once; further ones are not logged."""
SHOWN_CHARACTERS_MAX = 300

_log = logging.getLogger(__name__)


class OwnObjects:
    """`store`, listing only what Annheal wrote there (`annheal.shards.object_keys`).

    An editor's backup or an operating system's file between the objects must stop nothing. Each is
    named once in the log, and counted in `metrics` by the first part of its key, so that an
    operator can remove it; nothing here ever deletes it.
    """

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._known: set[str] = set()

    @property
    def foreign(self) -> str:
        """Say in a sentence what foreign objects listings have found; empty: none."""
        if not self._known:
            return ""
        count, first = len(self._known), min(self._known)[:SHOWN_CHARACTERS_MAX]
        more = "at least " if count >= FOREIGN_REMEMBERED_MAX else ""
        if count == 1:
            return f"object {first} is not Annheal's and ignored: remove it"
        return (
            f"{more}{count:,} objects, such as {first}, are not Annheal's and ignored: remove them"
        )

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`."""
        await self._store.put_if_absent(key, body)

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from a file."""
        await self._store.put_file_if_absent(key, path)

    async def get(self, key: str) -> bytes:
        """Return the whole object."""
        return await self._store.get(key)

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file."""
        return await self._store.fetch(key, destination)

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield the objects below `prefix` that are Annheal's."""
        async for stat in self._store.list(prefix, after=after):
            if parse_key(stat.key) is None:
                self._note(stat.key)
            else:
                yield stat

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects."""
        await self._store.delete(keys)

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    def _note(self, key: str) -> None:
        if key in self._known or len(self._known) >= FOREIGN_REMEMBERED_MAX:
            return
        self._known.add(key)
        self._metrics.foreign_objects.add(1, key.partition("/")[0])
        _log.warning(
            "object %s is not one of Annheal's; it is passed over, remove it",
            key[:SHOWN_CHARACTERS_MAX],
        )
