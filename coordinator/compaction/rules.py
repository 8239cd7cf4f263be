"""What the compaction rules share: settings, the observed shards, and estimates of a task. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

from annheal.errors import FieldViolation, InvalidArgument
from annheal.model.collection import Collection
from annheal.model.topology.manifest import IndexKind, Tier
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

PRIORITY_IDLE = -5
PRIORITY_MERGE = 0
PRIORITY_TOMBSTONES = 5
PRIORITY_WALK_COST = 6
PRIORITY_RECALL = 7
PRIORITY_BACKPRESSURE = 8
PRIORITY_MANUAL = 10

WARM_ROWS_MAX = 250_000
"""A segment with fewer live rows is warm, a larger one is cold."""
_LINK_BYTES = 8  # one link of a graph with FAISS's overhead; a row has 2 M of them on level 0
_M_FACTOR_MAX = 3
"""A graph below the recall objective is built again with up to this many times the M."""
_M_MAX = 64
_RECALL_M_FACTOR = 2
"""The M that the memory estimate of a `recall` task assumes, by the M of the collection."""
_ROW_BYTES = 128  # id, sequence, hash and other columns of a row during a build


@dataclass(frozen=True, slots=True)
class CompactionSettings:
    """When segments are merged, and how much of the cluster compacts at the same time.

    Attributes:
        automatic: whether the rules add tasks; if False only an operator's requests are compacted.
        flat_segments_max: flat segments that start a merge while the shard is written to.
        flat_rows_max: live rows in flat segments; more of them start a merge.
        quiet_s: seconds without a write after which a shard is quiet: two flat segments are merged.
        growth_busy: live rows of the largest source of a merge, by those of the other sources
            together, at most; while the shard is written to.
        growth_quiet: the same for a quiet shard.
        growth_idle: the same after the collection's `segment_idle_s` without a write.
        graph_rows_min: live rows from which a flat segment is rewritten with a graph alone.
        graphs_max: segments with a graph in one shard; if there are more, the smallest are merged.
        sources_max: sources of one task.
        failed_pause_s: seconds for which the sources of a failed task are in no new task.
        tasks_max: unfinished tasks of the cluster.
        tasks_bytes_max: memory estimates of the unfinished tasks together; the first unfinished
            task is allowed whatever its size.
        reload_share_max: share of a node's rows in (0, 1] that the publications under way replace;
            the first publication of a node is allowed whatever its size.
    """

    automatic: bool = True
    flat_segments_max: int = 4
    flat_rows_max: int = 100_000
    quiet_s: float = 3.0
    growth_busy: float = 1.0
    growth_quiet: float = 4.0
    growth_idle: float = 10.0
    graph_rows_min: int = 2_000
    graphs_max: int = 8
    sources_max: int = 64
    failed_pause_s: float = 600.0
    tasks_max: int = 64
    tasks_bytes_max: int = 64 << 30
    reload_share_max: float = 0.25

    def __post_init__(self) -> None:
        """Raise `InvalidArgument` for a limit that is not finite or not above 0."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        found = [
            FieldViolation(name, f"{value} must be more than 0")
            for name, value in values.items()
            if name != "automatic" and not (math.isfinite(value) and value > 0)
        ]
        if self.reload_share_max > 1.0:
            found.append(FieldViolation("reload_share_max", "must be at most 1"))
        if found:
            text = "; ".join(f"compaction_{one.field}: {one.description}" for one in found)
            raise InvalidArgument(text, violations=found)


@dataclass(frozen=True, slots=True)
class ShardObservation:
    """What the owner reports of a shard, and the seconds since its last write."""

    state: ShardState
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Segments to rewrite as one segment, and why; `why` is a sentence for operators."""

    sources: tuple[SegmentState, ...]
    reason: TaskReason
    priority: int
    why: str


NewId = Callable[[], str]
"""Returns a new task id at each call."""


def live_rows(segment: SegmentState) -> int:
    """Return the number of rows that are not dead; a rewrite copies these."""
    return max(segment.rows - segment.dead_rows, 0)


def size_order(segment: SegmentState) -> tuple[int, str]:
    """Return a sort key: fewest live rows first, then by id."""
    return live_rows(segment), segment.segment_id


def is_flat(segment: SegmentState) -> bool:
    """Return whether the segment has no graph: a search compares each of its rows."""
    return segment.index_kind == IndexKind.FLAT


def awaits_graph(segment: SegmentState, settings: CompactionSettings) -> bool:
    """Return whether a flat segment, or a flat vector part, may still get a graph.

    Alone or in a merge. A part waits until its segment's backfill has ended. A compactor that
    writes `graph_rows_min` rows or more as a flat segment has found that no graph of them meets
    the recall objective. Another build would give the same result.
    """
    small = segment.rows < settings.graph_rows_min
    if is_flat(segment) and (segment.tier == Tier.HOT or small):
        return True
    return any(
        one.waits and one.rows >= settings.graph_rows_min and one.lacking <= one.skipped
        for one in segment.models
    )


def tier_of(rows: int) -> Tier:
    """Return the tier of a compactor's output with `rows` rows."""
    return Tier.WARM if rows < WARM_ROWS_MAX else Tier.COLD


