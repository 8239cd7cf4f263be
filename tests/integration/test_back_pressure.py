"""Writes are refused while too many rows wait for an index, and the SDK waits as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from annheal import AsyncClient
from annheal.cli.server.embedded import EmbeddedServer, embedded_server
from annheal.errors import ResourceExhausted
from annheal.model.topology.task import TaskPhase
from annheal.runtime.retry import RetryPolicy
from annheal.shard_node.owner.write_path import WritePath

LIMIT = 1_000
BATCH = 250
DEADLINE_S = 60.0
VECTORS = np.random.default_rng(5).standard_normal((8 * BATCH, 8)).astype(np.float32)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with embedded_server(tmp_path, settings={"compaction_automatic": "false"}) as running:
        yield running


@pytest.fixture
def refusals(monkeypatch: pytest.MonkeyPatch) -> list[ResourceExhausted]:
    """Gathers what the owner refuses, while it refuses it."""
    found: list[ResourceExhausted] = []
    real = WritePath._admit

    def admit(self: WritePath, size_bytes: int, *, adds_rows: bool) -> None:
        try:
            real(self, size_bytes, adds_rows=adds_rows)
        except ResourceExhausted as error:
            found.append(error)
            raise

    monkeypatch.setattr(WritePath, "_admit", admit)
    return found


def batch(number: int) -> tuple[list[str], npt.NDArray[np.float32]]:
    rows = range(number * BATCH, (number + 1) * BATCH)
    return [f"r{row}" for row in rows], VECTORS[rows.start : rows.stop]


async def test_writes_wait_for_the_index_and_none_is_lost(
    server: EmbeddedServer, refusals: list[ResourceExhausted]
) -> None:
    once = RetryPolicy(attempts_max=1)
    async with (
        AsyncClient(server.address) as client,
        AsyncClient(server.address, retry_policy=once) as impatient,
    ):
        await client.create_collection("c", 8, settings={"unindexed_rows_max": LIMIT})
        for number in range(LIMIT // BATCH):
            await client.upsert("c", *batch(number))
        with pytest.raises(ResourceExhausted, match="no index covers") as refused:
            await impatient.upsert("c", *batch(4))
        assert refused.value.reason == "UNINDEXED_ROWS"
        assert refused.value.retry_after_s == 1.0
        assert len(refusals) == 1, "nobody but the client repeats it"
        assert (await client.delete("c", ids=["r0"])).count == 1, "deletes are let through"

        waiting = asyncio.create_task(client.upsert("c", *batch(4), timeout_s=DEADLINE_S))
        began_s = asyncio.get_running_loop().time()
        async with asyncio.timeout(DEADLINE_S):
            while len(refusals) < 4:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        took_s = asyncio.get_running_loop().time() - began_s
        assert took_s >= 2.0, "three refusals are two waits of a second at least"
        assert not waiting.done()
        (task,) = await client.compact("c", full=True)
        assert task.phase is TaskPhase.PUBLISHED
        await waiting
        assert await client.count("c") == LIMIT + BATCH - 1
