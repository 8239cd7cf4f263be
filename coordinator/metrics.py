"""What the leader reports of the cluster when somebody scrapes it.

States and recall are the cluster's, not a process's: only the leader reports them, so that nothing
is counted twice. They come from the nodes, asked as `annheal segments` and `annheal recall` ask.
"""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterable

from annheal.coordinator.app import Coordinator
from annheal.coordinator.data_path.embedder_watch import EmbedderMetrics
from annheal.coordinator.leader.observation import observe_shards
from annheal.model.measures.recall import RecallEstimate, SegmentRecall
from annheal.model.measures.recall_audit import covered
from annheal.model.measures.recall_summary import TAIL_RECALL, RecallSlice, RecallSummary
from annheal.model.topology.shard import ShardPhase
from annheal.model.topology.state import ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase
from annheal.runtime.metrics import LONG_SECONDS, Family, FamilyKind, Metrics

SEGMENT_SERIES_MAX = 500
"""Series of segments and bands, those of the lowest recall."""
ALL_BANDS = "all"
_BOUNDS = ("estimate", "low", "high")
_FINISHED = (TaskPhase.PUBLISHED, TaskPhase.FAILED, TaskPhase.CANCELLED)


class CoordinatorMetrics:
    """Reports of one coordinator; `register` adds them to the process's."""

    def __init__(self, coordinator: Coordinator, metrics: Metrics) -> None:
        self._coordinator = coordinator
        coordinator.texts.metrics = EmbedderMetrics(metrics)
        self._seen: set[str] = set()
        self._started_s: float | None = None
        self._finished = metrics.counter(
            "annheal_compactions", "Compactions that ended.", labels=("reason", "phase")
        )
        self._seconds = metrics.histogram(
            "annheal_compaction_seconds",
            "Time from planning a compaction to its publication.",
            bounds=LONG_SECONDS,
            labels=("reason",),
        )
        self._bytes = metrics.counter(
            "annheal_compaction_written_bytes", "Bytes of the segments that compactions built."
        )
        self._rows = metrics.counter(
            "annheal_compaction_rows",
            "Rows that compactions read and wrote.",
            labels=("direction",),
        )

    def register(self, metrics: Metrics, *, now_s: Callable[[], float]) -> None:
        """Add the reports to `metrics`; tasks that end from now on are counted."""
        self._started_s = now_s()
        metrics.add_report(
            lambda: self.report(now_s=now_s()), series_max=len(_BOUNDS) * SEGMENT_SERIES_MAX
        )

    async def report(self, *, now_s: float) -> Iterable[Family]:
        """Return the state of the cluster; of a coordinator that does not lead only this fact."""
        coordinator = self._coordinator
        leading = Family("annheal_leader", "1 where the leader is.")
        leading.add(float(coordinator.leading))
        if not coordinator.leading:
            return [leading]
        tasks = [stored.value for stored in coordinator.catalog.tasks()]
        self._count_finished(tasks)
        observation = await observe_shards(
            coordinator.catalog,
            coordinator.router,
            timeout_s=coordinator.settings.observe_timeout_s,
        )
        summaries = await coordinator.recall_view.all()
        names = {one.id: one.name for one in coordinator.catalog.collections()}
        nodes = Family("annheal_nodes", "Live shard nodes, by whether they answer.", ("answers",))
        nodes.add(len(observation.by_node), "yes")
        nodes.add(len(observation.errors), "no")
        states = [s for s in observation.states.values() if s.collection_id in names]
        return [
            leading,
            nodes,
            _task_family(tasks),
            *_state_families(states, names),
            *recall_families(summaries, now_s=now_s),
        ]

    def _count_finished(self, tasks: Iterable[CompactionTask]) -> None:
        """Count each task that ended since the start of the process once.

        Finished tasks are stored long enough to be seen by a scrape.
        """
        ended = {task.id: task for task in tasks if task.phase in _FINISHED}
        self._seen &= ended.keys()
        for task_id, task in ended.items():
            if task_id in self._seen or task.finished_at_s < (self._started_s or 0.0):
                continue
            self._seen.add(task_id)
            self._finished.add(1, task.reason.value, task.phase.value)
            if task.phase is TaskPhase.PUBLISHED:
                self._seconds.observe(task.finished_at_s - task.created_at_s, task.reason.value)
                self._rows.add(task.rows_in, "read")
                self._rows.add(task.rows_out, "written")
                if task.output is not None:
                    self._bytes.add(task.output.size_bytes)


