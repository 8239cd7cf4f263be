"""An object store that counts its calls: how long, how many bytes, how many failed."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from annheal.errors import AlreadyExists, AnnhealError, NotFound
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.runtime.metrics import Metrics

_ANSWERS = (AlreadyExists, NotFound)
"""What a caller may expect; no failure of the store."""


class MeteredObjectStore:
    """`store`, with its calls counted in `metrics` by the first part of their keys."""

    def __init__(self, store: ObjectStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`."""
        with self._call("put", key):
            await self._store.put_if_absent(key, body)
        self._bytes("put", key, len(body) if isinstance(body, bytes) else body.nbytes)

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from a file."""
        size_bytes = path.stat().st_size  # noqa: ASYNC240 - one stat
        with self._call("put", key):
            await self._store.put_file_if_absent(key, path)
        self._bytes("put", key, size_bytes)

    async def get(self, key: str) -> bytes:
        """Return the whole object."""
        with self._call("get", key):
            body = await self._store.get(key)
        self._bytes("get", key, len(body))
        return body

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file."""
        with self._call("get", key):
            path = await self._store.fetch(key, destination)
        if path == destination:
            self._bytes("get", key, path.stat().st_size)
        return path

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield the objects below `prefix`; not counted, as the time is the caller's too."""
        return self._store.list(prefix, after=after)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects."""
        with self._call("delete", keys[0] if keys else ""):
            await self._store.delete(keys)

    async def close(self) -> None:
        """Close the store."""
        await self._store.close()

    @contextmanager
    def _call(self, operation: str, key: str) -> Iterator[None]:
        part = key.partition("/")[0]
        began_s = time.perf_counter()
        try:
            yield
        except AnnhealError as error:
            if not isinstance(error, _ANSWERS):
                self._metrics.store_errors.add(1, operation, part, type(error).__name__)
            raise
        finally:
            self._metrics.store_seconds.observe(time.perf_counter() - began_s, operation, part)

    def _bytes(self, operation: str, key: str, size_bytes: int) -> None:
        self._metrics.store_bytes.add(size_bytes, operation, key.partition("/")[0])
