"""Group commit: waiting writes are put into one log object, applied, and acknowledged together.

Each shard has one put in flight. Writes that arrive meanwhile form the next group. A write is
acknowledged only after its log object is durable and its rows are visible (INV-1).

A group is encoded, put and applied. A put mostly waits for the store, so meanwhile the previous
group is applied, and the next one is encoded if at least `EARLY_GROUP_BYTES_MIN` wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from annheal.errors import (
    AnnhealError,
    DeadlineExceeded,
    Fenced,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.model.write import (
    DeleteIds,
    DeleteWhere,
    Update,
    Upsert,
    WriteAnswer,
    WriteOperation,
    depends_on_records,
)
from annheal.runtime.host.disk import DiskWatch
from annheal.runtime.stop import YieldPoint
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.admission import checked
from annheal.shard_node.owner.resolving import Resolved, ids_of, resolve
from annheal.shard_node.owner.wal_writer import WalWriter
from annheal.shard_node.rows.shard import Shard
from annheal.shards.wal import WalEntry

GROUP_BYTES_MAX = 16 << 20
GROUP_OPERATIONS_MAX = 1_024
EARLY_GROUP_BYTES_MIN = 2 << 20
"""From this size on the next group is encoded during a put, because encoding it takes milliseconds.
A smaller one is encoded after the put, with the writes that arrive until then."""
WAITING_BYTES_MAX = 256 << 20
WAITING_OPERATIONS_MAX = 16_384
LOG_AWAY_S = 2.0
"""Writes are refused at once when the log could not be written for this long."""
ANSWER_SHARE = 0.1
ANSWER_MAX_S = 0.25
"""The part of a write's timeout, at most `ANSWER_MAX_S`, that is kept for an error with the reason:
a deadline of the call has none."""
_BACK_PRESSURE_RETRY_S = 1.0


@dataclass(slots=True)
class _Waiting:
    operation: WriteOperation
    size_bytes: int
    done: asyncio.Future[WriteAnswer] = field(repr=False)
    begun: bool = False


@dataclass(frozen=True, slots=True)
class _Encoded:
    """Writes in their order, and the log object `body` of a slot that has them as entries."""

    writes: tuple[tuple[_Waiting, Resolved], ...]
    slot: int
    body: bytes

    @property
    def entries(self) -> list[WalEntry]:
        return _entries_of(self.writes)

    @property
    def waiting(self) -> list[_Waiting]:
        return [waiting for waiting, _ in self.writes]


@dataclass(slots=True)
class _Ordered:
    """What became of the writes of a group when they were resolved in their order.

    `writes` have entries for the log. `settled` are answers and errors of others, `left` is where
    those begin that wait for the next group.
    """

    writes: list[tuple[_Waiting, Resolved]] = field(default_factory=list)
    settled: list[tuple[_Waiting, WriteAnswer | AnnhealError]] = field(default_factory=list)
    left: int = 0
    encoded: _Encoded | None = None


class WritePath:
    """Orders, logs and applies the writes of one owned shard."""

    def __init__(
        self,
        shard: Shard,
        wal: WalWriter,
        *,
        mutation: asyncio.Lock,
        lanes: Lanes,
        disks: DiskWatch,
        on_applied: Callable[[], None],
    ) -> None:
        self._shard = shard
        self._wal = wal
        self._mutation = mutation
        self._lanes = lanes
        self._disks = disks
        self._on_applied = on_applied
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._changed = asyncio.Event()
        self._sequence = 0
        self._unlogged = 0
        self._unapplied = 0
        self._encoded: asyncio.Queue[_Encoded | None] = asyncio.Queue(1)
        self._logged: asyncio.Queue[_Encoded | None] = asyncio.Queue(1)
        self._closed: AnnhealError | None = None

    async def submit(self, operation: WriteOperation, *, timeout_s: float) -> WriteAnswer:
        """Write `operation`; return when it is durable and visible.

        Raises `ResourceExhausted` at a limit and `Unavailable` while the log cannot be written (the
        write has no effect), `InvalidArgument` for a bad operation, `FailedPrecondition` for a
        filter that matches too many records, `Fenced` when this node lost the shard, and
        `UnknownOutcome` when the put of the write began but the write did not end within
        `timeout_s`: it may still take effect, and may be repeated.
        """
        if self._closed is not None:
            raise _again(self._closed)
        if self._wal.blocked_for_s >= LOG_AWAY_S:
            raise self._away("nothing was written")
        size_bytes = _size_bytes(operation)
        self._admit(size_bytes, adds_rows=isinstance(operation, Upsert | Update))
        waiting = _Waiting(operation, size_bytes, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._waiting_bytes += size_bytes
        self._changed.set()
        try:
            async with asyncio.timeout(timeout_s - min(ANSWER_MAX_S, ANSWER_SHARE * timeout_s)):
                return await waiting.done
        except TimeoutError:
            raise self._overdue(waiting, timeout_s) from None

    def _overdue(self, waiting: _Waiting, timeout_s: float) -> AnnhealError:
        """Return the error of a write after its timeout: if its put began, an unknown outcome."""
        if not waiting.begun:
            return self._away(f"the write waited {timeout_s:g} s and was not begun")
        because = f"; {self._log_problem()}" if self._wal.blocked_for_s else ""
        return UnknownOutcome(
            f"the write was not acknowledged within {timeout_s:g} s{because}. It may still take"
            " effect: repeat it to be sure",
            reason="LOG_UNAVAILABLE" if because else None,
        )

    def _away(self, outcome: str) -> Unavailable:
        waited_for = "writes before it, or the count of the records to delete, took so long"
        problem = self._log_problem() if self._wal.blocked_for_s else waited_for
        return Unavailable(
            f"{outcome}: {problem}", reason="LOG_UNAVAILABLE", retry_after_s=_BACK_PRESSURE_RETRY_S
        )

    def _log_problem(self) -> str:
        shard = f"{self._shard.collection.name}/{self._shard.number}"
        return (
            f"the log of shard {shard} cannot be written since {self._wal.blocked_for_s:.0f} s, the"
            f" object store fails: {self._wal.log.error}"
        )

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
        if adds_rows:
            self._disks.check_room()
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
            async with asyncio.TaskGroup() as steps:
                steps.create_task(self._encode_groups())
                steps.create_task(self._log_groups())
                steps.create_task(self._apply_groups())
        finally:
            self.close(Fenced(f"shard {self._shard.number} is closed on this node"))
            for queue in (self._encoded, self._logged):
                while not queue.empty():
                    if (group := queue.get_nowait()) is not None:
                        _fail_all(group.waiting, _broken())

    def close(self, error: AnnhealError) -> None:
        """Refuse waiting and later writes with `error`; none was written. `run` then ends."""
        if self._closed is None:
            self._closed = error
        while self._waiting:
            _fail(self._waiting.popleft(), error)
        self._waiting_bytes = 0
        self._changed.set()

    async def _encode_groups(self) -> None:
        while (group := await self._next_group()) is not None:
            with self._answered(group):
                encoded = await self._encode(group)
                if encoded is not None:
                    await self._encoded.put(encoded)
                    continue
            self._unlogged -= 1
            self._unapplied -= 1
        await self._encoded.put(None)

    async def _log_groups(self) -> None:
        while (group := await self._encoded.get()) is not None:
            with self._answered(group.waiting):
                logged = await self._log(group)
                self._unlogged -= 1
                if logged is None:
                    self._unapplied -= 1
                self._changed.set()
                if logged is not None:
                    await self._logged.put(logged)
        await self._logged.put(None)

    async def _apply_groups(self) -> None:
        while (group := await self._logged.get()) is not None:
            with self._answered(group.waiting):
                await self._apply(group)
            self._unapplied -= 1
            self._changed.set()

    @contextmanager
    def _answered(self, group: list[_Waiting]) -> Iterator[None]:
        """Fail the writes of `group` if the step fails or is cancelled."""
        try:
            yield
        except BaseException:
            # The log object may be durable although its rows were not applied. The shard is closed,
            # and its next owner replays the log.
            _fail_all(group, _broken())
            raise

    async def _next_group(self) -> list[_Waiting] | None:
        """Return the next group when it may be encoded; None once the shard is closed."""
        while self._closed is None:
            if self._waiting and self._may_begin():
                self._unlogged += 1
                self._unapplied += 1
                return self._take_group()
            self._changed.clear()
            await self._changed.wait()
        return None

    def _may_begin(self) -> bool:
        if depends_on_records(self._waiting[0].operation):
            return not self._unapplied
        early = self._unlogged == 1 and self._waiting_bytes >= EARLY_GROUP_BYTES_MIN
        return not self._unlogged or early

    def _take_group(self) -> list[_Waiting]:
        """Take waiting writes up to the limits.

        One that depends on the records is the first of its group, so all writes before it are
        applied. Others like it follow in the same group if they name other ids than those before
        them; not so with a delete by filter, which names none.
        """
        group = [self._take()]
        size_bytes = group[0].size_bytes
        first = group[0].operation
        joins = depends_on_records(first) and not isinstance(first, DeleteWhere)
        named = set(ids_of(first)) if joins else set[str]()
        while self._waiting and len(group) < GROUP_OPERATIONS_MAX:
            operation = self._waiting[0].operation
            size_bytes += self._waiting[0].size_bytes
            if size_bytes > GROUP_BYTES_MAX or isinstance(operation, DeleteWhere):
                break
            if joins or depends_on_records(operation):
                ids = ids_of(operation)
                if depends_on_records(operation) and not (joins and named.isdisjoint(ids)):
                    break
                named.update(ids)
            group.append(self._take())
        return group

    def _take(self) -> _Waiting:
        waiting = self._waiting.popleft()
        self._waiting_bytes -= waiting.size_bytes
        return waiting

    async def _encode(self, group: list[_Waiting]) -> _Encoded | None:
        """Order and encode a group for its expected slot; None if no write of it is left."""
        slot = self._wal.next_slot + self._unlogged - 1
        first = max(self._sequence, self._shard.sequence) + 1
        kept = [waiting for waiting in group if not waiting.done.done()]

        def encode(yield_point: YieldPoint) -> _Ordered:
            ordered = self._ordered(kept, first, yield_point)
            if ordered.writes:
                ordered.encoded = self._as_object(ordered.writes, slot)
            return ordered

        ordered = await self._lanes.change(encode, collection_id=self._shard.collection.id)
        self._put_back(kept[ordered.left :])
        for waiting, outcome in ordered.settled:
            if isinstance(outcome, AnnhealError):
                _fail(waiting, outcome)
            else:
                _acknowledge(waiting, outcome)
        if ordered.encoded is not None:
            self._sequence = ordered.encoded.entries[-1].last_sequence
        return ordered.encoded

    def _put_back(self, writes: Sequence[_Waiting]) -> None:
        """Let writes wait again, as the next ones."""
        if writes and self._closed is not None:
            _fail_all(list(writes), self._closed)
            return
        self._waiting.extendleft(reversed(writes))
        self._waiting_bytes += sum(waiting.size_bytes for waiting in writes)

    def _as_object(self, writes: Sequence[tuple[_Waiting, Resolved]], slot: int) -> _Encoded:
        entries = _entries_of(writes)
        body = self._wal.encode(entries, slot=slot, last_sequence=entries[-1].last_sequence)
        return _Encoded(tuple(writes), slot, body)

    async def _log(self, group: _Encoded) -> _Encoded | None:
        """Put a group into the log; None if nothing was written and its callers have the error.

        It is encoded again if a caller of it has left, or if its slot is not the next one because
        an earlier group was not written. Sequence numbers may have gaps, slots may not.
        """
        writes = [(waiting, entry) for waiting, entry in group.writes if not waiting.done.done()]
        if self._closed is not None:
            _fail_all(group.waiting, self._closed)
            return None
        if not writes:
            return None
        for waiting, _ in writes:
            waiting.begun = True
        slot = self._wal.next_slot
        if len(writes) < len(group.writes) or group.slot != slot:
            group = await self._lanes.change(
                lambda _: self._as_object(writes, slot), collection_id=self._shard.collection.id
            )
        try:
            await self._wal.put(group.body)
        except ResourceExhausted as error:
            _fail_all(group.waiting, error)
            return None
        except Fenced as error:
            _fail_all(group.waiting, error)
            self.close(error)
            return None
        return group

    async def _apply(self, group: _Encoded) -> None:
        """Make a logged group visible and acknowledge it."""
        entries = group.entries
        async with self._mutation:
            killed = await self._lanes.change(
                lambda _: self._shard.apply(
                    entries, slot=group.slot, last_sequence=entries[-1].last_sequence
                ),
                collection_id=self._shard.collection.id,
            )
        self._on_applied()
        for (waiting, resolved), count in zip(group.writes, killed, strict=True):
            _acknowledge(waiting, resolved.answer(killed=count, sequence=self._shard.sequence))

    def _ordered(self, group: list[_Waiting], sequence: int, yield_point: YieldPoint) -> _Ordered:
        """Resolve the writes of a group in their order.

        Sequence numbers begin at `sequence`: one for each row written, one for each delete. Updates
        become whole records, so the group may become too large: then the rest of it is left.
        """
        found = _Ordered()
        collection = self._shard.collection
        size_bytes = 0
        for waiting in group:
            if size_bytes > GROUP_BYTES_MAX:
                break
            found.left += 1
            try:
                operation = checked(waiting.operation, collection=collection)
                resolved = resolve(
                    operation,
                    self._shard.view,
                    sequence=sequence,
                    yield_point=partial(_check_caller, waiting, yield_point),
                    models=collection.usable_models if len(collection.models) > 1 else (),
                )
            except AnnhealError as error:
                found.settled.append((waiting, error))
                continue
            if resolved.entry is None:
                answer = resolved.answer(killed=0, sequence=self._shard.sequence)
                found.settled.append((waiting, answer))
                continue
            found.writes.append((waiting, resolved))
            sequence = resolved.entry.last_sequence + 1
            size_bytes += resolved.size_bytes
        return found


def _entries_of(writes: Sequence[tuple[_Waiting, Resolved]]) -> list[WalEntry]:
    return [resolved.entry for _, resolved in writes if resolved.entry is not None]


def _check_caller(waiting: _Waiting, yield_point: YieldPoint) -> None:
    """Call `yield_point`; raise `DeadlineExceeded` if the caller of this write has left.

    Only for a write that has no sequence number yet.
    """
    if waiting.done.done():
        raise DeadlineExceeded("the caller left before the records to change were found")
    yield_point()


def _acknowledge(waiting: _Waiting, answer: WriteAnswer) -> None:
    if not waiting.done.done():
        waiting.done.set_result(answer)


def _broken() -> UnknownOutcome:
    return UnknownOutcome("the write path broke; repeat the write to be sure")


def _fail(waiting: _Waiting, error: AnnhealError) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(_again(error))


def _fail_all(group: list[_Waiting], error: AnnhealError) -> None:
    for waiting in group:
        _fail(waiting, error)


def _again(error: AnnhealError) -> AnnhealError:
    """Return a copy: one error raised to many callers would collect all their tracebacks."""
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
        return operation.batch.nbytes
    if isinstance(operation, Update):
        return operation.patch.nbytes
    if isinstance(operation, DeleteIds):
        return sum(len(record_id) for record_id in operation.ids)
    return 0
