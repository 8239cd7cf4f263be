"""A change of the live queries starts a measurement of the new ones at once."""

# ruff: noqa: F811  (fixtures that another module defines)

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from annheal.index import warm_up
from annheal.model.measures.recall import RecallEstimate
from annheal.model.search import SearchOptions
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.recall.ef_control import EfController
from annheal.shard_node.recall.monitor import MonitorSettings, RecallMonitor
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import MatchCount, Searcher
from tests.integration.test_recall_monitor import (  # noqa: F401
    COLLECTION,
    SHARD,
    UNFILTERED,
    graph,
    lanes,
    owner,
    packages,
    queries,
)
from tests.support.packages import Packages  # noqa: F401
from tests.support.shards import Owner

PER_S = 50
EPOCH_S = 1e9


@dataclass(slots=True)
class Traffic:
    """Queries at a steady rate, a monitor that looks every second, and a clock for both."""

    owner: Owner
    monitor: RecallMonitor
    now: list[float]
    rng: np.random.Generator

    async def second(self, queries: npt.NDArray[np.float32]) -> None:
        searcher = Searcher(COLLECTION, FilterCache(), ef_scale=self.monitor.controller.scale)
        chosen = self.rng.choice(len(queries), PER_S, replace=False)
        answer, match_counts = searcher.search_counted(
            [(0, self.owner.shard.view)], queries[chosen], SearchOptions(k=10)
        )
        self.now[0] += 1.0
        self.monitor.sampler.note("c1", queries[chosen], SearchOptions(k=10), match_counts, answer)
        await self.monitor.look()

    def estimate(self) -> RecallEstimate:
        (found,) = self.monitor.recall("c1")[0].shards
        return found.estimate


def traffic_of(
    owner: Owner, lanes: Lanes, *, after_slice: Callable[[float], None] = lambda _: None
) -> Traffic:
    """Return traffic on a monitor with default settings but for the share of the CPU."""
    warm_up()
    now = [0.0]
    defaults = MonitorSettings()
    monitor = RecallMonitor(
        lambda: {SHARD: owner.shard},
        sampler=RecallSampler(
            1.0, draw=random.Random(4), clock=lambda: now[0], now_s=lambda: EPOCH_S + now[0]
        ),
        controller=EfController(),
        filters=FilterCache(),
        lanes=lanes,
        settings=MonitorSettings(cpu_share=1.0),
        on_cost=after_slice,
        now_s=lambda: EPOCH_S + now[0],
        clock=lambda: now[0],
    )
    assert (defaults.interval_s, monitor.sampler.share) == (60.0, 1.0)
    return Traffic(owner, monitor, now, np.random.default_rng(4))


async def test_another_distribution_is_measured_within_30_seconds_and_ef_follows(
    owner: Owner,
    queries: npt.NDArray[np.float32],
    lanes: Lanes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """50 queries a second, all settings as by default but the share of the CPU: time is not real.

    At the default share a measurement of 128 queries takes about two seconds longer.
    """
    traffic = traffic_of(owner, lanes)
    monitor, now = traffic.monitor, traffic.now
    while now[0] < 135.0:
        await traffic.second(queries[:1_500])
    assert traffic.estimate().is_valid(EPOCH_S + now[0])
    assert monitor.recall("c1")[0].changed_at_s == 0.0
    plain_scale = monitor.controller.scale("s1", UNFILTERED)
    known = replace(monitor.controller.state("s1", UNFILTERED), floor=0.123, floor_runs=1_000)
    monitor.controller.store("s1", UNFILTERED, known)
    began_s, measured_s, restored_s = now[0], 0.0, 0.0
    while now[0] < began_s + 60.0:
        await traffic.second(-queries[1_500:])
        (report,) = monitor.recall("c1")
        is_new = traffic.estimate().window_begin_s >= EPOCH_S + began_s
        if report.changed_at_s and not is_new:
            assert not traffic.estimate().is_valid(EPOCH_S + now[0] + 1.0)
        if is_new and not measured_s:
            measured_s = now[0]
        if monitor.controller.scale("s1", UNFILTERED) > plain_scale and not restored_s:
            restored_s = now[0]
    assert EPOCH_S + began_s < report.changed_at_s < EPOCH_S + began_s + 30.0
    assert began_s < measured_s < began_s + 30.0
    assert began_s < restored_s < began_s + 60.0, "ef is judged by the new queries"
    assert monitor.controller.state("s1", UNFILTERED).floor != 0.123, "learnt from other queries"
    assert sum("have changed" in one.message for one in caplog.records) == 1


async def test_from_the_start_ef_is_raised_and_confirmed_within_half_a_minute(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    """The curve promises too much: the objective is missed from the first query on."""
    traffic = traffic_of(owner, lanes)
    monitor, now = traffic.monitor, traffic.now
    while now[0] < 30.0:
        await traffic.second(queries[:1_500])
    (found,) = monitor.recall("c1")[0].segments
    assert monitor.controller.scale("s1", UNFILTERED) > 1.0
    assert found.estimate.recall >= COLLECTION.settings.recall_objective
    assert not found.below


async def test_a_measurement_is_given_up_when_the_queries_have_changed(
    owner: Owner, queries: npt.NDArray[np.float32], lanes: Lanes
) -> None:
    slices, comes_late = 0, False

    def after_slice(cpu_s: float) -> None:
        """Let ten seconds of other queries arrive while a measurement goes on."""
        nonlocal slices
        slices += 1
        for _ in range(10 if comes_late else 0):
            now[0] += 1.0
            some = -queries[1_500 + traffic.rng.choice(len(queries) - 1_500, PER_S)]
            matches = [MatchCount(0, len(queries), len(queries))]
            monitor.sampler.note("c1", some, SearchOptions(k=10), matches)

    traffic = traffic_of(owner, lanes, after_slice=after_slice)
    monitor, now = traffic.monitor, traffic.now
    while now[0] < 100.0:
        await traffic.second(queries[:1_500])
    before, slices, comes_late = traffic.estimate(), 0, True
    await monitor.measure(SHARD)
    assert slices == 1
    comes_late = False
    assert traffic.estimate().measured_at_s == before.measured_at_s, "of the queries before"
    assert not traffic.estimate().is_valid(EPOCH_S + now[0] + 1.0)
    await monitor.look()
    new = traffic.estimate()
    assert new.measured_at_s == EPOCH_S + now[0]
    assert new.window_begin_s > EPOCH_S + 100.0
