"""The worst queries of a server with two shards, by merged answers, from the SDK and the CLI."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from annheal import AsyncClient
from annheal.cli.server.embedded import embedded_server
from annheal.errors import InvalidArgument
from annheal.model.measures.recall_summary import RecallVerdict
from annheal.model.topology.manifest import IndexKind

ROWS, DIMENSION, QUERIES = 5_000, 32, 64
NAME = "things"
PATIENCE_S = 120.0
SETTINGS = {"recall_interval_s": "600"}
"""Recall is not measured here, so ef stays as it is."""


async def test_the_worst_queries_are_those_that_miss_most_over_all_shards(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((ROWS, DIMENSION)).astype(np.float32)
    queries = rng.standard_normal((QUERIES, DIMENSION)).astype(np.float32)
    asked = queries / np.linalg.norm(queries, axis=1, keepdims=True)  # as cosine compares them
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    truth = [set(map(str, one)) for one in np.argsort(-(queries @ unit.T), axis=1)[:, :10].tolist()]
    async with (
        embedded_server(tmp_path, settings=SETTINGS) as server,
        AsyncClient(server.address) as client,
    ):
        await client.create_collection(
            NAME, DIMENSION, shard_count=2, settings={"compaction_automatic": False}
        )
        await client.upsert(NAME, [str(row) for row in range(ROWS)], rows)
        await client.flush(NAME)
        nothing = await client.worst_queries(NAME)
        assert (nothing.sampled, nothing.queries) == (0, ())
        await client.compact(NAME, full=True)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                segments = (await client.segments(NAME)).segments
                if [one.index_kind for one in segments] == [IndexKind.HNSW] * 2:
                    break
                await asyncio.sleep(0.05)

        # A small ef of the client's own, so that there is something to miss.
        found = await client.search_batch(NAME, queries, k=10, ef=10)
        recalls = sorted(
            len(set(ids) & true) / 10 for ids, true in zip(found.ids, truth, strict=True)
        )
        assert recalls[0] < 1.0
        report = await client.worst_queries(NAME, queries_max=5)
        assert report.sampled == report.reviewed == QUERIES
        assert [one.recall for one in report.queries] == pytest.approx(
            [one for one in recalls[:5] if one < 1.0]
        )
        for one in report.queries:
            assert (one.query.k, one.query.ef) == (10, 10)
            place = int(np.argmax(asked @ one.query.vector))
            np.testing.assert_allclose(one.query.vector, asked[place], atol=1e-6)
            got = {hit.id for hit in one.returned}
            missed = {hit.id for hit in one.missed}
            assert missed == truth[place] - got
            assert len(missed) == one.missed_count == round(10 * (1.0 - one.recall))
        # They were neither sampled nor counted as searches of users.
        assert (await client.recall(NAME)).overall.seen == QUERIES
        assert (await client.recall(NAME)).overall.verdict is RecallVerdict.UNMEASURED
        with pytest.raises(InvalidArgument, match="queries_max"):
            await client.worst_queries(NAME, queries_max=1_000)