def _task_family(tasks: Iterable[CompactionTask]) -> Family:
    family = Family("annheal_tasks", "Compaction tasks that are kept.", ("reason", "phase"))
    for (reason, phase), count in Counts((t.reason.value, t.phase.value) for t in tasks).items():
        family.add(count, reason, phase)
    return family


def _state_families(states: Iterable[ShardState], names: dict[str, str]) -> list[Family]:
    by_collection = ("collection",)
    by_tier = ("collection", "tier")
    shards = Family("annheal_shards_serving", "Shards that are served.", by_collection)
    live = Family("annheal_live_rows", "Records.", by_collection)
    unindexed = Family("annheal_unindexed_rows", "Rows that no graph covers.", by_collection)
    memory = Family("annheal_memory_bytes", "Memory of shards.", by_collection)
    log = Family("annheal_wal_slots", "Log objects since the last checkpoint.", by_collection)
    segments = Family("annheal_segments", "Segments, growing ones included.", by_tier)
    rows = Family("annheal_segment_rows", "Rows, dead ones included.", by_tier)
    dead = Family("annheal_segment_dead_rows", "Rows deleted or replaced.", by_tier)
    size = Family("annheal_segment_bytes", "Bytes of segments.", by_tier)
    totals: dict[str, Counts[str]] = {}
    tiers: dict[tuple[str, str], Counts[str]] = {}
    for state in states:
        name = names[state.collection_id]
        total = totals.setdefault(name, Counts())
        total["serving"] += state.phase == ShardPhase.SERVING
        total["live"] += state.live_rows
        total["unindexed"] += state.unindexed_rows
        total["memory"] += state.memory_bytes
        total["log"] += state.wal_slots
        for segment in state.segments:
            tier = tiers.setdefault((name, segment.tier), Counts())
            tier["segments"] += 1
            tier["rows"] += segment.rows
            tier["dead"] += segment.dead_rows
            tier["bytes"] += segment.size_bytes
    for name, total in sorted(totals.items()):
        for family, key in (
            (shards, "serving"),
            (live, "live"),
            (unindexed, "unindexed"),
            (memory, "memory"),
            (log, "log"),
        ):
            family.add(total[key], name)
    for labels, tier in sorted(tiers.items()):
        for family, key in (
            (segments, "segments"),
            (rows, "rows"),
            (dead, "dead"),
            (size, "bytes"),
        ):
            family.add(tier[key], *labels)
    return [shards, live, unindexed, memory, log, segments, rows, dead, size]


def recall_families(summaries: Iterable[RecallSummary], *, now_s: float) -> list[Family]:
    """Return measured recall as metrics; estimates and interval bounds are apart by `bound`."""
    summaries = list(summaries)
    return [
        *_slice_families(summaries, now_s=now_s),
        *_merged_families(summaries, now_s=now_s),
        _change_family(summaries),
        *_tag_families(summaries, now_s=now_s),
        *_tail_families(summaries, now_s=now_s),
        *_coverage_families(summaries),
        *_segment_families(summaries),
        _trend_family(summaries),
    ]


def _trend_family(summaries: list[RecallSummary]) -> Family:
    """Return how searches take now; without a series where nothing can be compared."""
    trend = Family(
        "annheal_search_trend_ratio",
        "Searches now against earlier ones of the same volume, with the 95 % interval.",
        ("collection", "node", "measure", "bound"),
    )
    for one in summaries:
        for node, found in one.latency.items():
            for measure, ratio in (
                ("p50", found.p50), ("p99", found.p99), ("visited", found.visited)
            ):  # fmt: skip
                if ratio is None:
                    continue
                for bound, value in zip(_BOUNDS, (ratio.ratio, ratio.low, ratio.high), strict=True):
                    trend.add(value, one.collection, node, measure, bound)
    return trend


