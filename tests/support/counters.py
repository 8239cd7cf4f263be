"""Clients that count by compare and swap: no increment may be lost, and none counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from annheal import AsyncClient
from annheal.errors import AnnhealError, DeadlineExceeded

COLLECTION = "counter"
COUNTER = "counter"
CLIENTS = 3
TIMEOUT_S = 15.0
PAUSE_AFTER_FAILURE_S = 0.05


@dataclass(slots=True)
class Counters:
    """Tasks that add 1 to one record, each on condition of the version that it has read.

    An increment whose outcome is unknown may have been made, so the record holds at least as many
    as were acknowledged, and at most as many more as are unknown.
    """

    client: AsyncClient
    acknowledged: int = 0
    lost: int = 0
    unknown: int = 0

    async def count(self, stop: asyncio.Event) -> None:
        """Count until `stop` is set."""
        while not stop.is_set():
            try:
                value, version = await self._read()
            except AnnhealError as error:
                await _pause_after(error)
                continue
            try:
                result = await self.client.update(
                    COLLECTION,
                    [COUNTER],
                    attributes={"value": [value + 1]},
                    if_versions=[version],
                    timeout_s=TIMEOUT_S,
                )
            except AnnhealError as error:
                self.unknown += 1
                await _pause_after(error)
                continue
            assert result.count + len(result.conflicts) == 1
            self.acknowledged += result.count
            self.lost += len(result.conflicts)

    async def _read(self) -> tuple[int, int]:
        (record,) = await self.client.get(
            COLLECTION, [COUNTER], consistency="strong", timeout_s=TIMEOUT_S
        )
        assert record.attributes is not None
        assert record.version is not None
        return int(record.attributes["value"]), record.version

    async def check(self) -> None:
        """Assert that the record holds what was counted."""
        value, _ = await self._read()
        print(
            f"counted {value}: {self.acknowledged} acknowledged, {self.unknown} unknown,"
            f" {self.lost} conflicts"
        )
        assert self.acknowledged <= value <= self.acknowledged + self.unknown
        assert self.lost, "no two clients ever met"


@asynccontextmanager
async def counting(client: AsyncClient) -> AsyncIterator[None]:
    """Count inside the context; the counter is checked at its end."""
    await client.create_collection(COLLECTION, 2, attributes={"value": "int64"})
    await client.upsert(COLLECTION, [COUNTER], [[1.0, 0.0]], attributes={"value": [0]})
    counters, stop = Counters(client), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(counters.count(stop))
        yield
        stop.set()
    await counters.check()


async def _pause_after(error: AnnhealError) -> None:
    """Wait after an error that may happen while servers die; raise any other."""
    if not (error.retryable or isinstance(error, DeadlineExceeded)):
        raise error
    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
