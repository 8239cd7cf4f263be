"""Searches sampled queries on one view: as planned, as planned again, exactly. Runs in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import xxhash

from annheal.filters import filter_key
from annheal.index import TopK, merge_topk
from annheal.index.walk.walk_layout import CHECKS_PER_COMPARISON
from annheal.model.filter import Filter
from annheal.model.measures.recall import SelectivityBand, band_of
from annheal.model.measures.shard_queries import Numbers
from annheal.model.records import Float32Matrix
from annheal.model.search import SearchOptions
from annheal.shard_node.recall.measuring.estimate import found_ranks, query_recalls
from annheal.shard_node.recall.sampling.sampled_query import SampledQuery
from annheal.shard_node.recall.served import (
    ServedHits,
    ServedRanks,
    ShardTruth,
    served_ranks,
    served_recalls,
)
from annheal.shard_node.rows.growing import GrowingView
from annheal.shard_node.rows.view import SegmentView, ShardView
from annheal.shard_node.search.planner import PlanKind, SegmentPlan
from annheal.shard_node.search.run_plan import WALKS
from annheal.shard_node.search.searcher import PlannedSegment, Searcher
from annheal.shard_node.search.slices import Hits

GROUP_QUERIES = 32
"""Queries of one slice of work, after which the monitor pauses."""
GROUP_HITS_MAX = 32_768
"""Queries times k of one slice of work, unless one query alone has more."""
_EXACT = (PlanKind.SKIP, PlanKind.SCAN, PlanKind.ROWS)
WALK_QUERIES = 8
"""Queries of a group whose walk cost is measured, by one more walk each."""
_ROW_BITS = 40
_NO_TAGS: Mapping[str, Sequence[SampledQuery]] = MappingProxyType({})

Recalls = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QueryGroup:
    """Sampled queries with the same k, filter, ef and objective, which are searched together.

    Attributes:
        key: equal for equal filters.
        queries: the different queries.
        samples: all of them, as sampled; one of the queries may have been asked several times.
        places: (n,) for each of `samples`, the position of its query.
        identities: (m,) for each of `queries`, a number that equal ones of other groups have too.
        in_band: whether they are of the sample of their band; else of that of their tag alone.
        tag: that of whose sample they are; empty: of none.
        objective, ef: what the clients set; None: as the collection says.
    """

    key: bytes
    k: int
    filter: Filter | None
    queries: tuple[SampledQuery, ...]
    samples: tuple[SampledQuery, ...]
    places: npt.NDArray[np.int64]
    identities: Numbers
    in_band: bool = True
    tag: str = ""
    objective: float | None = None
    ef: int | None = None

    @property
    def has_own_setting(self) -> bool:
        """Whether the collection's objective is not what the answers were made for."""
        return self.objective is not None or self.ef is not None

    @property
    def options(self) -> SearchOptions:
        """What the clients asked for."""
        return SearchOptions(
            k=self.k, filter=self.filter, ef=self.ef, recall_objective=self.objective
        )

    @property
    def served(self) -> list[ServedHits | None]:
        """For each of `samples`, what was returned."""
        return [one.served for one in self.samples]

    @property
    def serials(self) -> npt.NDArray[np.int64]:
        """For each of `queries`, the serial with which it was first sampled, (m,)."""
        first = np.full(len(self.queries), np.iinfo(np.int64).max)
        np.minimum.at(first, self.places, [one.serial for one in self.samples])
        return first


@dataclass(frozen=True, slots=True)
class SegmentFinding:
    """What one group of queries found in one segment.

    Attributes:
        band: the band of the filter within the segment.
        plan: how its recall curve and the controller of ef say that it is searched.
        recalls: (n,) recall of each sample by this plan, without those for which no row matches.
        work: (m,) walk cost of some of the queries; empty with a filter or without a walk.
        serials: (n,) as in the group, for each of `recalls`.
        answered_by: the plan that answers instead, because graphs are below the objective.
        answered: (n,) recall of its answers.
    """

    segment_id: str
    band: SelectivityBand
    plan: PlanKind
    recalls: Recalls
    work: Recalls
    serials: npt.NDArray[np.int64]
    answered_by: PlanKind | None = None
    answered: Recalls = field(default_factory=lambda: np.empty(0))

    @property
    def used(self) -> tuple[PlanKind, Recalls]:
        """The plan that answers at present, and the recall of its answers."""
        return (
            (self.plan, self.recalls)
            if self.answered_by is None
            else (self.answered_by, self.answered)
        )


@dataclass(frozen=True, slots=True)
class ExactHits:
    """The exact hits of the queries of a group in one shard of several, and which were found.

    Attributes:
        scores: (m, k) float32 of the different queries, best first, padded with -inf.
        found: (m, k) bool, whether the node would find the hit now.
        served: (n,) what the answer to each sample had of them.
    """

    scores: npt.NDArray[np.float32]
    found: npt.NDArray[np.bool_]
    served: tuple[ServedRanks | None, ...]


