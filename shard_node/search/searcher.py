"""Searches of shard views: segments by their plans, growing rows exactly, hits merged."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from annheal.filters import filter_key
from annheal.index import LiveBitmap, TopK, merge_topk
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.limits import ANSWER_BYTES_MAX
from annheal.model.measures.recall import Shortfall, band_of
from annheal.model.records import IDS_ONLY, Float32Matrix, Projection, RecordSet, join_records
from annheal.model.search import SearchAnswer, SearchOptions, SegmentExplain, with_fallback
from annheal.model.topology.manifest import IndexKind
from annheal.model.values.answer_size import HITS_FIX
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.answer_bytes import check_answer
from annheal.shard_node.search.code_maker import CodeMaker
from annheal.shard_node.search.costs import MeasuredCosts
from annheal.shard_node.search.ef_scale import EfScale, ShortfallOf, no_shortfall, unscaled
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.last_rung import Chosen, choose, offer
from annheal.shard_node.search.planner import (
    PlanKind,
    QueryFacts,
    SegmentFacts,
    SegmentPlan,
    codes_are_worthwhile,
    plan_segment,
    scaled_plan,
)
from annheal.shard_node.search.run_plan import Ran, run_plan
from annheal.shard_node.search.slices import Hits
from annheal.shard_node.search.threads import ONE_THREAD, SearchThreads


@dataclass(frozen=True, slots=True)
class MatchCount:
    """How many of the `live_rows` of a shard's view match the filter of a batch of queries.

    `visited` is the number of rows compared, summed over the queries.
    """

    shard: int
    matches: int
    live_rows: int
    visited: int = 0


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """How one segment will be searched by the queries of a batch.

    Attributes:
        live: the rows that are alive and match; None: all rows.
        allowed: how many they are.
        by_graph: the plan by recall curve and controller.
        scale: the controller's factor in it.
        shortfall: what is known against it.
        chosen: the plan to run.
        took_s: time spent on planning.
    """

    held: SegmentView
    facts: SegmentFacts
    query: QueryFacts
    live: LiveBitmap | None
    by_graph: SegmentPlan
    scale: float
    shortfall: Shortfall | None
    chosen: Chosen
    took_s: float

    @property
    def allowed(self) -> int:
        """The number of rows that are alive and match."""
        return self.facts.allowed


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment or growing view with hits; `TopK.parts` has its position."""

    rows: SegmentView | GrowingView

    def take(self, rows: npt.NDArray[np.int64], projection: Projection) -> RecordSet:
        source = self.rows.segment if isinstance(self.rows, SegmentView) else self.rows
        return source.take(rows, projection)


