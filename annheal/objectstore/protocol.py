"""What Annheal asks of an object store: durable, immutable objects with put-if-absent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ObjectStat:
    """One object of a listing. `modified_s` is the store's clock, in seconds since the epoch."""

    key: str
    size_bytes: int
    modified_s: float


class ObjectStore(Protocol):
    """Immutable objects named by `/`-separated keys.

    Keys are made of `[A-Za-z0-9._-]` parts (not `.` or `..`, at most 255 characters) joined by
    `/`, at most 512 characters; anything else raises `InvalidArgument`. No key may lie inside
    another (`a` and `a/b`): what happens then differs between stores. Objects are never
    overwritten. A successful put is durable (it survives loss of power, as far as the medium
    keeps its word) and visible to every later read and listing. Every method may raise
    `Unavailable` when the store cannot be reached; for reads and deletes repeating is safe, and
    for puts the implementation has already settled the outcome or raises `UnknownOutcome`.
    """

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`, atomically.

        Among racing writers of different bodies exactly one returns; every other raises
        `AlreadyExists`. A lost answer is settled by reading back: an object that holds exactly
        `body` counts as this call's own, so writers that race must put something unique into the
        body. Raises `UnknownOutcome` when it cannot be settled; repeating the same call is safe.
        """
        ...

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from the file at `path`, as `put_if_absent`, without loading all of it."""
        ...

    async def get(self, key: str) -> bytes:
        """Return the whole object; raises `NotFound`."""
        ...

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file and return that file's path.

        A local store returns its own read-only file and leaves `destination` alone; a remote one
        downloads to `destination` (temp file, then rename; parents are made). The caller must not
        write to the returned file. A file that was returned stays readable through open handles
        and maps after the object is deleted. Raises `NotFound`.
        """
        ...

    def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield the objects whose key starts with `prefix` and exceeds `after`, in key order."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; a missing key is no error. May fail part-way; repeat to finish."""
        ...

    async def close(self) -> None:
        """Release connections. No other call may be made afterwards."""
        ...
