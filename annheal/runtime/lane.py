"""A lane: threads for one kind of work, shared fairly between tenants (collections).

Work is cut into slices by its own calls of a yield point. There it stops if no caller waits for it
any more, and passes its turn on if another tenant has had less time. So a long piece of work delays
others of its lane by one slice, however long it takes as a whole.

Tenants share the time as start-time fair queuing does (Goyal, Vin, Cheng: Start-time Fair Queueing,
SIGCOMM 1996), with the seconds that the slices really took instead of an estimate.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from annheal.errors import ResourceExhausted, Unavailable
from annheal.runtime.clock import Clock, monotonic_s
from annheal.runtime.deadline import Deadline
from annheal.runtime.stop import StopSignal, YieldPoint

ResultT = TypeVar("ResultT")
Work = Callable[[YieldPoint], ResultT]

TURN_S_MIN = 0.001
"""A turn is not passed on sooner: handing it to another thread takes about a tenth of that."""
GIVE_WAY_S_MAX = 0.01
"""A slice that gives way to another lane waits no longer: with slices of a few milliseconds it gets
a quarter of a core, whatever goes on there."""
RETRY_AFTER_S = 0.1
NICE_MAX = 19

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How much of one kind of work a process does at a time (INV-9).

    turns: pieces of work that run at once.
    open_max: pieces that have begun and not ended, at least `turns`; each has a thread, and those
        without a turn sleep.
    waiting_max: pieces that may wait to begin; None where the callers are bounded by themselves.
    tenant_waiting_max: the same for one tenant, so that one cannot fill the queue of all.
    nice: by how much the threads' priority is below the process's, 0 to 19 (Linux only).
    """

    turns: int
    open_max: int
    waiting_max: int | None = None
    tenant_waiting_max: int | None = None
    nice: int = 0

    def __post_init__(self) -> None:
        """Refuse limits with which nothing could run."""
        if not 1 <= self.turns <= self.open_max:
            raise ValueError(f"{self.turns} turns for {self.open_max} pieces of work")


@dataclass(frozen=True, slots=True)
class LaneState:
    """How a lane is doing: what waits to begin, what has a turn, and what was refused so far."""

    waiting: int
    running: int
    refused: int


@dataclass(eq=False, slots=True)
class _Job(Generic[ResultT]):
    work: Work[ResultT]
    tenant: str
    signal: StopSignal
    arrived_s: float
    future: Future[ResultT] = field(default_factory=Future)
    turn_began_s: float = 0.0
    begun: bool = False
    has_turn: bool = False
    resumed: threading.Event = field(default_factory=threading.Event)