def _slice_families(summaries: list[RecallSummary], *, now_s: float) -> list[Family]:
    objective = Family("annheal_recall_objective_ratio", "The objective.", ("collection",))
    recall = Family(
        "annheal_recall_ratio",
        "Recall of sampled live queries, with the 95 % interval.",
        ("collection", "band", "bound"),
    )
    tiers = Family(
        "annheal_recall_tier_ratio",
        "Recall of each segment's own best k, by tier.",
        ("collection", "tier", "bound"),
    )
    models = Family(
        "annheal_recall_model_ratio", "The same by model.", ("collection", "model", "bound")
    )
    by_band = ("collection", "band")
    queries = Family("annheal_recall_queries", "Queries measured.", by_band)
    seen = Family(
        "annheal_searches",
        "Live queries by selectivity of their filters, as the nodes counted them.",
        by_band,
        FamilyKind.COUNTER,
    )
    stability = Family(
        "annheal_result_stability_ratio", "Queries that got the same answer twice.", by_band
    )
    served = Family(
        "annheal_recall_served_ratio",
        "Recall of the answers that were given to sampled live queries.",
        ("collection", "band", "bound"),
    )
    window = Family(
        "annheal_recall_window_end_seconds",
        "Unix time of the newest query behind the recall.",
        by_band,
    )
    age = Family("annheal_recall_age_seconds", "Age of the oldest measurement.", ("collection",))
    tail = Family(
        "annheal_recall_tail_ratio",
        "The worst queries: their recall (p5), and shares below the objective and below a half.",
        ("collection", "band", "measure"),
    )
    for one in summaries:
        objective.add(one.recall_objective, one.collection)
        if one.overall.estimate is not None:
            age.add(max(0.0, now_s - one.overall.estimate.measured_at_s), one.collection)
        for part in (one.overall, *one.bands):
            band = part.name or ALL_BANDS
            _add_bounds(recall, part.estimate, one.collection, band, now_s=now_s)
            _add_bounds(served, part.served, one.collection, band, now_s=now_s)
            if part.estimate is not None and part.estimate.window_end_s:
                window.add(part.estimate.window_end_s, one.collection, band)
            queries.add(part.estimate.queries if part.estimate else 0, one.collection, band)
            _add_tail(tail, part, one, band, now_s=now_s)
            if part.name:
                seen.add(part.seen, one.collection, band)
            if part.stability is not None:
                stability.add(part.stability, one.collection, band)
        for part in one.tiers:
            _add_bounds(tiers, part.estimate, one.collection, part.name, now_s=now_s)
        for part in one.models:
            _add_bounds(models, part.estimate, one.collection, part.name, now_s=now_s)
    return [
        objective, recall, served, window, tail, tiers, models, queries,
        seen, stability, age,
    ]  # fmt: skip


def _change_family(summaries: list[RecallSummary]) -> Family:
    change = Family(
        "annheal_recall_change_seconds",
        "Unix time at which a change of the live queries was last noticed.",
        ("collection",),
    )
    for one in summaries:
        if one.changed_at_s:
            change.add(one.changed_at_s, one.collection)
    return change


def _tag_families(summaries: list[RecallSummary], *, now_s: float) -> list[Family]:
    """Return the recall of each tag; a collection has at most `TAGS_MAX` and one for others."""
    recall = Family(
        "annheal_recall_tag_ratio",
        "Recall of sampled live queries by tag, with the 95 % interval.",
        ("collection", "tag", "bound"),
    )
    queries = Family(
        "annheal_recall_tag_queries", "Queries measured by tag.", ("collection", "tag")
    )
    seen = Family(
        "annheal_tagged_searches",
        "Live queries by tag, as the nodes counted them.",
        ("collection", "tag"),
        FamilyKind.COUNTER,
    )
    for one in summaries:
        for part in one.tags:
            _add_bounds(recall, part.estimate, one.collection, part.name, now_s=now_s)
            queries.add(part.estimate.queries if part.estimate else 0, one.collection, part.name)
            seen.add(part.seen, one.collection, part.name)
    return [recall, queries, seen]


def _merged_families(summaries: list[RecallSummary], *, now_s: float) -> list[Family]:
    """Return what is known of shards apart from their answers, of collections of several."""
    own_top_k = Family(
        "annheal_recall_own_top_k_ratio",
        "Recall of each shard's own best k, averaged; of collections of several shards.",
        ("collection", "bound"),
    )
    incomplete = Family(
        "annheal_recall_incomplete_queries",
        "Queries that some shards measured and others did not; they say nothing about answers.",
        ("collection",),
    )
    for one in summaries:
        if one.merged is not None:
            _add_bounds(own_top_k, one.merged.own_top_k.estimate, one.collection, now_s=now_s)
            incomplete.add(one.merged.incomplete, one.collection)
    return [own_top_k, incomplete]