class Searcher:
    """Runs searches of one collection, in the calling thread and in `threads`.

    Views are those of the model of the queries (`ShardView.of_model`).

    `ef_scale` gives the factor by which the ef of a recall curve is multiplied, `shortfall` the
    graphs that are known to be below the objective. Without `costs` plans use default costs,
    without `code_maker` no codes are made. `yield_point` is called every few milliseconds, and ends
    the search by raising.
    """

    def __init__(
        self,
        collection: Collection,
        filters: FilterCache,
        *,
        ef_scale: EfScale = unscaled,
        shortfall: ShortfallOf = no_shortfall,
        costs: MeasuredCosts | None = None,
        code_maker: CodeMaker | None = None,
        threads: SearchThreads = ONE_THREAD,
        yield_point: YieldPoint = no_yield_point,
        answer_bytes_max: int = ANSWER_BYTES_MAX,
    ) -> None:
        self._collection = collection
        self._filters = filters
        self._ef_scale = ef_scale
        self._shortfall = shortfall
        self._costs = costs or MeasuredCosts()
        self._code_maker = code_maker
        self._threads = threads
        self._answer_bytes_max = answer_bytes_max
        self._yield_point = yield_point

    def search(
        self, views: Sequence[tuple[int, ShardView]], queries: Float32Matrix, options: SearchOptions
    ) -> SearchAnswer:
        """Return the best k hits of each query (n, d) in all `views` (shard number, view).

        Raises `InvalidArgument` with reason ANSWER_TOO_LARGE when the records are too many bytes.
        """
        return self.search_counted(views, queries, options)[0]

    def search_counted(
        self, views: Sequence[tuple[int, ShardView]], queries: Float32Matrix, options: SearchOptions
    ) -> tuple[SearchAnswer, tuple[MatchCount, ...]]:
        """Return the result of `search`, and for each view how many rows match the filter."""
        parts: list[_Part] = []
        hits: list[Hits] = []
        explain: list[SegmentExplain] = []
        match_counts: list[MatchCount] = []
        below_objective = False
        key = None if options.filter is None else filter_key(options.filter)
        for shard, view in views:
            matches = visited = 0
            for planned in self.plan_view(view, options, key=key):
                started_s = time.perf_counter()
                ran = self.run(planned, queries)
                matches += planned.allowed
                below_objective |= planned.chosen.below
                if ran is not None:
                    parts.append(_Part(planned.held))
                    hits.append(ran.hits)
                    visited += ran.visited
                if options.explain:
                    took_s = planned.took_s + time.perf_counter() - started_s
                    explain.append(_explain(shard, planned, ran, took_s))
            for growing in view.growing:
                started_s = time.perf_counter()
                allowed, found = self.search_growing(growing, queries, options, key=key)
                matches += allowed
                visited += allowed * len(queries)
                if found is not None:
                    parts.append(_Part(growing))
                    hits.append(found)
                if options.explain:
                    took_s = time.perf_counter() - started_s
                    explain.append(_explain_growing(shard, growing, allowed, len(queries), took_s))
            match_counts.append(MatchCount(shard, matches, view.live_rows, visited))
        self._yield_point()
        best = merge_topk(
            hits,
            k=options.k,
            queries=len(queries),
            ids_of=lambda part, rows: parts[part].take(rows, IDS_ONLY).ids,
        )
        self._yield_point()
        counts, scores, records = _records_of(
            best, parts, options.projection, bytes_max=self._answer_bytes_max
        )
        answer = SearchAnswer(
            counts,
            scores,
            records,
            explain=tuple(explain),
            sequences={shard: view.sequence for shard, view in views},
            below_objective=below_objective,
        )
        return answer, tuple(match_counts)

    def plan_view(
        self, view: ShardView, options: SearchOptions, *, key: bytes | None = None
    ) -> list[PlannedSegment]:
        """Return how each segment will be searched.

        Where graphs are known to be below the objective, other methods are planned within the
        collection's `recall_budget`, which is about all segments of the view together.
        """
        planned = [self._planned(held, options, key=key) for held in view.segments]
        if all(one.shortfall is None for one in planned):
            return planned
        settings = self._collection.settings
        goal = QueryFacts(k=settings.recall_k, objective=settings.recall_objective)
        offers = [
            offer(
                one.facts,
                one.query,
                one.by_graph,
                shortfall=one.shortfall,
                scale=one.scale,
                goal=goal,
                live_rows=one.held.live_count,
            )
            for one in planned
        ]
        return [
            replace(one, chosen=chosen)
            for one, chosen in zip(
                planned, choose(offers, budget=settings.recall_budget), strict=True
            )
        ]

    def search_segment(
        self,
        segment_view: SegmentView,
        queries: Float32Matrix,
        options: SearchOptions,
        *,
        key: bytes | None = None,
    ) -> tuple[SegmentPlan, int, Ran | None]:
        """Return the plan, how many rows are allowed, and the hits (None: no row is allowed).

        The plan is that of the recall curve and the controller of ef, whatever is known against it.
        """
        planned = self._planned(segment_view, options, key=key)
        return planned.by_graph, planned.allowed, self.run(planned, queries)

    def run(
        self, planned: PlannedSegment, queries: Float32Matrix, *, plan: SegmentPlan | None = None
    ) -> Ran | None:
        """Return the hits by the chosen plan, or by `plan`; None where no row is allowed."""
        plan = plan or planned.chosen.plan
        if plan.kind is PlanKind.SKIP:
            return None
        self._yield_point()
        facts, segment = planned.facts, planned.held.segment
        # A bitmap of all rows excludes none, and the walk of FAISS is cheaper without it.
        selection = None if facts.allowed == facts.rows else planned.live
        if selection is None and plan.kind is PlanKind.SHORTLIST:
            selection = LiveBitmap.from_mask(np.ones(facts.rows, dtype=np.bool_))
        ran = run_plan(
            segment.index,
            plan,
            queries,
            k=planned.query.k,
            live=selection,
            ids_at=segment.ids_at,
            threads=self._threads,
            yield_point=self._yield_point,
        )
        codes_wanted = plan.codes_wanted or (
            ran.repeated and codes_are_worthwhile(facts, planned.query)
        )
        if codes_wanted and self._code_maker is not None:
            self._code_maker.request(segment.index)
        return ran

    def _planned(
        self, held: SegmentView, options: SearchOptions, *, key: bytes | None
    ) -> PlannedSegment:
        """Return the plan of one segment by its recall curve and the controller of ef."""
        self._yield_point()
        started_s = time.perf_counter()
        segment = held.segment
        live = held.deletes.live
        filtered = options.filter is not None
        if options.filter is not None:
            matching = self._filters.matches(segment, options.filter, key=key)
            live = matching if live is None else matching & live
        allowed = segment.rows if live is None else live.count
        shortlist = segment.index.shortlist
        facts = SegmentFacts(
            index_kind=segment.kind,
            rows=segment.rows,
            allowed=allowed,
            curve=segment.recall_curve,
            costs=self._costs.costs_of(segment.index),
            walk_ready=segment.index.walk_ready,
            shortlist=None if shortlist is None else shortlist.costs,
        )
        query = QueryFacts(
            k=options.k,
            objective=options.recall_objective or self._collection.settings.recall_objective,
            ef=options.ef,
            exact=options.exact,
            filtered=filtered,
        )
        plan, scale, shortfall = plan_segment(facts, query), 1.0, None
        if plan.ef or plan.kind is PlanKind.SHORTLIST:
            band = band_of(allowed, held.live_count, filtered=filtered)
            scale = self._ef_scale(segment.id, band)
            shortfall = self._shortfall(segment.id, segment.meta.build.sources, band)
            if options.ef is None:
                plan = scaled_plan(facts, query, plan, scale)
        return PlannedSegment(
            held,
            facts,
            query,
            live,
            by_graph=plan,
            scale=scale,
            shortfall=shortfall,
            chosen=Chosen(plan),
            took_s=time.perf_counter() - started_s,
        )

    def _metric_of(self, name: str) -> Metric:
        model = self._collection.model_named(name) or self._collection.model
        return model.metric

    def search_growing(
        self,
        growing: GrowingView,
        queries: Float32Matrix,
        options: SearchOptions,
        *,
        key: bytes | None = None,
    ) -> tuple[int, Hits | None]:
        """Return how many rows are allowed, and the hits (None where no row is allowed)."""
        self._yield_point()
        mask: npt.NDArray[np.bool_] | None = None
        if options.filter is not None:
            mask = self._filters.growing_matches(growing, options.filter, key=key)
        if growing.dead is not None:
            mask = ~growing.dead if mask is None else mask & ~growing.dead
        allowed = growing.rows if mask is None else int(np.count_nonzero(mask))
        if allowed == 0:
            return 0, None
        return allowed, growing.search(
            queries,
            k=options.k,
            metric=self._metric_of(growing.model),
            allowed=mask,
            yield_point=self._yield_point,
        )


