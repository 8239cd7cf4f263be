"""The client for programs that do not use asyncio."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

from annheal.client.async_client import SEARCH_CALLS_MAX, AsyncClient
from annheal.client.connection import CONNECT_TIMEOUT_S, DEFAULT_ADDRESS
from annheal.client.inputs import FilterInput
from annheal.client.results import Records
from annheal.errors import FailedPrecondition
from annheal.model.limits import TIMEOUT_DEFAULT_S
from annheal.model.session import SessionToken
from annheal.rpc.forks import check_epoch, fork_epoch, no_fork, suspend_at_fork
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import DEFAULT_POLICY, RetryPolicy

P = ParamSpec("P")
ValueT = TypeVar("ValueT")


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, ValueT]],
) -> Callable[Concatenate[Client, P], ValueT]:
    """Return `method` for callers that wait; same arguments, same answer, same documentation."""

    def call(self: Client, /, *args: P.args, **kwargs: P.kwargs) -> ValueT:
        return self._run(lambda client: method(client, *args, **kwargs))

    functools.update_wrapper(call, method)
    return call


class Client:
    """As `AsyncClient`, method by method, for callers that wait.

    ::

        with Client("127.0.0.1:7700") as client:
            hits = client.search("papers", query, k=5)

    One background thread runs the event loop. A client may be used by several threads, and then
    their searches travel together. After a fork the parent's client goes on in the parent; a child
    makes its own.
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
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="annheal-client", daemon=True
        )
        self._thread.start()
        self._closed = False
        self._calls = 0
        self._epoch = fork_epoch()

        async def make() -> AsyncClient:
            return AsyncClient(
                address,
                timeout_s=timeout_s,
                connect_timeout_s=connect_timeout_s,
                time_limit=time_limit,
                batch_searches=batch_searches,
                search_calls_max=search_calls_max,
                read_your_writes=read_your_writes,
                retry_policy=retry_policy,
            )

        try:
            self._client = asyncio.run_coroutine_threadsafe(make(), self._loop).result()
        except BaseException:
            self._stop_loop()
            raise
        suspend_at_fork(self)

    create_collection = _blocking(AsyncClient.create_collection)
    get_collection = _blocking(AsyncClient.get_collection)
    describe_collection = _blocking(AsyncClient.describe_collection)
    list_collections = _blocking(AsyncClient.list_collections)
    update_collection = _blocking(AsyncClient.update_collection)
    add_model = _blocking(AsyncClient.add_model)
    remove_model = _blocking(AsyncClient.remove_model)
    drop_collection = _blocking(AsyncClient.drop_collection)
    upsert = _blocking(AsyncClient.upsert)
    update = _blocking(AsyncClient.update)
    delete = _blocking(AsyncClient.delete)
    get = _blocking(AsyncClient.get)
    count = _blocking(AsyncClient.count)
    search = _blocking(AsyncClient.search)
    search_batch = _blocking(AsyncClient.search_batch)
    embed = _blocking(AsyncClient.embed)
    status = _blocking(AsyncClient.status)
    health = _blocking(AsyncClient.health)
    nodes = _blocking(AsyncClient.nodes)
    shards = _blocking(AsyncClient.shards)
    segments = _blocking(AsyncClient.segments)
    flush = _blocking(AsyncClient.flush)
    compact = _blocking(AsyncClient.compact)
    tasks = _blocking(AsyncClient.tasks)
    task = _blocking(AsyncClient.task)
    cancel_task = _blocking(AsyncClient.cancel_task)
    retry_task = _blocking(AsyncClient.retry_task)
    measure_recall = _blocking(AsyncClient.measure_recall)
    recall = _blocking(AsyncClient.recall)
    test_embedder = _blocking(AsyncClient.test_embedder)
    audit_recall = _blocking(AsyncClient.audit_recall)
    worst_queries = _blocking(AsyncClient.worst_queries)
    rebalance = _blocking(AsyncClient.rebalance)
    collect_garbage = _blocking(AsyncClient.collect_garbage)
    drain = _blocking(AsyncClient.drain)
    undrain = _blocking(AsyncClient.undrain)
    move_shard = _blocking(AsyncClient.move_shard)
    plan_migration = _blocking(AsyncClient.plan_migration)
    start_migration = _blocking(AsyncClient.start_migration)
    migration = _blocking(AsyncClient.migration)
    migrations = _blocking(AsyncClient.migrations)
    update_migration = _blocking(AsyncClient.update_migration)
    pause_migration = _blocking(AsyncClient.pause_migration)
    resume_migration = _blocking(AsyncClient.resume_migration)
    validate_migration = _blocking(AsyncClient.validate_migration)
    commit_migration = _blocking(AsyncClient.commit_migration)
    rollback_migration = _blocking(AsyncClient.rollback_migration)
    abort_migration = _blocking(AsyncClient.abort_migration)
    purge_migration = _blocking(AsyncClient.purge_migration)

    def scan(
        self,
        collection: str,
        *,
        filter: FilterInput = None,
        include: Iterable[str] | str | None = "all",
        model: str | Sequence[str] | None = None,
        page_rows: int = 1_000,
        cursor: str = "",
        timeout_s: float | None = None,
    ) -> Iterator[Records]:
        """Iterate over the collection, page by page; see `AsyncClient.scan`."""
        pages = self._client.scan(
            collection,
            filter=filter,
            include=include,
            model=model,
            page_rows=page_rows,
            cursor=cursor,
            timeout_s=timeout_s,
        )

        async def next_page(_: AsyncClient) -> Records | None:
            return await anext(pages, None)

        while (page := self._run(next_page)) is not None:
            yield page

    @property
    def address(self) -> str:
        """The address this client talks to."""
        return self._client.address

    def session(self, collection: str) -> SessionToken | None:
        """Return the token of what this client has seen of a collection, for another client."""
        return self._client.session(collection)

    def suspend(self) -> None:
        """Close the connection until the next call, unless a call is under way.

        Happens before every fork by itself: the child can then use gRPC (see `annheal.rpc.forks`).
        """
        if self._closed or self._calls or self._epoch != fork_epoch():
            return
        if threading.current_thread() is not self._thread:
            asyncio.run_coroutine_threadsafe(self._client.suspend(), self._loop).result()

    def close(self) -> None:
        """Close the connection and end the thread; repeated calls do nothing."""
        if self._closed:
            return
        self._check_thread()
        self._closed = True
        if self._epoch != fork_epoch():
            return  # the thread and the connection are the parent's
        try:
            asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        finally:
            self._stop_loop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, call: Callable[[AsyncClient], Coroutine[Any, Any, ValueT]]) -> ValueT:
        if self._closed:
            raise FailedPrecondition("the client is closed")
        check_epoch(self._epoch)
        self._check_thread()
        with no_fork():
            self._calls += 1
        try:
            future = asyncio.run_coroutine_threadsafe(call(self._client), self._loop)
            try:
                return future.result()
            except BaseException:
                future.cancel()  # Ctrl-C: nobody waits for the call any more
                raise
        finally:
            with no_fork():
                self._calls -= 1

    def _check_thread(self) -> None:
        """Raise when the caller is this client's own thread, which would wait for itself."""
        if threading.current_thread() is self._thread:
            raise FailedPrecondition(
                "the client was called from one of its own callbacks (progress, an iterator of ids"
                " or rows), where the call would wait for itself: use another Client there, or"
                " AsyncClient",
                reason="CLIENT_REENTERED",
            )

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