def output_bytes(collection: Collection, segment: SegmentState) -> int:
    """Return how many bytes the live rows of `segment` take in a task's output, at most."""
    rows = live_rows(segment)
    kept = stored_bytes(segment) * rows // max(segment.rows, 1)
    m = min(_M_MAX, _M_FACTOR_MAX * collection.index.m)
    graphs = len(collection.models)
    return kept + rows * 2 * m * _LINK_BYTES * graphs


def stored_bytes(segment: SegmentState) -> int:
    """Return the bytes of a segment with its vector parts."""
    return segment.size_bytes + sum(one.size_bytes for one in segment.models)


def first_within_limits(
    collection: Collection, segments: Sequence[SegmentState], *, sources_max: int
) -> list[SegmentState]:
    """Return the longest run of first segments that one output may hold.

    The limits are `sources_max` and the collection's `segment_rows_max` and `segment_bytes_max`.
    The first segment is always in it, whatever its size.
    """
    rows = size_bytes = 0
    chosen: list[SegmentState] = []
    for segment in segments[:sources_max]:
        rows += live_rows(segment)
        size_bytes += output_bytes(collection, segment)
        limits = collection.settings
        if chosen and (rows > limits.segment_rows_max or size_bytes > limits.segment_bytes_max):
            break
        chosen.append(segment)
    return chosen


def free_segments(state: ShardState, busy: set[tuple[int, str]]) -> list[SegmentState]:
    """Return the flushed segments that are not in `busy`."""
    return [
        segment
        for segment in state.segments
        if segment.tier != Tier.GROWING and (state.shard, segment.segment_id) not in busy
    ]


def busy_segments(
    tasks: Iterable[CompactionTask], *, now_s: float, failed_pause_s: float
) -> set[tuple[int, str]]:
    """Return (shard, segment id) of each source that no new task may have.

    These are the sources of unfinished tasks, and of tasks that failed less than `failed_pause_s`
    seconds before `now_s` (seconds since the epoch).
    """
    busy: set[tuple[int, str]] = set()
    for task in tasks:
        unfinished = task.phase in (TaskPhase.PENDING, TaskPhase.BUILT)
        failed = task.phase is TaskPhase.FAILED and now_s - task.finished_at_s < failed_pause_s
        if unfinished or failed:
            busy.update((task.shard, source) for source in task.sources)
    return busy


def task_for(
    collection: Collection, shard: int, rewrite: Rewrite, *, now_s: float, id: str
) -> CompactionTask:
    """Return the task that does `rewrite`, with estimates of its memory and its scratch space."""
    sources = rewrite.sources
    rows = sum(map(live_rows, sources))
    return CompactionTask(
        id=id,
        collection_id=collection.id,
        shard=shard,
        sources=tuple(segment.segment_id for segment in sources),
        tier=tier_of(rows).value,
        reason=rewrite.reason,
        priority=rewrite.priority,
        estimated_bytes=_memory_bytes(collection, sources, rows, rewrite.reason),
        estimated_disk_bytes=_disk_bytes(collection, sources),
        created_at_s=now_s,
        why=rewrite.why,
    )


def _memory_bytes(
    collection: Collection, sources: Sequence[SegmentState], rows: int, reason: TaskReason
) -> int:
    """Return the bytes of memory of a build: sources, vectors once more, graph and columns."""
    vector_bytes = 4 * sum(model.dimension for model in collection.models)
    # A graph that is rebuilt for its recall may get more links than the collection's settings say.
    m_factor = _RECALL_M_FACTOR if reason is TaskReason.RECALL else 1
    link_bytes = 2 * collection.index.m * m_factor * _LINK_BYTES
    read_bytes = sum(map(stored_bytes, sources))
    return read_bytes + rows * (vector_bytes + link_bytes + _ROW_BYTES)


def _disk_bytes(collection: Collection, sources: Sequence[SegmentState]) -> int:
    """Return the bytes of scratch space: the sources, the output, and the output read back."""
    read_bytes = sum(map(stored_bytes, sources))
    return read_bytes + 2 * sum(output_bytes(collection, segment) for segment in sources)
