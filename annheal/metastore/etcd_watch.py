"""A watch on etcd that loses nothing: the stream may break, the position does not.

The position (`next_revision`) moves only past changes that were delivered. Headers of other
answers are no position: on servers before 3.4.25 and 3.5.8 they can run ahead of changes that are
still to come (etcd issue 15220). Progress is asked for only to learn whether the server lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from itertools import groupby

import grpc
import grpc.aio

from annheal.errors import ResourceExhausted, Unavailable
from annheal.metastore.etcd_channel import EtcdChannel, OpenWatch
from annheal.metastore.etcdpb import etcd_pb2 as pb
from annheal.metastore.limits import prefix_end
from annheal.metastore.protocol import Change, WatchCompacted

# A stream that is silent for so long is asked for a sign of life, and left when none comes.
QUIET_S = 3.0
_BACKOFF_FIRST_S = 0.05
_BACKOFF_MAX_S = 1.0

Batch = tuple[Change, ...]


class _StreamEnded(Exception):
    """The stream broke, or its server is silent: open another one."""


async def watch_prefix(
    channel: EtcdChannel,
    prefix: bytes,
    *,
    after_revision: int,
    hidden_bytes: int,
    quiet_s: float = QUIET_S,
) -> AsyncGenerator[Batch, None]:
    """Yield one batch per revision, as `MetaStore.watch` promises.

    `hidden_bytes` at the start of every key are the store's own prefix and are not shown.
    """
    next_revision = after_revision + 1
    backoff_s = _BACKOFF_FIRST_S
    while True:
        try:
            stream = _one_stream(channel, prefix, next_revision, hidden_bytes, quiet_s)
            async with aclosing(stream):
                async for batch in stream:
                    yield batch
                    next_revision = batch[-1].mod_revision + 1
                    backoff_s = _BACKOFF_FIRST_S
        except (_StreamEnded, Unavailable, ResourceExhausted):
            if channel.closed:
                raise Unavailable("the metadata store was closed") from None
        await asyncio.sleep(backoff_s)
        backoff_s = min(backoff_s * 2, _BACKOFF_MAX_S)


async def _one_stream(
    channel: EtcdChannel, prefix: bytes, start_revision: int, hidden_bytes: int, quiet_s: float
) -> AsyncGenerator[Batch, None]:
    """Yield batches until this stream ends, which raises `_StreamEnded`."""
    watch = await channel.open_watch()
    batches = _BatchAssembler(hidden_bytes)
    try:
        await _send(watch, _create_request(prefix, start_revision), quiet_s)
        async with aclosing(_responses(watch, quiet_s)) as responses:
            async for response in responses:
                _check(response, start_revision)
                for batch in batches.add(response):
                    yield batch
    except grpc.aio.AioRpcError as error:
        channel.watch_failed(watch, error)
        raise _StreamEnded from error
    except _StreamEnded:
        channel.watch_failed(watch, None)
        raise
    finally:
        watch.call.cancel()


def _create_request(prefix: bytes, start_revision: int) -> pb.WatchRequest:
    return pb.WatchRequest(
        create_request=pb.WatchCreateRequest(
            key=prefix,
            range_end=prefix_end(prefix) or b"\0",
            start_revision=start_revision,
            # Without it one answer may hold a thousand revisions and break the message limit.
            fragment=True,
        )
    )


async def _responses(watch: OpenWatch, quiet_s: float) -> AsyncGenerator[pb.WatchResponse, None]:
    """Yield what the server sends; raises `_StreamEnded` when it ends or falls silent."""
    while True:
        reading = asyncio.create_task(_read(watch))
        try:
            if not await _arrives(reading, quiet_s):
                await _send(
                    watch,
                    pb.WatchRequest(progress_request=pb.WatchProgressRequest()),
                    quiet_s,
                )
                if not await _arrives(reading, quiet_s):
                    raise _StreamEnded
            if reading.cancelled():
                # The call was cancelled under us, not this task: the channel is being closed.
                raise _StreamEnded
            yield reading.result()
        finally:
            _drop(reading)


async def _read(watch: OpenWatch) -> pb.WatchResponse:
    response = await watch.call.read()
    if not isinstance(response, pb.WatchResponse):
        raise _StreamEnded
    return response


def _drop(reading: asyncio.Task[pb.WatchResponse]) -> None:
    if not reading.cancel() and not reading.cancelled():
        # Looked at, so that asyncio does not report an error that nobody waits for any more.
        reading.exception()


async def _arrives(reading: asyncio.Task[pb.WatchResponse], timeout_s: float) -> bool:
    done, _ = await asyncio.wait({reading}, timeout=timeout_s)
    return bool(done)


async def _send(watch: OpenWatch, request: pb.WatchRequest, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await watch.call.write(request)
    except (TimeoutError, asyncio.InvalidStateError) as error:
        raise _StreamEnded from error


def _check(response: pb.WatchResponse, start_revision: int) -> None:
    if response.compact_revision:
        raise WatchCompacted(
            f"changes before revision {response.compact_revision} are no longer kept,"
            f" asked for those from {start_revision}"
        )
    if response.canceled:
        # No leader, or a token that is not known any more.
        raise _StreamEnded


class _BatchAssembler:
    """Puts fragments together, so that the changes of one revision leave in one piece."""

    def __init__(self, hidden_bytes: int) -> None:
        self._hidden_bytes = hidden_bytes
        self._pending: list[Change] = []

    def add(self, response: pb.WatchResponse) -> Iterator[Batch]:
        """Yield the revisions that are complete with this answer."""
        self._pending.extend(self._change(event) for event in response.events)
        complete = self._pending
        self._pending = []
        if response.fragment and complete:
            # More is to come, perhaps of the last revision.
            last = complete[-1].mod_revision
            self._pending = [change for change in complete if change.mod_revision == last]
            complete = [change for change in complete if change.mod_revision != last]
        for _, changes in groupby(complete, key=lambda change: change.mod_revision):
            yield tuple(changes)

    def _change(self, event: pb.Event) -> Change:
        deleted = event.type == pb.EVENT_TYPE_DELETE
        return Change(
            key=event.kv.key[self._hidden_bytes :].decode(),
            value=None if deleted else event.kv.value,
            mod_revision=event.kv.mod_revision,
            lease_id=event.kv.lease,
        )
