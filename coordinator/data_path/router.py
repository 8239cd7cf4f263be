"""From a shard to the node that owns it, and again when the owner has changed.

This is the one layer between client and node that repeats calls: on `Fenced`, `Unavailable` and
`UnknownOutcome`, until the caller's deadline, as soon as the catalog changes.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.batcher import SearchBatcher
from annheal.errors import (
    AnnhealError,
    Fenced,
    InvalidArgument,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.collection import Collection
from annheal.model.topology.shard import NodeRegistration, ShardId
from annheal.rpc.port import ShardNode
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import RetryPolicy, retry
from annheal.runtime.tasks import TaskScope

_log = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")

ROUTE_POLICY = RetryPolicy(delay_s_min=0.01, delay_s_max=0.5, attempts_max=10_000)


Connect = Callable[[NodeRegistration], ShardNode]
"""Returns the port to a node; it connects when it is first used."""
Disconnect = Callable[[ShardNode], Awaitable[None]]
"""Closes a port that the router leaves."""


async def keep_connected(_: ShardNode) -> None:
    """Disconnect from a node in the same process: nothing to close."""


@dataclass(frozen=True, slots=True)
class NodeLink:
    """A node, its port, and the queue of searches for it."""

    registration: NodeRegistration
    node: ShardNode
    searches: SearchBatcher


def reroutable(error: AnnhealError) -> bool:
    """Return whether another try, perhaps at another node, may succeed."""
    return isinstance(error, Fenced | Unavailable | UnknownOutcome)


def _reroutable_without_effect(error: AnnhealError) -> bool:
    return reroutable(error) and not isinstance(error, UnknownOutcome)


class Router:
    """Finds owners, keeps one link for each live node, and repeats what only routing made fail."""

    def __init__(
        self,
        catalog: Catalog,
        connect: Connect,
        *,
        scope: TaskScope,
        batch: Callable[[ShardNode], SearchBatcher],
        disconnect: Disconnect = keep_connected,
    ) -> None:
        self._catalog = catalog
        self._connect = connect
        self._disconnect = disconnect
        self._scope = scope
        self._batch = batch
        self._links: dict[str, NodeLink] = {}
        self._routes: dict[str, tuple[int, dict[str, tuple[int, ...]]]] = {}

    def owner(self, shard: ShardId) -> NodeLink:
        """Return the link to the shard's owner; raises `Unavailable` or `NotFound`."""
        stored = self._catalog.assignment(shard)
        if stored is None or not stored.value.owner:
            if stored is None and self._catalog.collection_by_id(shard.collection_id) is None:
                raise NotFound(
                    f"the collection of shard {shard} does not exist (any more)",
                    reason="COLLECTION_NOT_FOUND",
                )
            raise Unavailable(f"shard {shard} has no owner yet", reason="SHARD_NOT_SERVED")
        return self.link(stored.value.owner, shard=shard)

    def link(self, node_id: str, *, shard: ShardId | None = None) -> NodeLink:
        """Return the link to a live node; raises `Unavailable` when it is not registered."""
        registration = self._catalog.node(node_id)
        if registration is None:
            about = f", the owner of shard {shard}," if shard is not None else ""
            raise Unavailable(f"node {node_id!r}{about} is not alive", reason="NODE_GONE")
        known = self._links.get(node_id)
        if known is not None:
            if known.registration is registration:
                return known
            same = (
                known.registration.address == registration.address
                and known.registration.started_at_s == registration.started_at_s
            )
            if same:
                link = NodeLink(registration, known.node, known.searches)
                self._links[node_id] = link
                return link
            self._retire(known)
        return self._open(registration)

    def groups(self, collection: Collection) -> dict[str, tuple[int, ...]]:
        """Return the shards of the collection by owner id; "" groups those without a live owner."""
        version = self._catalog.version
        cached = self._routes.get(collection.id)
        if cached is not None and cached[0] == version:
            return cached[1]
        groups = self.group(collection, range(collection.shard_count))
        if len(self._routes) > len(self._catalog.collections()) + 1:
            self._routes.clear()
        self._routes[collection.id] = (version, groups)
        return groups

    def group(self, collection: Collection, shards: Iterable[int]) -> dict[str, tuple[int, ...]]:
        """Return some shards by owner id; "" groups those without a live owner."""
        assignments = self._catalog.assignments_of(collection.id)
        grouped: dict[str, list[int]] = {}
        for shard in shards:
            stored = assignments.get(shard)
            owner = stored.value.owner if stored is not None else ""
            if owner and self._catalog.node(owner) is None:
                owner = ""
            grouped.setdefault(owner, []).append(shard)
        return {owner: tuple(numbers) for owner, numbers in grouped.items()}

    async def call(
        self,
        shard: ShardId,
        operation: Callable[[ShardNode, Deadline], Awaitable[ValueT]],
        *,
        deadline: Deadline,
        mutation: bool = False,
        repeatable: bool = True,
    ) -> ValueT:
        """Return what `operation` returns for the shard's owner, looked up anew for every try.

        A `mutation` that is not `repeatable` is not tried again after an `UnknownOutcome`. Raises
        what the last try raised; for mutations `UnknownOutcome` when a try may have taken effect. A
        deadline that passes raises `DeadlineExceeded`, or `UnknownOutcome` for mutations.
        """
        version = 0

        async def attempt(until: Deadline) -> ValueT:
            nonlocal version
            version = self._catalog.version
            return await operation(self.owner(shard).node, until)

        async def wait(delay_s: float) -> None:
            await self.wait_change(version, delay_s)

        return await retry(
            attempt,
            deadline=deadline,
            policy=ROUTE_POLICY,
            retryable=reroutable if repeatable else _reroutable_without_effect,
            mutation=mutation,
            wait=wait,
        )

    @property
    def version(self) -> int:
        """The catalog's version, to be read before a try and given to `wait_change` after it."""
        return self._catalog.version

    async def wait_change(self, version: int, delay_s: float) -> None:
        """Wait `delay_s`, less when the catalog has changed since `version`."""
        await self._catalog.wait_change(version, timeout_s=delay_s)

    def forget_gone(self) -> None:
        """Drop the links to nodes that are no longer alive."""
        alive = self._catalog.nodes()
        for node_id in [one for one in self._links if one not in alive]:
            self._retire(self._links.pop(node_id))

    async def close(self) -> None:
        """Close every port."""
        links, self._links = list(self._links.values()), {}
        for link in links:
            await self._disconnect(link.node)

    def _open(self, registration: NodeRegistration) -> NodeLink:
        node = self._connect(registration)
        link = NodeLink(registration, node, self._batch(node))
        self._links[registration.node_id] = link
        return link

    def _retire(self, link: NodeLink) -> None:
        if not self._scope.closed:
            self._scope.start(_awaited(self._disconnect(link.node)), name="close-node")


async def _awaited(work: Awaitable[None]) -> None:
    await work


def check_sequences(collection: Collection, sequences: Iterable[int]) -> None:
    """Raise `InvalidArgument` when a session token names a shard that does not exist."""
    for shard in sequences:
        if not 0 <= shard < collection.shard_count:
            raise InvalidArgument.of(
                "session", f"names shard {shard}; the collection has {collection.shard_count}"
            )
