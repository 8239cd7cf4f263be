"""What Annheal asks of a metadata store: compare-and-swap, leases, gap-free watches."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from annheal.errors import AnnhealError


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key as stored. `mod_revision` is the store-wide revision of its last change."""

    key: str
    value: bytes
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys under a prefix, in key order, as of `revision`."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True)
class Compare:
    """Guard of a transaction: `key` must have exactly `mod_revision`; 0 means it must not exist."""

    key: str
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Set `key`; with a lease it is deleted when the lease ends."""

    key: str
    value: bytes
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete `key`; a missing key is no error."""

    key: str


Operation: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class Change:
    """One change seen by a watch; `value` is None when the key was deleted (or its lease ended)."""

    key: str
    value: bytes | None
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease. `ttl_s` is what the store granted, which may be more than was asked."""

    id: int
    ttl_s: float


class WatchCompacted(AnnhealError):
    """The changes asked for are no longer kept: list again and watch from that revision."""

    reason = "WATCH_COMPACTED"
    retryable = True


class LeaseExpired(AnnhealError):
    """The lease has ended; its keys are gone or about to go."""

    reason = "LEASE_EXPIRED"


class MetaStore(Protocol):
    """A small, strongly consistent, ordered key-value store.

    Every change has a store-wide, growing revision. Reads are linearizable. Keys are `/`-separated
    UTF-8 strings of at most 1,024 bytes; values at most 1 MiB; a commit holds at most 100
    operations, 100 compares and 1.25 MiB and changes no key twice; anything else raises
    `InvalidArgument`. Every method may raise `Unavailable`; for reads repeating is safe.
    """

    async def get(self, key: str) -> KeyValue | None:
        """Return the key, or None."""
        ...

    async def list(self, prefix: str) -> Snapshot:
        """Return every key that starts with `prefix`, as of one revision."""
        ...

    async def commit(
        self, operations: Sequence[Operation], *, compares: Sequence[Compare] = ()
    ) -> int:
        """Apply all operations if every compare holds, and return the new revision.

        When nothing was changed (no operation, or only deletes of missing keys) the revision is
        the present one.

        Raises `Conflict` when a compare fails (nothing changed), `LeaseExpired` when a put names
        a lease that has ended, `UnknownOutcome` when the answer was lost: the transaction took
        effect wholly or not at all, and the caller reads back. It is never retried inside.
        """
        ...

    def watch(
        self, prefix: str, *, after_revision: int
    ) -> AsyncGenerator[tuple[Change, ...], None]:
        """Yield every change under `prefix` with a revision greater than `after_revision`.

        In revision order, each exactly once, all changes of one revision in one batch, across
        reconnects and restarts of the store; deletions by lease expiry included. Never ends by
        itself; waits out an absent store. Raises `WatchCompacted` when changes were dropped by
        compaction before they could be delivered. Close it with `aclose()`.
        """
        ...

    async def grant_lease(self, ttl_s: float) -> Lease:
        """Grant a lease of at least `ttl_s`, counted by the store's clock."""
        ...

    async def renew_lease(self, lease: Lease) -> None:
        """Start the lease's full time again; raises `LeaseExpired` when it has ended."""
        ...

    async def revoke_lease(self, lease: Lease) -> None:
        """End the lease and delete its keys; an ended lease is no error."""
        ...

    async def close(self) -> None:
        """Release connections. No other call may be made afterwards."""
        ...