@dataclass(frozen=True, slots=True)
class GroupFinding:
    """What one group of queries found in a shard, all its segments and growing rows merged.

    Attributes:
        matches: rows that match the filter, of `live_rows`.
        recalls: (n,) recall of each sample as the node would answer it now, without those for which
            no row matches.
        served: (n,) recall of the answers that were given; NaN where none is kept.
        same: queries, of `repeated`, that got the same answer twice.
        exact: from which the answers over all shards are rebuilt; None where one shard has them.
    """

    group: QueryGroup
    band: SelectivityBand
    matches: int
    live_rows: int
    recalls: Recalls
    served: Recalls
    same: int
    repeated: int
    segments: tuple[SegmentFinding, ...]
    exact: ExactHits | None = None


def group_queries(
    sample: Iterable[SampledQuery],
    *,
    dimension: int,
    objective: float | None = None,
    tagged: Mapping[str, Sequence[SampledQuery]] = _NO_TAGS,
) -> list[QueryGroup]:
    """Return the samples in groups of few queries with the same k, filter, ef and objective.

    `sample` is that of the bands, `tagged` those of the tags; a group is of the same ones of them.

    A query that was sampled several times is searched once. Left out are queries of another
    dimension, which belong to an earlier model. `objective` is that of the collection: a client
    that sets the same one sets nothing of its own.
    """
    together: dict[_Asked, dict[bytes, list[SampledQuery]]] = {}
    every = [(query, True) for query in sample]
    in_bands = {id(query) for query, _ in every}
    tags = {id(query): tag for tag, queries in tagged.items() for query in queries}
    every += [
        (query, False)
        for queries in tagged.values()
        for query in queries
        if id(query) not in in_bands
    ]
    for query, in_band in every:
        if len(query.vector) == dimension:
            own = None if query.objective == objective else query.objective
            key = b"" if query.filter is None else filter_key(query.filter)
            of_samples = in_band, tags.get(id(query), "")
            same = together.setdefault((key, query.k, query.ef, own, *of_samples), {})
            same.setdefault(query.vector.tobytes(), []).append(query)
    return [
        _group(asked, equal[start : start + step])
        for asked, same in together.items()
        for equal, step in [(list(same.values()), _step(asked[1]))]
        for start in range(0, len(equal), step)
    ]


_Asked = tuple[bytes, int, int | None, float | None, bool, str]
"""Key of the filter, k, ef and objective; whether in the sample of a band, and of which tag."""


