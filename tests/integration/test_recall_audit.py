"""An audit in a real server: fresh queries judge the estimate, and a restart keeps the coverage."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from annheal import AsyncClient
from annheal.cli.server.embedded import embedded_server
from annheal.errors import InvalidArgument
from annheal.model.measures.recall_audit import AuditReport, AuditVerdict, covered
from annheal.model.measures.recall_summary import ALL_SHARDS

ROWS, DIMENSION, BATCH = 2_000, 16, 32
NAME = "audited"
PATIENCE_S = 60.0


@asynccontextmanager
async def opened(folder: Path, *, interval_s: int = 1) -> AsyncIterator[AsyncClient]:
    settings = {"recall_interval_s": str(interval_s), "recall_cpu_share": "1"}
    async with (
        embedded_server(folder, settings=settings) as server,
        AsyncClient(server.address) as client,
    ):
        yield client


async def audited(
    client: AsyncClient,
    queries: np.ndarray,  # type: ignore[type-arg]
    *,
    merged: bool = False,
) -> AuditReport:
    """Search until an audit has enough other queries; `merged`: that of merged answers."""
    rng = np.random.default_rng(8)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for _ in range(4):
                some = rng.choice(len(queries), BATCH, replace=False)
                await client.search_batch(NAME, queries[some], k=10)
            report = await client.audit_recall(NAME, queries_max=500)
            of = report.merged if merged else report.audits
            if any(one.verdict is not AuditVerdict.UNKNOWN for one in of):
                return report
            await asyncio.sleep(0.05)


async def test_fresh_queries_confirm_an_honest_estimate_and_the_coverage_survives(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    queries = rng.standard_normal((1_000, DIMENSION)).astype(np.float32)
    looked: list[tuple[int, int]] = []
    async with opened(tmp_path) as client:
        await client.create_collection(NAME, DIMENSION, settings={"compaction_automatic": False})
        await client.upsert(NAME, [str(row) for row in range(ROWS)], rows)
        await client.flush(NAME)
        nothing = await client.audit_recall(
            NAME, progress=lambda done, shards: looked.append((done, shards))
        )
        assert (nothing.audits, nothing.coverage) == ((), ())
        assert looked == [(0, 1)]
        report = await audited(client, queries)
        [audit] = report.audits
        # Every row is compared, so both are 1; what is tested is who judges whom.
        assert audit.verdict is AuditVerdict.CONTAINED
        assert audit.audited is not None
        assert audit.audited.recall == audit.estimate.recall == 1.0
        assert audit.audited.queries >= 32
        windows, contained = covered(report.coverage)
        assert windows == contained >= 1
        with pytest.raises(InvalidArgument, match="queries_max"):
            await client.audit_recall(NAME, queries_max=0)
        counted = covered((await client.recall(NAME)).coverage)
    async with opened(tmp_path) as client:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                if covered((await client.recall(NAME)).coverage) == counted:
                    break
                await asyncio.sleep(0.05)
        report = await audited(client, queries)
        assert covered(report.coverage)[0] > counted[0]


async def test_the_recall_of_merged_answers_is_audited_by_searches_over_all_shards(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(9)
    rows = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    queries = rng.standard_normal((1_000, DIMENSION)).astype(np.float32)
    # Long enough for an audit between two measurements, on a slow machine too.
    async with opened(tmp_path, interval_s=8) as client:
        settings = {"compaction_automatic": False}
        await client.create_collection(NAME, DIMENSION, shard_count=2, settings=settings)
        await client.upsert(NAME, [str(row) for row in range(ROWS)], rows)
        await client.flush(NAME)
        assert (await client.audit_recall(NAME)).merged == ()
        report = await audited(client, queries, merged=True)
        [merged] = report.merged
        assert (merged.shard, merged.verdict) == (ALL_SHARDS, AuditVerdict.CONTAINED)
        assert merged.audited is not None
        assert merged.audited.recall == merged.estimate.recall == 1.0
        assert merged.audited.distinct >= 32
        assert {one.shard for one in report.audits} == {0, 1}
