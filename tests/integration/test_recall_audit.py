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

ROWS, DIMENSION, BATCH = 2_000, 16, 32
NAME = "audited"
SETTINGS = {"recall_interval_s": "1", "recall_cpu_share": "1"}
PATIENCE_S = 60.0


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[AsyncClient]:
    async with (
        embedded_server(folder, settings=SETTINGS) as server,
        AsyncClient(server.address) as client,
    ):
        yield client


async def audited(client: AsyncClient, queries: np.ndarray) -> AuditReport:  # type: ignore[type-arg]
    """Search until an audit has enough queries that came after a measurement."""
    rng = np.random.default_rng(8)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            for _ in range(4):
                some = rng.choice(len(queries), BATCH, replace=False)
                await client.search_batch(NAME, queries[some], k=10)
            report = await client.audit_recall(NAME, queries_max=500)
            if any(one.verdict is not AuditVerdict.UNKNOWN for one in report.audits):
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
