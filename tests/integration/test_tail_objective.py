"""A mean that is met hides single queries that find little; the objective about them raises ef."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from annheal import AsyncClient
from annheal.cli.server.embedded import embedded_server
from annheal.client import SearchBatch
from annheal.errors import InvalidArgument
from annheal.model.measures.recall_summary import RecallVerdict
from annheal.model.measures.recall_tail import TailObjective
from annheal.model.topology.manifest import IndexKind

ROWS, DIMENSION, QUERIES, BATCH = 6_000, 32, 512, 32
NAME = "tail"
PATIENCE_S = 120.0
MET = (RecallVerdict.MET, RecallVerdict.MET_WITH_BAD_TAIL, RecallVerdict.RECOVERING)
"""Answers of now meet the objective, whatever those of the last minute did."""
PROMISE = TailObjective(0.8, 0.9)
SETTINGS = {"recall_interval_s": "0.3", "recall_cpu_share": "1"}
COLLECTION = {"compaction_automatic": False, "recall_objective": 0.3, "recall_budget": 0}


class Load:
    """Queries without structure, so that their recall varies, and what they should find."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self._rng = np.random.default_rng(3)
        self.vectors = self._rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
        self.queries = self._rng.standard_normal((QUERIES, DIMENSION)).astype(np.float32)
        unit = self.vectors / np.linalg.norm(self.vectors, axis=1, keepdims=True)
        self._truth = np.argsort(-(self.queries @ unit.T), axis=1)[:, :10]

    async def ask(self) -> None:
        some = self._rng.choice(QUERIES, BATCH, replace=False)
        await self.client.search_batch(NAME, self.queries[some], k=10)

    async def true_share(self) -> tuple[float, float]:
        """Return the mean recall, and the share of the queries with what is promised."""
        found: SearchBatch = await self.client.search_batch(NAME, self.queries, k=10)
        recalls = np.array(
            [
                len(set(map(int, ids)) & set(true)) / 10
                for ids, true in zip(found.ids, self._truth.tolist(), strict=True)
            ]
        )
        return float(recalls.mean()), float((recalls >= PROMISE.recall - 1e-9).mean())

    async def is_met(self) -> bool:
        return (await self.client.recall(NAME)).overall.verdict in MET

    async def ef(self) -> int:
        summary = await self.client.recall(NAME)
        return max((one.ef for one in summary.segments), default=0)


async def test_inv7_a_met_mean_with_a_missed_tail_raises_ef_until_single_queries_are_served(
    tmp_path: Path,
) -> None:
    async with (
        embedded_server(tmp_path, settings=SETTINGS) as server,
        AsyncClient(server.address) as client,
    ):
        load = Load(client)
        await client.create_collection(NAME, DIMENSION, settings=COLLECTION)
        await client.upsert(NAME, [str(row) for row in range(ROWS)], load.vectors)
        await client.flush(NAME)
        await client.compact(NAME, full=True)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                segments = (await client.segments(NAME)).segments
                if [one.index_kind for one in segments] == [IndexKind.HNSW]:
                    break
                await asyncio.sleep(0.05)

        # The mean is met, and nothing is said about single queries.
        async with asyncio.timeout(PATIENCE_S):
            while not await load.ef() or not await load.is_met():
                await load.ask()
        before = await load.ef()
        mean, share = await load.true_share()
        assert mean >= COLLECTION["recall_objective"]
        assert share < PROMISE.share - 0.1, "otherwise there is nothing to raise"
        assert (await client.recall(NAME)).overall.tail_verdict is None

        with pytest.raises(InvalidArgument, match="recall_objective_share"):
            await client.update_collection(NAME, settings={"recall_tail_objective": 0.8})
        await client.update_collection(
            NAME,
            settings={
                "recall_tail_objective": PROMISE.recall,
                "recall_objective_share": PROMISE.share,
            },
        )

        # ef is raised until enough queries find enough; the mean is met all the time.
        async with asyncio.timeout(PATIENCE_S):
            while True:
                summary = await client.recall(NAME)
                if summary.overall.tail_verdict in MET:
                    break
                await load.ask()
        assert summary.tail_objective == PROMISE
        assert await load.ef() > before
        assert summary.overall.estimate is not None
        tail = summary.overall.estimate.tail
        assert tail is not None
        assert tail.share >= PROMISE.share
        # The sample is at the promise; all 512 queries are within four standard errors of it.
        assert (await load.true_share())[1] >= PROMISE.share - 4 * (0.9 * 0.1 / 128) ** 0.5
