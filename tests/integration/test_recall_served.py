"""Recall as it was served, of queries with settings of their own, repeated ones, and large k."""

# ruff: noqa: F811  (fixtures that another module defines)

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from annheal.index import warm_up
from annheal.model.measures.recall_summary import RecallVerdict, verdict_of
from annheal.model.records import RecordBatch
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.model.write import DeleteIds, Upsert
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.recall.measuring.measure import GROUP_HITS_MAX, group_queries
from annheal.shard_node.recall.monitor import STRATUM_QUERIES_MIN, RecallMonitor
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import Searcher
from tests.integration.test_recall_monitor import (  # noqa: F401
    COLLECTION,
    ROWS,
    SHARD,
    graph,
    lanes,
    monitor_of,
    note,
    owner,
    packages,
    queries,
    since,
)
from tests.support.packages import Packages
from tests.support.shards import Owner


def answered(
    owner: Owner,
    monitor: RecallMonitor,
    queries: npt.NDArray[np.float32],
    options: SearchOptions,
) -> SearchAnswer:
    """Answer queries as the node does, and note them with what was returned."""
    searcher = Searcher(COLLECTION, FilterCache(), ef_scale=monitor.controller.scale)
    views = [(0, owner.shard.view)]
    answer, match_counts = searcher.search_counted(views, queries, options)
    monitor.sampler.note("c1", queries, options, match_counts, answer)
    return answer


async def test_served_is_what_users_got_and_the_estimate_what_they_would_get(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    warm_up()
    monitor = monitor_of(owner, lanes)
    answered(owner, monitor, queries[:100], SearchOptions(k=10))
    await monitor.measure(SHARD)
    (first,) = monitor.recall("c1")[0].shards
    assert first.served is not None
    # One shard, the same plan and the same rows: both compare the same hits.
    assert first.served.recall == pytest.approx(first.estimate.recall)
    assert first.served.queries == first.estimate.queries == first.estimate.distinct == 100
    for _ in range(8):
        await monitor.measure(SHARD)
    (last,) = monitor.recall("c1")[0].shards
    assert last.served is not None
    assert last.estimate.recall > first.estimate.recall + 0.02
    assert last.served.recall == pytest.approx(first.served.recall), "those answers were given"
    window = last.estimate.window_end_s - last.estimate.window_begin_s
    assert 0.0 <= window < 60.0
    valid_s = last.estimate.valid_until_s - last.estimate.window_end_s
    assert valid_s == monitor.sampler.windows.age_max_s


async def test_rows_that_changed_since_are_no_misses_of_served_answers(
    owner: Owner, packages: Packages, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    monitor = monitor_of(owner, lanes)
    options = SearchOptions(k=10, ef=ROWS)  # as good as exact
    answer = answered(owner, monitor, queries[:50], options)
    # Each query's best hit is deleted, and a nearer record written.
    best = [answer.records.ids[10 * query] for query in range(50)]
    await owner.write(DeleteIds(tuple(dict.fromkeys(best))))
    await owner.write(
        Upsert(
            RecordBatch(
                pa.array([f"new-{n}" for n in range(50)]),
                queries[:50],
                pa.RecordBatch.from_arrays(
                    [pa.array([2_020] * 50, type=pa.int64())], names=["year"]
                ),
                pa.nulls(50, pa.binary()),
            )
        )
    )
    await monitor.measure(SHARD)
    (own,) = monitor.recall("c1")[0].own
    assert own.served is not None
    assert own.served.queries == 50
    assert own.served.recall > 0.995


async def test_settings_of_queries_are_measured_as_they_are_and_steer_nothing(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    warm_up()
    monitor = monitor_of(owner, lanes)
    answered(owner, monitor, queries[:100], SearchOptions(k=10, ef=10))
    answered(owner, monitor, queries[:100], SearchOptions(k=10, ef=400))
    answered(owner, monitor, queries[:60], SearchOptions(k=10, recall_objective=0.6))
    answered(owner, monitor, queries[:40], SearchOptions(k=10, recall_objective=0.95))
    await monitor.measure(SHARD)
    (result,) = monitor.recall("c1")
    by_objective = {one.objective: one for one in result.own}
    assert by_objective.keys() == {None, 0.6}
    assert by_objective[None].estimate.distinct <= 100
    assert by_objective[0.6].estimate.queries + by_objective[None].estimate.queries <= 128
    # 0.95 is the collection's own objective: these are judged as all others.
    (plain,) = result.shards
    assert plain.estimate.queries >= 10
    assert all(one.estimate.queries == plain.estimate.queries for one in result.segments)


async def test_a_query_that_is_repeated_counts_once_as_evidence(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    monitor = monitor_of(owner, lanes)
    for _ in range(20):
        answered(owner, monitor, queries[:5], SearchOptions(k=10))
    await monitor.measure(SHARD)
    (found,) = monitor.recall("c1")[0].shards
    assert (found.estimate.queries, found.estimate.distinct) == (100, 5)
    assert verdict_of(found.estimate, 0.0) is RecallVerdict.UNKNOWN
    groups = group_queries(monitor.sampler.sample("c1"), dimension=384)
    assert [len(one.queries) for one in groups] == [5]


async def test_a_large_k_is_measured(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    monitor = monitor_of(owner, lanes)
    answered(owner, monitor, queries[:40], SearchOptions(k=2_000))
    await monitor.measure(SHARD)
    (found,) = monitor.recall("c1")[0].shards
    assert (found.estimate.k, found.estimate.queries) == (2_000, 40)
    groups = group_queries(monitor.sampler.sample("c1"), dimension=384)
    assert max(len(one.queries) for one in groups) * 2_000 <= GROUP_HITS_MAX


async def test_an_expensive_sample_is_cut_to_what_fits_into_the_window(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    monitor = monitor_of(owner, lanes, cpu_share=1.0)
    note(monitor, queries[:128])
    await monitor.measure(SHARD)
    monitor._query_cpu_s = 2.0  # 30 queries in a window of 60 s
    await monitor.measure(SHARD)
    (found,) = monitor.recall("c1")[0].shards
    assert found.estimate.queries == 30
    monitor._query_cpu_s = 1_000.0
    await monitor.measure(SHARD)
    (found,) = monitor.recall("c1")[0].shards
    assert found.estimate.queries == STRATUM_QUERIES_MIN


async def test_a_band_without_queries_of_late_keeps_its_earlier_estimate(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    now = [0.0]
    monitor = monitor_of(owner, lanes, clock=lambda: now[0])
    note(monitor, queries[:30], since(2016))
    await monitor.measure(SHARD)
    now[0] += monitor.sampler.windows.age_max_s + 1.0
    note(monitor, queries[30:60])
    await monitor.measure(SHARD)
    found = {one.filter: one for one in monitor.sampler.sample("c1")}
    assert set(found) == {None}
    shards = monitor.recall("c1")[0].shards
    assert sorted(one.estimate.queries for one in shards) == [30, 30]
