"""The metadata store of a cluster: etcd (3.4 or later) over a thin client of our own.

Why our own client: docs/adr/0003-metadata-store-clients.md. What fails how, and what is tried
again, is in `etcd_channel`; the watch is in `etcd_watch`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence

from annheal.errors import Conflict, InvalidArgument, Unavailable
from annheal.metastore.etcd_channel import (
    LEASE_GRANT,
    LEASE_REVOKE,
    RANGE,
    REQUEST_TIMEOUT_S,
    TXN,
    EtcdChannel,
    EtcdTls,
    EtcdUser,
)
from annheal.metastore.etcd_watch import QUIET_S, watch_prefix
from annheal.metastore.etcdpb import etcd_pb2 as pb
from annheal.metastore.limits import check_commit, check_key, check_prefix, check_ttl, prefix_end
from annheal.metastore.protocol import (
    Change,
    Compare,
    KeyValue,
    Lease,
    LeaseExpired,
    Operation,
    Put,
    Snapshot,
)

# With values of 1 MiB a page stays below the channel's limit of a message.
LIST_PAGE_KEYS = 200
STORE_PREFIX_BYTES_MAX = 256
_LIST_ATTEMPTS_MAX = 5
_COMPACTED = "required revision has been compacted"

__all__ = ["EtcdMetaStore", "EtcdTls", "EtcdUser"]


class EtcdMetaStore:
    """A `MetaStore` in etcd, under a prefix of its own.

    Args:
        endpoints: `host:port` of the members.
        prefix: put before every key; it starts and ends with a slash, one per Annheal cluster.
        tls: how to secure the connections; None speaks in the clear.
        user: log in as this etcd user.
        request_timeout_s: deadline of one attempt at one member.
        watch_quiet_s: a watch that is silent for so long checks that its member still lives.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        prefix: str,
        tls: EtcdTls | None = None,
        user: EtcdUser | None = None,
        request_timeout_s: float = REQUEST_TIMEOUT_S,
        watch_quiet_s: float = QUIET_S,
    ) -> None:
        self._prefix = check_prefix(prefix)
        if not (prefix.startswith("/") and prefix.endswith("/") and len(prefix) > 1):
            raise InvalidArgument.of("prefix", f"{prefix!r} must start and end with a slash")
        if len(self._prefix) > STORE_PREFIX_BYTES_MAX:
            raise InvalidArgument.of("prefix", f"longer than {STORE_PREFIX_BYTES_MAX} bytes")
        self._watch_quiet_s = watch_quiet_s
        self._channel = EtcdChannel(
            endpoints, tls=tls, user=user, request_timeout_s=request_timeout_s
        )

    async def get(self, key: str) -> KeyValue | None:
        """See `MetaStore.get`."""
        answer = await self._channel.call(
            RANGE, pb.RangeRequest(key=self._prefix + check_key(key), limit=1)
        )
        return self._key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Snapshot:
        """See `MetaStore.list`."""
        encoded = self._prefix + check_prefix(prefix)
        for _ in range(_LIST_ATTEMPTS_MAX):
            try:
                return await self._list_pages(encoded)
            except InvalidArgument as error:
                # A compaction overtook the pages: start at the present revision again.
                if _COMPACTED not in error.message:
                    raise
        raise Unavailable(f"compactions overtook {_LIST_ATTEMPTS_MAX} attempts to list {prefix!r}")

    async def commit(
        self, operations: Sequence[Operation], *, compares: Sequence[Compare] = ()
    ) -> int:
        """See `MetaStore.commit`."""
        check_commit(operations, compares)
        request = pb.TxnRequest(
            compare=[self._compare(compare) for compare in compares],
            success=[self._request_op(operation) for operation in operations],
        )
        answer = await self._channel.call(TXN, request)
        if not answer.succeeded:
            keys = ", ".join(repr(compare.key) for compare in compares)
            raise Conflict(
                f"not at the revision expected: one of {keys}",
                metadata={"key": compares[0].key} if len(compares) == 1 else {},
            )
        return answer.header.revision

    def watch(
        self, prefix: str, *, after_revision: int
    ) -> AsyncGenerator[tuple[Change, ...], None]:
        """See `MetaStore.watch`."""
        return watch_prefix(
            self._channel,
            self._prefix + check_prefix(prefix),
            after_revision=after_revision,
            hidden_bytes=len(self._prefix),
            quiet_s=self._watch_quiet_s,
        )

    async def grant_lease(self, ttl_s: float) -> Lease:
        """See `MetaStore.grant_lease`; etcd counts whole seconds, and not fewer than its own least.

        When etcd changes its leader it starts the full time of every lease again.
        """
        ttl = math.ceil(check_ttl(ttl_s))
        answer = await self._channel.call(LEASE_GRANT, pb.LeaseGrantRequest(ttl=ttl))
        if answer.error:
            raise Unavailable(f"etcd grants no lease: {answer.error}")
        return Lease(id=answer.id, ttl_s=float(answer.ttl))

    async def renew_lease(self, lease: Lease) -> None:
        """See `MetaStore.renew_lease`."""
        if await self._channel.keep_alive(lease.id) <= 0:
            raise LeaseExpired(f"lease {lease.id} has ended")

    async def revoke_lease(self, lease: Lease) -> None:
        """See `MetaStore.revoke_lease`."""
        try:
            await self._channel.call(LEASE_REVOKE, pb.LeaseRevokeRequest(id=lease.id))
        except LeaseExpired:
            return

    async def close(self) -> None:
        """See `MetaStore.close`; open watches end with `Unavailable`."""
        await self._channel.close()

    async def _list_pages(self, prefix: bytes) -> Snapshot:
        items: list[KeyValue] = []
        start, end, revision = prefix, prefix_end(prefix) or b"\0", 0
        while True:
            answer = await self._channel.call(
                RANGE,
                pb.RangeRequest(key=start, range_end=end, limit=LIST_PAGE_KEYS, revision=revision),
            )
            revision = revision or answer.header.revision
            items.extend(self._key_value(stored) for stored in answer.kvs)
            if not answer.more:
                return Snapshot(items=tuple(items), revision=revision)
            start = answer.kvs[-1].key + b"\0"

    def _key_value(self, stored: pb.StoredKey) -> KeyValue:
        return KeyValue(
            key=stored.key[len(self._prefix) :].decode(),
            value=stored.value,
            mod_revision=stored.mod_revision,
            lease_id=stored.lease,
        )

    def _compare(self, compare: Compare) -> pb.KeyCompare:
        return pb.KeyCompare(
            result=pb.COMPARE_RESULT_EQUAL,
            target=pb.COMPARE_TARGET_MOD,
            key=self._prefix + compare.key.encode(),
            mod_revision=compare.mod_revision,
        )

    def _request_op(self, operation: Operation) -> pb.RequestOp:
        key = self._prefix + operation.key.encode()
        if isinstance(operation, Put):
            return pb.RequestOp(
                put=pb.PutRequest(key=key, value=operation.value, lease=operation.lease_id)
            )
        return pb.RequestOp(delete_range=pb.DeleteRangeRequest(key=key))