def _step(k: int) -> int:
    """Return how many queries a group has at most."""
    return max(1, min(GROUP_QUERIES, GROUP_HITS_MAX // k))


def _group(asked: _Asked, equal: Sequence[Sequence[SampledQuery]]) -> QueryGroup:
    key, k, ef, objective, in_band, tag = asked
    return QueryGroup(
        key,
        k,
        equal[0][0].filter,
        queries=tuple(samples[0] for samples in equal),
        samples=tuple(one for samples in equal for one in samples),
        places=np.repeat(np.arange(len(equal)), [len(samples) for samples in equal]),
        identities=np.array(
            [_identity(samples[0].vector, key, k) for samples in equal], dtype=np.uint64
        ),
        in_band=in_band,
        tag=tag,
        objective=objective,
        ef=ef,
    )


def _identity(vector: npt.NDArray[np.float32], key: bytes, k: int) -> int:
    """Return a number that is equal for equal queries, in all shards."""
    digest = xxhash.xxh3_64(vector.tobytes())
    digest.update(key)
    digest.update(k.to_bytes(4, "little"))
    return digest.intdigest()


def measure_group(
    searcher: Searcher, view: ShardView, group: QueryGroup, *, shard: int = 0, shard_count: int = 1
) -> GroupFinding:
    """Return the recall of the planned answers of `view`, for each segment and for all together.

    Also that of the answers that were given; `shard` of `shard_count` is the number of the shard.
    """
    queries = np.ascontiguousarray(np.stack([query.vector for query in group.queries]))
    options = group.options
    exactly = SearchOptions(k=group.k, filter=group.filter, exact=True)
    sources: list[SegmentView | GrowingView] = []
    planned: list[Hits] = []
    repeated: list[Hits] = []
    truth: list[Hits] = []
    segments: list[SegmentFinding] = []
    matches = 0
    for planned_segment in searcher.plan_view(view, options, key=group.key or None):
        matches += planned_segment.allowed
        hits = _measure_segment(searcher, planned_segment, queries, exactly)
        if hits is None:
            continue
        planned.append(hits.answers)
        repeated.append(hits.again)
        truth.append(hits.best)
        sources.append(planned_segment.held)
        segments.append(_segment_finding(planned_segment, hits, group, queries))
    for growing in view.growing:
        allowed, exact = searcher.search_growing(growing, queries, options)
        matches += allowed
        if exact is not None:
            sources.append(growing)
            for parts in (planned, repeated, truth):
                parts.append(exact)
    first, second, best_of_all = (
        merge_topk(parts, k=group.k, queries=len(queries)) for parts in (planned, repeated, truth)
    )
    recalls = query_recalls(_keyed(first), _keyed(best_of_all))[group.places]
    truth_here = ShardTruth(view, sources, best_of_all, shard=shard, shard_count=shard_count)
    served = served_recalls(truth_here, group.served, group.places, k=group.k)
    exact_hits: ExactHits | None = None
    if shard_count > 1:
        exact_hits = ExactHits(
            best_of_all.scores,
            found_ranks(_keyed(first), _keyed(best_of_all)),
            served_ranks(truth_here, group.served, group.places),
        )
    same = (first.rows == second.rows) & (first.parts == second.parts)
    return GroupFinding(
        group=group,
        band=band_of(matches, view.live_rows, filtered=group.filter is not None),
        matches=matches,
        live_rows=view.live_rows,
        recalls=recalls[~np.isnan(recalls)],
        served=served,
        same=int(np.count_nonzero(same.all(axis=1))),
        repeated=len(queries),
        segments=tuple(segments),
        exact=exact_hits,
    )


@dataclass(frozen=True, slots=True)
class _SegmentHits:
    """Hits in one segment: as answered, answered again, by its graph's plan, and exact."""

    answers: Hits
    again: Hits
    by_graph: Hits
    best: Hits


def _measure_segment(
    searcher: Searcher, planned: PlannedSegment, queries: Float32Matrix, exactly: SearchOptions
) -> _SegmentHits | None:
    """Search one segment in all ways; None where no row is allowed."""
    ran = searcher.run(planned, queries)
    if ran is None:
        return None
    again = by_graph = best = ran.hits
    if planned.chosen.plan.kind not in _EXACT:
        again = (searcher.run(planned, queries) or ran).hits
        best = (searcher.search_segment(planned.held, queries, exactly)[2] or ran).hits
    if planned.chosen.lifted:
        by_graph = (searcher.run(planned, queries, plan=planned.by_graph) or ran).hits
    return _SegmentHits(ran.hits, again, by_graph, best)


def _segment_finding(
    planned: PlannedSegment, hits: _SegmentHits, group: QueryGroup, queries: Float32Matrix
) -> SegmentFinding:
    held, filtered = planned.held, group.filter is not None
    recalls = query_recalls(hits.by_graph, hits.best)[group.places]
    known = ~np.isnan(recalls)
    finding = SegmentFinding(
        held.segment.id,
        band_of(planned.allowed, held.live_count, filtered=filtered),
        planned.by_graph.kind,
        recalls[known],
        work=np.empty(0) if filtered else walk_work(held, planned.by_graph, queries, k=group.k),
        serials=group.serials[group.places][known],
    )
    if not planned.chosen.lifted:
        return finding
    answered = query_recalls(hits.answers, hits.best)[group.places][known]
    return replace(finding, answered_by=planned.chosen.plan.kind, answered=answered)


def walk_work(held: SegmentView, plan: SegmentPlan, queries: Float32Matrix, *, k: int) -> Recalls:
    """Return the walk cost of the first `WALK_QUERIES` queries, (m,): rows compared in the graph.

    A row that is tested but not compared counts 1 / `CHECKS_PER_COMPARISON`. Empty for plans
    without a walk, and while the kernels are not loaded. Walks have the plan's ef as their width,
    as those at the build that they are compared with, whether or not searches adapt it. Without a
    filter the kernel's walk compares the same rows as FAISS's, which does not count them.
    """
    if plan.kind not in WALKS or not held.segment.index.walk_ready:
        return np.empty(0)
    few = np.ascontiguousarray(queries[:WALK_QUERIES])
    index = held.segment.index
    through = index.graph_rows(held.deletes.live) if plan.kind is PlanKind.IN_GRAPH else None
    walked = index.walk_filtered(few, k=k, ef=max(plan.ef, k), matching=through)
    looked = walked.checked / CHECKS_PER_COMPARISON if through is not None else 0.0
    work: Recalls = (walked.visited + looked).astype(np.float64)
    return work


def _keyed(best: TopK) -> Hits:
    """Return scores and one number for each (part, row); -1 stays -1."""
    keys = (best.parts.astype(np.int64) << _ROW_BITS) | best.rows
    return best.scores, np.where(best.rows < 0, np.int64(-1), keys)