class Lane:
    """Runs work of one kind in threads of its own; `run` is called on an event loop."""

    def __init__(
        self,
        name: str,
        limits: LaneLimits,
        *,
        gives_way_to: Lane | None = None,
        on_wait: Callable[[float], None] = lambda _: None,
        clock: Clock = monotonic_s,
    ) -> None:
        """Make the lane.

        Its slices begin when nothing has a turn in the lane that it `gives_way_to`, or after
        `GIVE_WAY_S_MAX`. `on_wait` is told how many seconds each piece of work waited to begin.
        """
        self._name = name
        self._limits = limits
        self._gives_way_to = gives_way_to
        self._on_wait = on_wait
        self._clock = clock
        self._pool = ThreadPoolExecutor(
            limits.open_max,
            thread_name_prefix=name,
            initializer=lower_thread_priority,
            initargs=(limits.nice,),
        )
        self._lock = threading.Lock()
        self._idle = threading.Event()
        self._idle.set()
        self._tenants = _Tenants()
        self._free_turns = limits.turns
        self._open = 0
        self._waiting = 0
        self._refused = 0
        self._closed = False

    def state(self) -> LaneState:
        """Return how the lane is doing."""
        with self._lock:
            return LaneState(self._waiting, self._limits.turns - self._free_turns, self._refused)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait in the calling thread until nothing has a turn; False when that took too long."""
        return self._idle.wait(timeout_s)

    async def run(
        self, work: Work[ResultT], *, tenant: str, deadline: Deadline | None = None
    ) -> ResultT:
        """Return what `work` returns, or raise what it raises.

        `work` is given its yield point. When the caller is cancelled, work that has not begun never
        does, and other work ends at its next yield point. Raises `ResourceExhausted` when too much
        waits, and `Unavailable` after `close`.
        """
        job = self._admit(work, tenant, deadline)
        try:
            return await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            self._stop(job)
            raise

    async def run_to_end(self, work: Work[ResultT], *, tenant: str) -> ResultT:
        """As `run`, but a cancelled caller holds on until the work has ended.

        For a change that must not be left half done, or under a lock that the caller holds.
        """
        future = asyncio.wrap_future(self._admit(work, tenant, None).future)
        cancelled: asyncio.CancelledError | None = None
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            future.exception()  # seen: the caller's end comes first
            raise cancelled
        return future.result()

    def close(self) -> None:
        """Take no further work and end the threads; what was taken is finished."""
        with self._lock:
            self._closed = True
        self._pool.shutdown(wait=False)

    def _admit(self, work: Work[ResultT], tenant: str, deadline: Deadline | None) -> _Job[ResultT]:
        job = _Job(work, tenant, StopSignal(deadline), self._clock())
        with self._lock:
            if self._closed:
                raise Unavailable("this process is stopping")
            self._check_room(tenant)
            self._tenants.append(job)
            self._waiting += 1
            started = self._take_startable()
        if started is not None:
            self._pool.submit(self._work, started)
        return job

    def _check_room(self, tenant: str) -> None:
        limits = self._limits
        full = limits.waiting_max is not None and self._waiting >= limits.waiting_max
        held = limits.tenant_waiting_max
        if not full and (held is None or self._tenants.waiting_of(tenant) < held):
            return
        self._refused += 1
        what = f"{self._waiting} calls" if full else f"{held} calls of the same collection"
        raise ResourceExhausted(
            f"{what} wait for the {self._name} lane of this node already",
            reason="LANE_FULL",
            metadata={"lane": self._name},
            retry_after_s=RETRY_AFTER_S,
        )

    def _take_startable(self) -> _Job[Any] | None:
        """Give a free turn to the next job; return it when a thread must begin it. Holds the lock.

        A job that was paused is woken instead.
        """
        while self._free_turns:
            job = self._tenants.take(may_begin=self._open < self._limits.open_max)
            if job is None:
                return None
            self._take_turn(job)
            if job.begun:
                job.resumed.set()
                continue
            job.begun = True
            self._open += 1
            self._waiting -= 1
            return job
        return None

    def _work(self, first: _Job[Any]) -> None:
        """Run jobs in the calling thread as long as there is one to begin."""
        job: _Job[Any] | None = first
        while job is not None:
            self._on_wait(job.turn_began_s - job.arrived_s)
            deliver = _nothing
            if job.future.set_running_or_notify_cancel():
                deliver = _outcome(job, partial(self._yield_point, job))
            # The turn goes on before the caller does: it finds the lane as it left it.
            following = self._end(job)
            deliver()
            job = following

    def _end(self, job: _Job[Any]) -> _Job[Any] | None:
        with self._lock:
            self._open -= 1
            if job.has_turn:
                self._give_turn_back(job)
            return self._take_startable()

    def _take_turn(self, job: _Job[Any]) -> None:
        job.has_turn = True
        job.turn_began_s = self._clock()
        self._free_turns -= 1
        self._idle.clear()

    def _give_turn_back(self, job: _Job[Any]) -> None:
        job.has_turn = False
        self._free_turns += 1
        if self._free_turns == self._limits.turns:
            self._idle.set()
        self._tenants.charge(job.tenant, self._clock() - job.turn_began_s)

    def _yield_point(self, job: _Job[Any]) -> None:
        """Stop the job if it should, and let another tenant that had less time go first."""
        job.signal.check()
        if self._gives_way_to is not None:
            self._gives_way_to.wait_idle(GIVE_WAY_S_MAX)
            job.signal.check()
        if self._clock() - job.turn_began_s < TURN_S_MIN:
            return
        with self._lock:
            self._give_turn_back(job)
            if self._closed or not self._tenants.has_poorer(
                job.tenant, may_begin=self._open < self._limits.open_max
            ):
                self._take_turn(job)
                return
            job.resumed.clear()
            self._tenants.prepend(job)
            started = self._take_startable()
        if started is not None:
            self._pool.submit(self._work, started)
        job.resumed.wait()
        job.signal.check()

    def _stop(self, job: _Job[Any]) -> None:
        """Let the job end: at once where it waits, else at its next yield point."""
        job.signal.stop()
        with self._lock:
            if not self._tenants.remove(job):
                return
            if job.begun:
                job.resumed.set()  # ends without a turn
            else:
                self._waiting -= 1


class _Tenants:
    """Jobs that wait for a turn, by tenant, and how much time each tenant has had.

    `_had` has only tenants that had more than `_floor`, the least that counts: what a tenant did
    not use while it asked for nothing is not saved up.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, deque[_Job[Any]]] = {}
        self._had: dict[str, float] = {}
        self._floor = 0.0

    def append(self, job: _Job[Any]) -> None:
        """Let a new job wait behind those of its tenant."""
        self._jobs.setdefault(job.tenant, deque()).append(job)

    def prepend(self, job: _Job[Any]) -> None:
        """Let a paused job wait before those of its tenant."""
        self._jobs.setdefault(job.tenant, deque()).appendleft(job)

    def remove(self, job: _Job[Any]) -> bool:
        """Take a job out; False when it does not wait."""
        jobs = self._jobs.get(job.tenant)
        if jobs is None or job not in jobs:
            return False
        jobs.remove(job)
        if not jobs:
            del self._jobs[job.tenant]
        return True

    def waiting_of(self, tenant: str) -> int:
        """Return how many jobs of the tenant wait to begin."""
        return sum(not job.begun for job in self._jobs.get(tenant, ()))

    def charge(self, tenant: str, seconds: float) -> None:
        """Note that the tenant had a turn of so many seconds."""
        self._had[tenant] = self._time_had(tenant) + seconds

    def has_poorer(self, tenant: str, *, may_begin: bool) -> bool:
        """Return whether a tenant that had less time than this one could use a turn."""
        other = self._poorest(may_begin)
        return other is not None and self._time_had(other) < self._time_had(tenant)

    def take(self, *, may_begin: bool) -> _Job[Any] | None:
        """Take the next job of the tenant that had the least time; None without any.

        Unless `may_begin`, only of those that have begun.
        """
        tenant = self._poorest(may_begin)
        if tenant is None:
            return None
        self._floor = max(self._floor, self._time_had(tenant))
        self._had = {name: had for name, had in self._had.items() if had > self._floor}
        jobs = self._jobs[tenant]
        job = jobs.popleft()
        if not jobs:
            del self._jobs[tenant]
        return job

    def _poorest(self, may_begin: bool) -> str | None:
        # Jobs that have begun stand before the others of their tenant.
        able = [tenant for tenant, jobs in self._jobs.items() if may_begin or jobs[0].begun]
        return min(able, key=self._time_had, default=None)

    def _time_had(self, tenant: str) -> float:
        return self._had.get(tenant, self._floor)


def lower_thread_priority(nice: int) -> None:
    """Put the priority of the calling thread, and of threads it starts, `nice` steps lower.

    Below that of the process, 0 to 19; only Linux has priorities of threads.
    """
    if not nice or sys.platform != "linux":
        return
    usual = os.getpriority(os.PRIO_PROCESS, os.getpid())
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), min(NICE_MAX, usual + nice))
    except OSError as error:
        _log.debug("threads run at the usual priority: %s", error)


def _nothing() -> None:
    """Deliver nothing."""


def _outcome(job: _Job[ResultT], yield_point: YieldPoint) -> Callable[[], None]:
    """Run the job; return what hands its result or its error to whoever waits for it."""
    try:
        return partial(job.future.set_result, job.work(yield_point))
    except BaseException as error:  # noqa: BLE001 - the caller raises it, as with any future
        return partial(job.future.set_exception, error)
