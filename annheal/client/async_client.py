"""The client for programs that use asyncio."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final

from annheal.client.admin_calls import AdminCalls
from annheal.client.batching import SearchGatherer
from annheal.client.collection_calls import CollectionCalls
from annheal.client.connection import CONNECT_TIMEOUT_S, DEFAULT_ADDRESS, ServerConnection
from annheal.client.migration_calls import MigrationCalls
from annheal.client.records.read_calls import ReadCalls
from annheal.client.records.write_calls import WriteCalls
from annheal.client.search_calls import SearchCalls
from annheal.model.limits import TIMEOUT_DEFAULT_S
from annheal.model.session import SessionToken
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import DEFAULT_POLICY, RetryPolicy

SEARCH_CALLS_MAX: Final = 1
"""Calls under way for equal searches. One had the highest throughput on two cores; a server that is
far away, or has many, gains from more."""


class AsyncClient(CollectionCalls, WriteCalls, ReadCalls, SearchCalls, AdminCalls, MigrationCalls):
    """A connection to one coordinator. Make it inside the event loop that uses it.

    ::

        async with AsyncClient("127.0.0.1:7700") as client:
            await client.create_collection("papers", 384, attributes={"year": "int64"})
            await client.upsert("papers", ids, vectors, attributes={"year": years})
            for hit in await client.search("papers", query, k=5, filter="year >= 2024"):
                print(hit.id, hit.score)

    Calls may run at the same time. Errors are those of `annheal.errors`. What may be repeated is
    repeated, with growing and jittered waits, while the error is retryable and the call's time is
    not over; record writes are idempotent. Creating and dropping a collection are not repeated, and
    writes on condition only after errors that say that nothing was written.

    Args:
        address: `host:port` of a coordinator, or a gRPC target.
        timeout_s: time for a call that names none, retries included.
        connect_timeout_s: a server that this client has never reached is given up after so long.
        time_limit: no call goes on past it, whatever its own time; for programs that must end.
        batch_searches: let searches that run at the same time travel together.
        search_calls_max: calls under way at once for equal searches.
        read_your_writes: reads see what this client wrote, whatever server answers.
        retry_policy: waits and attempts.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        timeout_s: float = TIMEOUT_DEFAULT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        time_limit: Deadline | None = None,
        batch_searches: bool = True,
        search_calls_max: int = SEARCH_CALLS_MAX,
        read_your_writes: bool = True,
        retry_policy: RetryPolicy = DEFAULT_POLICY,
    ) -> None:
        self._connection = ServerConnection(
            address,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            time_limit=time_limit,
            retry_policy=retry_policy,
            read_your_writes=read_your_writes,
        )
        self._gatherer = (
            SearchGatherer(self._search_gathered, calls_max=search_calls_max)
            if batch_searches
            else None
        )
        self._embedders = {}
        self._embedder_lock = asyncio.Lock()

    @property
    def address(self) -> str:
        """The address this client talks to."""
        return self._connection.api.address

    def session(self, collection: str) -> SessionToken | None:
        """Return the token of what this client has seen of a collection, for another client."""
        return self._connection.session(collection)

    async def suspend(self) -> None:
        """Close the connection until the next call; nothing may be under way."""
        await self._connection.api.suspend()

    async def close(self) -> None:
        """Cancel what is under way and close the connection; repeated calls do nothing."""
        if self._gatherer is not None:
            await self._gatherer.close()
        await self._connection.api.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
