"""Object stores around another one: injected faults, and counts."""

from __future__ import annotations

import asyncio
import enum
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from annheal.errors import Unavailable, UnknownOutcome
from annheal.objectstore.protocol import ObjectStat, ObjectStore


class Operation(enum.Enum):
    """The calls of an object store."""

    PUT = "put"
    PUT_FILE = "put_file"
    GET = "get"
    FETCH = "fetch"
    LIST = "list"
    DELETE = "delete"


class FaultKind(enum.Enum):
    """What goes wrong with one call."""

    NONE = "none"
    UNAVAILABLE = "unavailable"
    """The call fails with `Unavailable` before it has any effect."""
    LOST_ANSWER = "lost_answer"
    """The call takes effect, then fails: puts with `UnknownOutcome`, others `Unavailable`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens to one call: it waits `latency_s`, then goes wrong as `kind` says."""

    kind: FaultKind = FaultKind.NONE
    latency_s: float = 0.0


NO_FAULT = Fault()


class FaultPlan(Protocol):
    """Decides, call by call, what goes wrong."""

    def next_fault(self, operation: Operation, key: str) -> Fault:
        """Return the fault of this call; `key` is the key, the prefix, or "" for deletes."""
        ...


class NoFaults:
    """Nothing goes wrong."""

    def next_fault(self, operation: Operation, key: str) -> Fault:
        """Return no fault."""
        return NO_FAULT


class ScriptedFaults:
    """The faults of a script, one for each call that `operations` names; then none."""

    def __init__(
        self, faults: Iterable[Fault], *, operations: Iterable[Operation] = tuple(Operation)
    ) -> None:
        self._faults = iter(faults)
        self._operations = frozenset(operations)

    def next_fault(self, operation: Operation, key: str) -> Fault:
        """Return the next fault of the script."""
        return next(self._faults, NO_FAULT) if operation in self._operations else NO_FAULT


class RandomFaults:
    """Faults at given rates (0 to 1), reproducible by the seed of `rng`."""

    def __init__(
        self,
        rng: random.Random,
        *,
        unavailable_rate: float = 0.0,
        lost_answer_rate: float = 0.0,
        latency_s_max: float = 0.0,
    ) -> None:
        self._rng = rng
        self._unavailable_rate = unavailable_rate
        self._lost_answer_rate = lost_answer_rate
        self._latency_s_max = latency_s_max

    def next_fault(self, operation: Operation, key: str) -> Fault:
        """Draw a fault."""
        draw = self._rng.random()
        latency_s = self._rng.uniform(0.0, self._latency_s_max)
        if draw < self._unavailable_rate:
            return Fault(FaultKind.UNAVAILABLE, latency_s)
        if draw < self._unavailable_rate + self._lost_answer_rate:
            return Fault(FaultKind.LOST_ANSWER, latency_s)
        return Fault(FaultKind.NONE, latency_s)


class FaultyObjectStore:
    """Passes calls on to `inner`, with the faults of `plan`; implements `ObjectStore`.

    For tests and drills. A faulty listing fails when it begins, or with a lost answer after its
    first entry.
    """

    def __init__(self, inner: ObjectStore, plan: FaultPlan) -> None:
        self._inner = inner
        self.plan = plan

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`; see `ObjectStore`."""
        fault = await self._before(Operation.PUT, key)
        await self._inner.put_if_absent(key, body)
        if fault.kind is FaultKind.LOST_ANSWER:
            raise UnknownOutcome(f"injected: lost answer of put {key}")

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from the file at `path`; see `ObjectStore`."""
        fault = await self._before(Operation.PUT_FILE, key)
        await self._inner.put_file_if_absent(key, path)
        if fault.kind is FaultKind.LOST_ANSWER:
            raise UnknownOutcome(f"injected: lost answer of put {key}")

    async def get(self, key: str) -> bytes:
        """Return the whole object; see `ObjectStore`."""
        fault = await self._before(Operation.GET, key)
        body = await self._inner.get(key)
        _after(fault, Operation.GET)
        return body

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file; see `ObjectStore`."""
        fault = await self._before(Operation.FETCH, key)
        path = await self._inner.fetch(key, destination)
        _after(fault, Operation.FETCH)
        return path

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield objects in key order; see `ObjectStore`."""
        fault = await self._before(Operation.LIST, prefix)
        async for stat in self._inner.list(prefix, after=after):
            yield stat
            _after(fault, Operation.LIST)

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; see `ObjectStore`."""
        fault = await self._before(Operation.DELETE, "")
        await self._inner.delete(keys)
        _after(fault, Operation.DELETE)

    async def close(self) -> None:
        """Close the inner store."""
        await self._inner.close()

    async def _before(self, operation: Operation, key: str) -> Fault:
        fault = self.plan.next_fault(operation, key)
        if fault.latency_s > 0:
            await asyncio.sleep(fault.latency_s)
        if fault.kind is FaultKind.UNAVAILABLE:
            raise Unavailable(f"injected: {operation.value} {key} is unavailable")
        return fault


def _after(fault: Fault, operation: Operation) -> None:
    if fault.kind is FaultKind.LOST_ANSWER:
        raise Unavailable(f"injected: lost answer of {operation.value}")


@dataclass(slots=True)
class OperationCount:
    """What one kind of call came to; `size_bytes` are bodies that were put or got."""

    calls: int = 0
    failures: int = 0
    size_bytes: int = 0


class CountingObjectStore:
    """Passes calls on to `inner` and counts them in `counts`; implements `ObjectStore`.

    `failures` are calls that raised, the expected `NotFound` and `AlreadyExists` included.
    """

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.counts: dict[Operation, OperationCount] = {
            operation: OperationCount() for operation in Operation
        }

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`; see `ObjectStore`."""
        with self._counted(Operation.PUT) as count:
            await self._inner.put_if_absent(key, body)
            count.size_bytes += memoryview(body).nbytes

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from the file at `path`; see `ObjectStore`."""
        with self._counted(Operation.PUT_FILE) as count:
            await self._inner.put_file_if_absent(key, path)
            count.size_bytes += (await asyncio.to_thread(path.stat)).st_size

    async def get(self, key: str) -> bytes:
        """Return the whole object; see `ObjectStore`."""
        with self._counted(Operation.GET) as count:
            body = await self._inner.get(key)
            count.size_bytes += len(body)
            return body

    async def fetch(self, key: str, destination: Path) -> Path:
        """Make the object readable as a local file; see `ObjectStore`."""
        with self._counted(Operation.FETCH) as count:
            path = await self._inner.fetch(key, destination)
            count.size_bytes += (await asyncio.to_thread(path.stat)).st_size
            return path

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield objects in key order; see `ObjectStore`."""
        with self._counted(Operation.LIST):
            async for stat in self._inner.list(prefix, after=after):
                yield stat

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; see `ObjectStore`."""
        with self._counted(Operation.DELETE):
            await self._inner.delete(keys)

    async def close(self) -> None:
        """Close the inner store."""
        await self._inner.close()

    @contextmanager
    def _counted(self, operation: Operation) -> Iterator[OperationCount]:
        count = self.counts[operation]
        count.calls += 1
        try:
            yield count
        except GeneratorExit:
            raise  # a listing that its reader left early did not fail
        except BaseException:
            count.failures += 1
            raise
