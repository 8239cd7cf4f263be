"""The recall monitor: compares the answers of sampled live queries with exact ones.

A loop measures the shards that are due. It searches the sample of their collection in small slices
on a background thread, pauses between slices to stay within its share of a core, and gives the
estimate of every segment to the controller of ef. DESIGN section 8.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from annheal.errors import AnnhealError
from annheal.index import set_search_threads
from annheal.model.measures.recall import (
    CollectionRecall,
    SegmentRecall,
    SelectivityBand,
)
from annheal.model.topology.shard import ShardId
from annheal.recall.coverage import CoverageBook
from annheal.runtime.clock import Clock, monotonic_s, wall_s
from annheal.shard_node.lanes import Lanes
from annheal.shard_node.owner.shard_state import MeasuredSegment
from annheal.shard_node.recall.ef_control import QUERIES_MIN, EfController
from annheal.shard_node.recall.keeper import RecallKeeper
from annheal.shard_node.recall.latency.history import LatencyHistory
from annheal.shard_node.recall.measuring.answer_parts import Moment, shard_queries
from annheal.shard_node.recall.measuring.measure import (
    GroupFinding,
    QueryGroup,
    group_queries,
    measure_group,
)
from annheal.shard_node.recall.result import (
    ShardResult,
    band_recalls,
    before_change,
    filter_recalls,
    measured_segments,
    own_recalls,
    segment_estimates,
    segment_walks,
    tag_recalls,
    with_earlier,
    with_seen,
    with_traffic,
)
from annheal.shard_node.recall.rounds import Rounds
from annheal.shard_node.recall.sampler import RecallSampler, Traffic
from annheal.shard_node.recall.steering import steered
from annheal.shard_node.recall.watched import (
    Goal,
    Judged,
    Run,
    WatchedShard,
    way_of_answering,
)
from annheal.shard_node.search.code_maker import CodeMaker
from annheal.shard_node.search.costs import MeasuredCosts
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import Searcher

LOOK_MAX_S = 1.0
LOOKS_PER_INTERVAL = 4
SOON_GAP_S = 5.0
"""Least seconds between two measurements of a shard, unless the interval is shorter."""
CHANGE_QUERIES_MIN = 32
"""Queries since a change of their distribution, or of a band that had none the last time, with
which recall is measured again."""
STRATUM_QUERIES_MIN = 16
"""Queries of a stratum that are measured however much that costs: fewer would judge nothing."""
COST_WEIGHT = 0.125
"""Weight of the latest slice in the mean CPU time of measuring a query."""

_log = logging.getLogger(__name__)


HeldShards = Callable[[], Mapping[ShardId, WatchedShard | None]]
"""The shards of the node; None while one is being opened."""


@dataclass(frozen=True, slots=True)
class MonitorSettings:
    """See `ShardNodeSettings`."""

    interval_s: float = 60.0
    changed_share: float = 0.1
    cpu_share: float = 0.02


class RecallMonitor:
    """Measures the shards of a node; used on the event loop.

    Args:
        held: the shards.
        sampler: samples live queries.
        controller: gets every estimate, and scales ef.
        filters, costs, code_maker: what the node's searches use; see `Searcher`.
        lanes: whose monitor lane does the work.
        latency: the history of search latencies that the node fills; reported with recall.
        keeper: stores recall memories; None stores none.
        coverage: counts audits of the estimates; reported with recall.
        on_cost: called with the CPU seconds of every slice of work.
        settings: how often and how much.
        now_s: seconds since the epoch, for results.
        clock: a monotonic clock, in seconds.
    """

    def __init__(
        self,
        held: HeldShards,
        *,
        sampler: RecallSampler,
        controller: EfController,
        filters: FilterCache,
        lanes: Lanes,
        costs: MeasuredCosts | None = None,
        code_maker: CodeMaker | None = None,
        settings: MonitorSettings,
        latency: LatencyHistory | None = None,
        keeper: RecallKeeper | None = None,
        coverage: CoverageBook | None = None,
        on_cost: Callable[[float], None] = lambda _: None,
        now_s: Clock = wall_s,
        clock: Clock = monotonic_s,
    ) -> None:
        self.sampler = sampler
        self.controller = controller
        self.latency = latency or LatencyHistory()
        self.coverage = coverage or CoverageBook()
        self._held = held
        self._keeper = keeper
        self._filters = filters
        self._lanes = lanes
        self._costs = costs
        self._code_maker = code_maker
        self._settings = settings
        self._on_cost = on_cost
        self._now_s = now_s
        self._clock = clock
        self._rests_until_s = -math.inf
        self._query_cpu_s = 0.0
        self._runs: dict[ShardId, Run] = {}
        self._first_seen_s: dict[ShardId, float] = {}
        self._results: dict[ShardId, ShardResult] = {}
        self._rounds = Rounds(sampler, interval_s=settings.interval_s)
        self._present = (frozenset[str](), frozenset[int]())

    async def run(self) -> None:
        """Measure the shards that are due, until cancelled."""
        look_s = min(LOOK_MAX_S, self._settings.interval_s / LOOKS_PER_INTERVAL)
        while True:
            await asyncio.sleep(look_s)
            await self.look()

    async def look(self) -> None:
        """Measure the shards that are due now."""
        self._forget_gone()
        await self._restore_new()
        self._look_for_changes()
        self._begin_rounds()
        for shard in self._due():
            try:
                await self.measure(shard)
                await self._save(shard)
            except AnnhealError as error:
                _log.warning("recall of %s was not measured, or not stored: %s", shard, error)

    async def measure(self, shard: ShardId) -> None:
        """Measure one shard now and update the controller; does nothing if it is not open here."""
        owned = self._held().get(shard)
        if owned is None:
            return
        collection, view = owned.collection, owned.serving_view
        self.sampler.follow(shard.collection_id, collection.model.name)
        started = Run(
            self._clock(),
            view.sequence,
            view.segment_ids,
            self.sampler.version(shard.collection_id),
            Goal.of(collection.settings),
        )
        if self._known_goal(shard) not in (None, started.goal):
            self.controller.change_goal(started.segment_ids)
        last = self._runs.get(shard)
        sample = self._rounds.sample(
            shard.collection_id,
            measured_s=-math.inf if last is None else last.started_s,
            wall_s=self._now_s(),
            queries_max=self._affordable(shard.collection_id),
        )
        self.sampler.note_measured(shard.collection_id, sample.queries)
        # A band without queries is measured as soon as enough of them have come.
        absent = {
            band: CHANGE_QUERIES_MIN
            for band in SelectivityBand
            if not self.sampler.newer(shard.collection_id, 0, band)
        }
        groups = group_queries(
            sample.queries,
            dimension=collection.model.dimension,
            objective=started.goal.objective,
            tagged=sample.tagged,
        )
        started = replace(
            started,
            serials=frozenset(one.serial for one in sample.queries),
            answers=self.controller.answering(started.segment_ids),
        )
        found: list[GroupFinding] = []
        try:
            for group in groups:
                found.append(await self._slice(owned, group, shard=shard.number))
                if self._held().get(shard) is not owned:
                    return
                if self._is_outdated(shard, started):
                    started = self._cut(shard, started)
                    return
        finally:
            self._runs[shard] = started
        result, next_after = self._result(shard, owned, found, goal=started.goal)
        below = any(started.goal.is_missed(one.estimate) for one in result.segments)
        earlier = self._results.get(shard)
        if earlier is not None:
            result = with_earlier(result, earlier, segment_ids=owned.serving_view.segment_ids)
        self._results[shard] = result
        next_after = {**absent, **next_after}
        self._runs[shard] = replace(started, settled=not below, next_after=next_after)

    def judged(self, shard: ShardId) -> Judged | None:
        """Return the latest estimates of a shard that is open here; None without any."""
        owned, result = self._held().get(shard), self._results.get(shard)
        if owned is None or result is None:
            return None
        last = self._runs.get(shard)
        if last is None:
            return Judged(result.bands)
        ids = owned.serving_view.segment_ids
        changed = ids != last.segment_ids or self.controller.answering(ids) != last.answers
        return Judged(result.bands, last.serials, changed)

    def _begin_rounds(self) -> None:
        """Choose the queries of the present interval, for collections of several shards."""
        wall_s, at_s = self._now_s(), self._clock()
        for shard, owned in self._held().items():
            if owned is not None and owned.collection.shard_count > 1:
                most = self._affordable(shard.collection_id)
                self._rounds.begin(shard.collection_id, wall_s=wall_s, at_s=at_s, queries_max=most)

    def _affordable(self, collection_id: str) -> int | None:
        """Return how many queries of each stratum may be measured; None: as many as there are.

        A measurement of more would take longer than the window, within the share of the CPU. Tags
        take half of that, if there are any.
        """
        if not self._query_cpu_s:
            return None
        shards = sum(shard.collection_id == collection_id for shard in self._held())
        parts = max(1, shards) * max(1, self.sampler.strata(collection_id))
        parts *= 2 if self.sampler.has_tags(collection_id) else 1
        budget_s = self.sampler.windows.window_s * self._settings.cpu_share
        return max(STRATUM_QUERIES_MIN, int(budget_s / self._query_cpu_s / parts))

    def _known_goal(self, shard: ShardId) -> Goal | None:
        """Return what the controller's states of the shard are about; None: nothing is known."""
        last, restored = self._runs.get(shard), self._results.get(shard)
        if last is not None:
            return last.goal
        return None if restored is None else Goal(restored.objective, restored.k, restored.tail)

    async def save_leaving(self) -> None:
        """Store the recall memory of every shard, before the node leaves."""
        if self._keeper is not None:
            held = self._held()
            await self._keeper.save_leaving(
                [
                    (shard, owned, result)
                    for shard, result in self._results.items()
                    if (owned := held.get(shard)) is not None
                ]
            )

    def recall(self, collection_id: str = "") -> tuple[CollectionRecall, ...]:
        """Return the latest results of one collection, or of all if `collection_id` is empty."""
        collections = {
            shard.collection_id: owned.collection
            for shard, owned in self._held().items()
            if owned is not None and collection_id in ("", shard.collection_id)
        }
        return tuple(
            CollectionRecall(
                collection_id=name,
                recall_objective=collection.settings.recall_objective,
                sampled_share=self.sampler.sampled_share(name),
                shards=with_seen(
                    [one for result in results for one in result.bands],
                    self._here(name, self.sampler.seen_by_band(name)),
                    k=collection.settings.recall_k,
                    recent=self._here(name, self.sampler.recent_by_band(name)),
                ),
                segments=tuple(one for result in results for one in result.segments),
                filters=tuple(one for result in results for one in result.filters),
                latency=self.latency.trend(name),
                own=tuple(one for result in results for one in result.own),
                coverage=self.coverage.of_collection(name),
                queries=tuple(one.queries for one in results if one.queries is not None),
                changed_at_s=0.0 if change is None else change.noticed_at_s,
                tags=with_traffic(
                    [one for result in results for one in result.tags],
                    self.sampler.traffic_by_tag(name),
                    shards=self._shards_here(name),
                    k=collection.settings.recall_k,
                ),
            )
            for name, collection in sorted(collections.items())
            for results, change in [(self._results_of(name), self.sampler.change(name))]
        )

    def _here(self, collection_id: str, counts: Traffic) -> Traffic:
        """Return the counts of the shards that are here."""
        held = self._shards_here(collection_id)
        return {slot: queries for slot, queries in counts.items() if slot[0] in held}

    def _shards_here(self, collection_id: str) -> set[int]:
        return {shard.number for shard in self._held() if shard.collection_id == collection_id}

    def measured_segments(self, shard: ShardId) -> dict[str, MeasuredSegment]:
        """Return the measurements of the shard's segments by segment id."""
        result = self._results.get(shard)
        return {} if result is None else measured_segments(result)

    async def _restore_new(self) -> None:
        """Restore the recall memories of shards that are newly open here."""
        if self._keeper is None:
            return
        for shard, owned in sorted(self._held().items()):
            if owned is None or self._keeper.is_restored(shard, owned):
                continue
            try:
                found = await self._keeper.restore(shard, owned)
            except AnnhealError as error:
                _log.warning("the recall memory of %s is not restored yet: %s", shard, error)
                continue
            if found is not None:
                self._results.setdefault(shard, found)

    async def _save(self, shard: ShardId) -> None:
        owned, result = self._held().get(shard), self._results.get(shard)
        if self._keeper is not None and owned is not None and result is not None:
            await self._keeper.save(shard, owned, result)

    async def _slice(self, owned: WatchedShard, group: QueryGroup, *, shard: int) -> GroupFinding:
        """Pause for the sake of the CPU share, then measure one group on the present view."""
        await asyncio.sleep(max(0.0, self._rests_until_s - self._clock()))
        finding, took_s = await self.measure_slice(owned, group, shard=shard)
        self._rests_until_s = self._clock() + took_s * (1.0 / self._settings.cpu_share - 1.0)
        return finding

    async def measure_slice(
        self, owned: WatchedShard, group: QueryGroup, *, shard: int
    ) -> tuple[GroupFinding, float]:
        """Measure one group on the present view; return the seconds that it took too."""
        searcher = Searcher(
            owned.collection,
            self._filters,
            ef_scale=self.controller.scale,
            shortfall=self.controller.shortfall,
            costs=self._costs,
            code_maker=self._code_maker,
        )
        view = owned.serving_view

        def work() -> tuple[GroupFinding, float, float]:
            began_s, began_cpu_s = time.perf_counter(), time.thread_time()
            set_search_threads(1)  # so that the time of this thread is the whole cost
            finding = measure_group(
                searcher, view, group, shard=shard, shard_count=owned.collection.shard_count
            )
            return finding, time.perf_counter() - began_s, time.thread_time() - began_cpu_s

        finding, took_s, cpu_s = await self._lanes.monitor(work, collection_id=owned.collection.id)
        self._on_cost(cpu_s)
        query_cpu_s = cpu_s / len(group.queries)
        known_s = self._query_cpu_s or query_cpu_s
        self._query_cpu_s = known_s + COST_WEIGHT * (query_cpu_s - known_s)
        return finding, took_s

    def _due(self) -> list[ShardId]:
        now_s = self._clock()
        return [
            shard
            for shard, owned in sorted(self._held().items())
            if owned is not None and self._is_due(shard, owned, now_s)
        ]

    def _is_due(self, shard: ShardId, owned: WatchedShard, now_s: float) -> bool:
        interval_s = self._settings.interval_s
        version = self.sampler.version(shard.collection_id)
        if not version:
            return False
        last = self._runs.get(shard)
        if last is None:
            first_s = self._first_seen_s.setdefault(shard, now_s)
            return version >= QUERIES_MIN or now_s - first_s >= interval_s
        if self._is_changed(shard, last, now_s):
            return True
        view = owned.serving_view
        same = (view.sequence, view.segment_ids, version) == (
            last.sequence,
            last.segment_ids,
            last.sample_version,
        )
        waited_s = now_s - last.started_s
        gap_s = min(interval_s, SOON_GAP_S)
        new_goal = last.goal != Goal.of(owned.collection.settings)
        if same and last.settled and not new_goal:
            return False
        if waited_s >= interval_s or self._rounds.began_after(shard.collection_id, last.started_s):
            return True
        return waited_s >= gap_s and (
            new_goal
            or view.changed_share(last.segment_ids, last.sequence) > self._settings.changed_share
            or any(
                self.sampler.newer(shard.collection_id, last.sample_version, band) >= wanted
                for band, wanted in last.next_after.items()
            )
        )

    def _cut(self, shard: ShardId, run: Run) -> Run:
        """Return a run that was given up: the results stay those of the run before."""
        last = self._runs.get(shard)
        if last is None:
            return replace(run, is_cut=True)
        return replace(run, is_cut=True, serials=last.serials, answers=last.answers)

    def _is_outdated(self, shard: ShardId, run: Run) -> bool:
        """Return whether the queries have changed since a measurement began.

        No two measurements in a row are given up for that, or a load that changes all the time
        would never be measured.
        """
        self._look_for_changes()
        last, change = self._runs.get(shard), self.sampler.change(shard.collection_id)
        is_new = change is not None and change.noticed_s > run.started_s
        return is_new and not (last is not None and last.is_cut)

    def _look_for_changes(self) -> None:
        """Log changes of the queries; what was measured before is about now no longer."""
        held = self._held()
        for collection_id in sorted({shard.collection_id for shard in held}):
            way = way_of_answering(held, collection_id, self.controller)
            for change in self.sampler.look_for_changes(collection_id, way):
                _log.warning(
                    "the queries of collection %s (%s%s) have changed within %.0f s; their recall"
                    " is measured anew",
                    collection_id,
                    change.band.value,
                    ", with settings of their own" if change.own else "",
                    change.noticed_s - change.since_s,
                )
                self._rounds.end(collection_id)
                for shard in [one for one in held if one.collection_id == collection_id]:
                    if (owned := held[shard]) is not None and not change.own:
                        self.controller.change_queries(owned.serving_view.segment_ids, change.band)
                    if (result := self._results.get(shard)) is not None:
                        self._results[shard] = before_change(result, change)

    def _is_changed(self, shard: ShardId, last: Run, now_s: float) -> bool:
        """Return whether a change of the queries calls for a measurement now.

        It does as soon as enough queries judge that came since, and then again as they become more,
        until the window has no others.
        """
        change = self.sampler.change(shard.collection_id)
        if change is None or now_s - change.noticed_s > self.sampler.windows.window_s:
            return False
        if last.started_s < change.noticed_s:
            judging = self.sampler.judging_since(shard.collection_id, change)
            return judging >= CHANGE_QUERIES_MIN
        gap_s = min(self._settings.interval_s, SOON_GAP_S)
        is_new = self.sampler.version(shard.collection_id) != last.sample_version
        return is_new and now_s - last.started_s >= gap_s

    def _result(
        self,
        shard: ShardId,
        owned: WatchedShard,
        found: Sequence[GroupFinding],
        *,
        goal: Goal,
    ) -> tuple[ShardResult, dict[SelectivityBand, int]]:
        """Update the controller; return what is reported, and `Run.next_after`."""
        moment = Moment(self._now_s(), self.sampler.windows.age_max_s)
        present = {held.segment.id: held.segment for held in owned.serving_view.segments}
        queries = shard_queries(
            shard.number, found, moment=moment, shard_count=owned.collection.shard_count
        )
        own = [one for one in found if one.group.has_own_setting]
        usual = [one for one in found if not one.group.has_own_setting]
        found = [one for one in usual if one.group.in_band]
        estimates = segment_estimates(found, moment=moment, tail=goal.tail)
        seen = {
            band: self.sampler.seen(shard.collection_id, shard.number, band)
            for band in SelectivityBand
        }
        segments: list[SegmentRecall] = []
        next_after: dict[SelectivityBand, int] = {}
        for (segment_id, band), estimate in estimates.items():
            if segment_id in present:
                one, soon = steered(
                    self.controller, shard, goal, present[segment_id], band, estimate
                )
                segments.append(one)
                if soon is not None:
                    next_after[band] = min(soon, next_after.get(band, soon))
        result = ShardResult(
            bands=band_recalls(shard.number, found, seen=seen, moment=moment, tail=goal.tail),
            segments=tuple(segments),
            filters=filter_recalls(shard.number, found),
            walks=segment_walks(found, k=goal.k),
            objective=goal.objective,
            k=goal.k,
            own=own_recalls(shard.number, own, moment=moment),
            tail=goal.tail,
            queries=queries,
            tags=tag_recalls(shard.number, usual, moment=moment, tail=goal.tail),
        )
        return result, next_after

    def _results_of(self, collection_id: str) -> list[ShardResult]:
        return [
            result
            for shard, result in sorted(self._results.items())
            if shard.collection_id == collection_id
        ]

    def _forget_gone(self) -> None:
        held = self._held()
        for kept in (self._runs, self._first_seen_s, self._results):
            for gone in [shard for shard in kept if shard not in held]:
                del kept[gone]
        if self._keeper is not None:
            self._keeper.forget_all_but(list(held))
        self.coverage.forget_all_but(held)
        present = {shard.collection_id for shard in held}
        self._rounds.forget_all_but(present)
        self.sampler.forget_all_but(present)
        self.latency.forget_all_but(present)
        views = [owned.serving_view for owned in held.values() if owned is not None]
        segments = frozenset(
            name for view in views for one in view.segments for name in one.segment.graph_ids
        )
        growing = frozenset(one.number for view in views for one in view.growing)
        sources = {
            name
            for view in views
            for one in view.segments
            for name in one.segment.meta.build.sources
        }
        self.controller.forget_all_but(segments | sources)
        if (segments, growing) != self._present:
            self._present = segments, growing
            self._filters.forget_all_but([*segments, *growing])