def _add_tail(
    tail: Family, part: RecallSlice, summary: RecallSummary, band: str, *, now_s: float
) -> None:
    if part.estimate is None or not part.estimate.is_valid(now_s):
        return
    for measure, value in (
        ("p5", part.estimate.percentile(0.05)),
        ("below_objective", part.estimate.share_below(summary.recall_objective)),
        ("below_half", part.estimate.share_below(TAIL_RECALL)),
    ):
        if value is not None:
            tail.add(value, summary.collection, band, measure)


def _tail_families(summaries: list[RecallSummary], *, now_s: float) -> list[Family]:
    """Return the objectives for single queries, and how they are met."""
    promised = Family(
        "annheal_recall_objective_share_ratio",
        "Share of the queries that must reach recall_tail_objective.",
        ("collection",),
    )
    reached = Family(
        "annheal_recall_tail_share_ratio",
        "Share of sampled live queries that reach recall_tail_objective, with the 95 % interval.",
        ("collection", "band", "bound"),
    )
    for one in summaries:
        if one.tail_objective is not None:
            promised.add(one.tail_objective.share, one.collection)
        for part in (one.overall, *one.bands):
            if part.estimate is None or not part.estimate.is_valid(now_s):
                continue
            found = part.estimate.tail_for(one.tail_objective)
            if found is not None:
                for bound, value in zip(_BOUNDS, (found.share, found.low, found.high), strict=True):
                    reached.add(value, one.collection, part.name or ALL_BANDS, bound)
    return [promised, reached]


def _coverage_families(summaries: list[RecallSummary]) -> list[Family]:
    """Return how often audits confirmed the estimates; no series before the first audit."""
    windows = Family(
        "annheal_recall_audited_windows", "Windows whose estimates were audited.", ("collection",)
    )
    coverage = Family(
        "annheal_recall_coverage",
        "Share of the audited windows whose estimate was confirmed; 0.95 or more is promised.",
        ("collection",),
    )
    for one in summaries:
        audited, contained = covered(one.coverage)
        windows.add(audited, one.collection)
        if audited:
            coverage.add(contained / audited, one.collection)
    return [windows, coverage]


def _segment_families(summaries: list[RecallSummary]) -> list[Family]:
    labels = ("collection", "shard", "segment", "tier", "band")
    recall = Family("annheal_recall_segment_ratio", "The same by segment.", (*labels, "bound"))
    ef = Family("annheal_segment_ef", "Beam width in use.", labels)
    limit = Family("annheal_segment_ef_limit", "How far it may be raised.", labels)
    wanted = Family("annheal_rebuilds_wanted", "Segments to be rebuilt.", ("collection",))
    stuck = Family(
        "annheal_segments_stuck", "Segments that a rebuild did not help.", ("collection",)
    )
    cut = Family("annheal_segment_series_left_out", "Segments without series: too many.")
    all_segments: list[tuple[str, SegmentRecall]] = []
    for one in summaries:
        all_segments += [(one.collection, segment) for segment in one.segments]
        wanted.add(len({s.segment_id for s in one.segments if s.rebuild}), one.collection)
        stuck.add(len({s.segment_id for s in one.segments if s.stuck}), one.collection)
    all_segments.sort(key=lambda pair: pair[1].estimate.recall)
    for collection, segment in all_segments[:SEGMENT_SERIES_MAX]:
        values = (
            collection, str(segment.shard), segment.segment_id, segment.tier, segment.band.value
        )  # fmt: skip
        for bound, value in zip(_BOUNDS, _values(segment), strict=True):
            recall.add(value, *values, bound)
        ef.add(segment.ef, *values)
        limit.add(segment.ef_limit, *values)
    cut.add(max(0, len(all_segments) - SEGMENT_SERIES_MAX))
    return [recall, ef, limit, wanted, stuck, cut]


def _values(segment: SegmentRecall) -> tuple[float, float, float]:
    return segment.estimate.recall, segment.estimate.low, segment.estimate.high


def _add_bounds(
    family: Family, estimate: RecallEstimate | None, *labels: str, now_s: float
) -> None:
    """Add recall and its interval; no series where it is too old to be the recall of now."""
    if estimate is None or not estimate.is_valid(now_s):
        return
    values = (estimate.recall, estimate.low, estimate.high)
    for bound, value in zip(_BOUNDS, values, strict=True):
        family.add(value, *labels, bound)
