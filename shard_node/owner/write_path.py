"""Group commit: what waits is written as one log object, made durable, applied, acknowledged.

One put is in flight per shard. While it is, further writes gather; they form the next group. A
write is acknowledged only after its log object is durable and its rows are visible (INV-1).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa

from annheal.errors import (
    AnnhealError,
    DeadlineExceeded,
    FailedPrecondition,
    Fenced,
    InvalidArgument,
    ResourceExhausted,
    UnknownOutcome,
)
from annheal.model.write import DeleteIds, DeleteWhere, Upsert, WriteAnswer, WriteOperation
from annheal.runtime.stop import Checkpoint
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.admission import checked
from annheal.shard_node.owner.wal_writer import WalWriter
from annheal.shard_node.rows.shard import Shard
from annheal.shard_node.search.reads import count_rows, matching_ids
from annheal.shards.wal import DeleteEntry, UpsertEntry, WalEntry

GROUP_BYTES_MAX = 16 << 20
GROUP_OPERATIONS_MAX = 1_024
WAITING_BYTES_MAX = 256 << 20
WAITING_OPERATIONS_MAX = 16_384
DELETE_MATCHES_MAX = 1_000_000
"""Records that one delete by filter may match: all of their ids go into one log object."""
_BACK_PRESSURE_RETRY_S = 1.0


@dataclass(slots=True)
class _Waiting:
    operation: WriteOperation
    size_bytes: int
    done: asyncio.Future[WriteAnswer] = field(repr=False)


class WritePath:
    """Orders, logs and applies the writes of one owned shard."""

    def __init__(
        self,
        shard: Shard,
        wal: WalWriter,
        *,
        mutation: asyncio.Lock,
        lanes: Lanes,
        on_applied: Callable[[], None],
    ) -> None:
        self._shard = shard
        self._wal = wal
        self._mutation = mutation
        self._lanes = lanes
        self._on_applied = on_applied
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._arrived = asyncio.Event()
        self._closed: AnnhealError | None = None

    async def submit(self, operation: WriteOperation, *, timeout_s: float) -> WriteAnswer:
        """Write `operation`; return when it is durable and visible.

        Raises `ResourceExhausted` when a limit is reached (nothing written), `Fenced` when this
        node lost the shard (nothing acknowledged), and `UnknownOutcome` after `timeout_s`: the
        write may still take effect, and repeating it is safe.
        """
        if self._closed is not None:
            raise _again(self._closed)
        size_bytes = _size_bytes(operation)
        self._admit(size_bytes, adds_rows=isinstance(operation, Upsert))
        waiting = _Waiting(operation, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_bytes += size_bytes
        self._arrived.set()
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting.done
        except TimeoutError:
            raise UnknownOutcome(
                f"the write was not acknowledged within {timeout_s:g} s; it may still take effect, "
                "repeat it to be sure"
            ) from None

    def _admit(self, size_bytes: int, *, adds_rows: bool) -> None:
        if (
            self._waiting_bytes + size_bytes > WAITING_BYTES_MAX
            or len(self._waiting) >= WAITING_OPERATIONS_MAX
        ):
            raise ResourceExhausted(
                f"{len(self._waiting)} writes of {self._waiting_bytes} bytes wait for the log; the "
                f"limits are {WAITING_OPERATIONS_MAX} and {WAITING_BYTES_MAX} bytes",
                retry_after_s=_BACK_PRESSURE_RETRY_S,
            )
        limit = self._shard.collection.settings.unindexed_rows_max
        if adds_rows and self._shard.view.unindexed_rows >= limit:
            raise ResourceExhausted(
                f"shard {self._shard.number} of {self._shard.collection.name} holds {limit} rows "
                "that no index covers yet; compaction must catch up first",
                reason="UNINDEXED_ROWS",
                retry_after_s=_BACK_PRESSURE_RETRY_S,
            )

    async def run(self) -> None:
        """Commit groups until the shard is lost or closed; then return."""
        try:
            while self._closed is None:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    await self._commit(self._next_group())
        except Fenced as error:
            self.close(error)
        finally:
            self.close(Fenced(f"shard {self._shard.number} is closed on this node"))

    def close(self, error: AnnhealError) -> None:
        """Refuse what waits and what comes (nothing of it was written), and let `run` end."""
        if self._closed is None:
            self._closed = error
        while self._waiting:
            _fail(self._waiting.popleft(), error)
        self._waiting_bytes = 0
        self._arrived.set()

    def _next_group(self) -> list[_Waiting]:
        """Take what waits, up to the limits; a delete by filter starts a group of its own.

        Its matches are those of the moment it is ordered, so everything before it is applied.
        """
        group = [self._take()]
        size_bytes = group[0].size_bytes
        while self._waiting and len(group) < GROUP_OPERATIONS_MAX:
            size_bytes += self._waiting[0].size_bytes
            if size_bytes > GROUP_BYTES_MAX or isinstance(self._waiting[0].operation, DeleteWhere):
                break
            group.append(self._take())
        return group

    def _take(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._waiting_bytes -= waiting.size_bytes
        return waiting

    async def _commit(self, group: list[_Waiting]) -> None:
        group = [waiting for waiting in group if not waiting.done.done()]
        if not group:
            return
        try:
            await self._write_group(group)
        except ResourceExhausted as error:
            _fail_all(group, error)
        except Fenced as error:
            _fail_all(group, error)
            raise
        except BaseException:
            # The log object may be durable although its rows were not applied: the process goes
            # on without this shard, and whoever opens it next replays the log.
            _fail_all(group, UnknownOutcome("the write path broke; repeat the write to be sure"))
            raise

    async def _write_group(self, group: list[_Waiting]) -> None:
        def encode(
            checkpoint: Checkpoint,
        ) -> tuple[list[tuple[_Waiting, WalEntry]], dict[int, AnnhealError], bytes]:
            ordered, refused = self._entries(group, checkpoint)
            entries = [entry for _, entry in ordered]
            if not entries:
                return ordered, refused, b""
            body = self._wal.encode(entries, last_sequence=entries[-1].last_sequence)
            return ordered, refused, body

        collection_id = self._shard.collection.id
        ordered, refused, body = await self._lanes.change(encode, collection_id=collection_id)
        for position, error in refused.items():
            _fail(group[position], error)
        if not ordered:
            return
        slot = await self._wal.put(body)
        entries = [entry for _, entry in ordered]
        async with self._mutation:
            killed = await self._lanes.change(
                lambda _: self._shard.apply(
                    entries, slot=slot, last_sequence=entries[-1].last_sequence
                ),
                collection_id=collection_id,
            )
        self._on_applied()
        for (waiting, entry), count in zip(ordered, killed, strict=True):
            if not waiting.done.done():
                waiting.done.set_result(_answer(entry, count))

    def _entries(
        self, group: list[_Waiting], checkpoint: Checkpoint
    ) -> tuple[list[tuple[_Waiting, WalEntry]], dict[int, AnnhealError]]:
        """Give sequence numbers: one per row written, one per delete. Refuse what is not valid."""
        sequence = self._shard.sequence + 1
        ordered: list[tuple[_Waiting, WalEntry]] = []
        refused: dict[int, AnnhealError] = {}
        for position, waiting in enumerate(group):
            try:
                entry = self._entry(waiting, sequence, checkpoint)
            except AnnhealError as error:
                refused[position] = error
                continue
            ordered.append((waiting, entry))
            sequence = entry.last_sequence + 1
        return ordered, refused

    def _entry(self, waiting: _Waiting, sequence: int, checkpoint: Checkpoint) -> WalEntry:
        operation = checked(waiting.operation, collection=self._shard.collection)
        if isinstance(operation, Upsert):
            return UpsertEntry(sequence, operation.batch)
        if isinstance(operation, DeleteIds):
            return DeleteEntry(sequence, pa.array(operation.ids, type=pa.string()))
        pause = partial(_go_on, waiting, checkpoint)
        matches = count_rows(self._shard.view, operation.filter, checkpoint=pause)
        if matches > DELETE_MATCHES_MAX:
            raise FailedPrecondition(
                f"the filter matches {matches} records of shard {self._shard.number}; one delete "
                f"takes at most {DELETE_MATCHES_MAX}: delete in narrower slices",
                reason="TOO_MANY_MATCHES",
            )
        ids = matching_ids(self._shard.view, operation.filter, checkpoint=pause)
        return DeleteEntry(sequence, pa.array(ids, type=pa.string()))


def _go_on(waiting: _Waiting, checkpoint: Checkpoint) -> None:
    """Let others have their turn; raise when nobody waits for this write, which is not in the log.

    Only a write that was not ordered yet may end so.
    """
    if waiting.done.done():
        raise DeadlineExceeded("the caller left before the records to delete were found")
    checkpoint()


def _answer(entry: WalEntry, killed: int) -> WriteAnswer:
    if isinstance(entry, UpsertEntry):
        return WriteAnswer(entry.last_sequence, upserted=len(entry.batch))
    return WriteAnswer(entry.last_sequence, deleted=killed)


def _fail(waiting: _Waiting, error: AnnhealError) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(_again(error))


def _fail_all(group: list[_Waiting], error: AnnhealError) -> None:
    for waiting in group:
        _fail(waiting, error)


def _again(error: AnnhealError) -> AnnhealError:
    """Return an equal error: one object raised by many callers would gather their tracebacks."""
    if isinstance(error, InvalidArgument):
        return InvalidArgument(
            error.message,
            violations=error.violations,
            reason=error.reason,
            metadata=error.metadata,
        )
    return type(error)(
        error.message,
        reason=error.reason,
        metadata=error.metadata,
        retry_after_s=error.retry_after_s,
    )


def _size_bytes(operation: WriteOperation) -> int:
    if isinstance(operation, Upsert):
        batch = operation.batch
        return (
            batch.vectors.nbytes
            + batch.ids.nbytes
            + batch.attributes.nbytes
            + batch.payloads.nbytes
        )
    if isinstance(operation, DeleteIds):
        return sum(len(record_id) for record_id in operation.ids)
    return 0