def search_by_models(
    searcher: Searcher,
    views: Sequence[tuple[int, ShardView]],
    queries: Float32Matrix,
    options: SearchOptions,
    models: Sequence[ModelSpec],
) -> tuple[SearchAnswer, tuple[MatchCount, ...]]:
    """Return the result of `search_counted` by the first of `models`.

    If there is a second one, records without a vector of the first are answered by it, on the same
    views: each record is answered by one model (`SearchOptions.fallback`).
    """
    model, *fallback = models
    own = [(shard, view.of_model(model.name)) for shard, view in views]
    if not fallback:
        return searcher.search_counted(own, queries, options)
    floats = model.dimension
    found, counts = searcher.search_counted(own, queries[:, :floats].copy(), options)
    rest = [
        (shard, view.without_model(model.name).of_model(fallback[0].name)) for shard, view in views
    ]
    by_fallback, _ = searcher.search_counted(
        rest, queries[:, floats:].copy(), replace(options, k=options.fallback_k)
    )
    return with_fallback(found, by_fallback), counts


def _records_of(
    best: TopK, parts: Sequence[_Part], projection: Projection, *, bytes_max: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32], RecordSet]:
    """Return the hits of each query, (n,) int32, and all scores and records, query after query.

    Raises `InvalidArgument`, before anything is copied, when the records are more than `bytes_max`
    bytes.
    """
    present = best.rows >= 0
    counts = present.sum(axis=1, dtype=np.int32)
    rows = best.rows[present]
    scores = best.scores[present]
    if not parts:
        return counts, scores, RecordSet([])
    if len(parts) == 1:
        taken = {0: np.arange(len(rows))}
    else:
        numbers = best.parts[present]
        taken = {part: np.flatnonzero(numbers == part) for part in np.unique(numbers).tolist()}
    check_answer(
        [(parts[part].rows, rows[where]) for part, where in taken.items()],
        projection,
        field="k",
        fix=HITS_FIX,
        bytes_max=bytes_max,
    )
    records = [parts[part].take(rows[where], projection) for part, where in taken.items()]
    return counts, scores, join_records(records, list(taken.values()))


def _explain(shard: int, planned: PlannedSegment, ran: Ran | None, took_s: float) -> SegmentExplain:
    segment = planned.held.segment
    return SegmentExplain(
        shard=shard,
        segment_id=segment.id,
        plan=planned.chosen.plan.kind.value,
        rows=segment.rows,
        live_rows=planned.held.live_count,
        matches=planned.allowed,
        ef=planned.chosen.plan.ef,
        visited=0 if ran is None else ran.visited,
        duration_s=took_s,
        without_kernels=segment.kind is IndexKind.HNSW and not segment.index.walk_ready,
    )


def _explain_growing(
    shard: int, growing: GrowingView, allowed: int, queries: int, took_s: float
) -> SegmentExplain:
    plan = PlanKind.SCAN if allowed else PlanKind.SKIP
    return SegmentExplain(
        shard=shard,
        segment_id="growing",
        plan=plan.value,
        rows=growing.rows,
        live_rows=growing.live_count,
        matches=allowed,
        ef=0,
        visited=growing.rows * queries if allowed else 0,
        duration_s=took_s,
    )
