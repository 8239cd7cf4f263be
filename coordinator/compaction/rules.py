"""What the rules of compaction share: settings, what they look at, and the tasks they make."""

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
PRIORITY_PRESSURE = 8
PRIORITY_MANUAL = 10

WARM_ROWS_MAX = 250_000
"""Rows of a warm segment; larger ones are cold."""
_LINK_BYTES = 8  # a link of the graph with FAISS's overhead (level 0 keeps 2 M of them)
_LINKS_TIMES_MAX = 3
"""A graph that misses the objective is built with up to so many times the links."""
_LINKS_MAX = 64
_REBUILD_LINKS_TIMES = 2
_ROW_BYTES = 128  # ids, sequences, hashes and the like while building


@dataclass(frozen=True, slots=True)
class CompactionSettings:
    """When to merge, and how much at once.

    Without `automatic` only what somebody asks for is compacted. While a shard is written to,
    `flat_segments_max` flat segments or `flat_rows_max` rows in them start a merge; after
    `quiet_s` without a write two are enough. The largest segment of a merge has at most
    `growth_busy` (`growth_quiet` when quiet, `growth_idle` when nobody has written for the
    collection's `segment_idle_s`) times the rows of the others together. A lone flat
    segment below `graph_rows_min` rows stays as it is. More than `graphs_max` graphs in a shard are
    merged, the smallest first. A task that failed keeps its sources away from new tasks for
    `failed_pause_s`. Over the whole cluster at most `tasks_max` tasks are unfinished, with
    estimates of `tasks_bytes_max` bytes together (one task always may be), and of a node's rows at
    most the share `reload_share_max` is being replaced by freshly built segments (one always may).
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
        """Refuse values that cannot work."""
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
    """What the owner reports of a shard, and for how long its sequence has not grown."""

    state: ShardState
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Rewrite:
    """Segments to rewrite into one, and why; `why` is a sentence for operators."""

    sources: tuple[SegmentState, ...]
    reason: TaskReason
    priority: int
    why: str


NewId = Callable[[], str]


def live_rows(segment: SegmentState) -> int:
    """Return the rows that a rewrite copies."""
    return max(segment.rows - segment.dead_rows, 0)


def by_size(segment: SegmentState) -> tuple[int, str]:
    """Return the order of merging: the smallest first."""
    return live_rows(segment), segment.segment_id


def is_flat(segment: SegmentState) -> bool:
    """Return whether searches compare the segment row by row."""
    return segment.index_kind == IndexKind.FLAT


def is_settled(segment: SegmentState, settings: CompactionSettings) -> bool:
    """Return whether a segment is as good as a build makes it, dead rows apart.

    A compactor that leaves a large segment flat has found that no graph serves it: building it
    again would find the same, for ever.
    """
    refused = segment.tier != Tier.HOT and segment.rows >= settings.graph_rows_min
    return not is_flat(segment) or refused


def tier_of(rows: int) -> Tier:
    """Return the tier of a segment that a compactor builds with `rows` rows."""
    return Tier.WARM if rows < WARM_ROWS_MAX else Tier.COLD


def output_bytes(collection: Collection, segment: SegmentState) -> int:
    """Return what the live rows of a segment take at most in a segment that is built from them."""
    rows = live_rows(segment)
    kept = segment.size_bytes * rows // max(segment.rows, 1)
    links = min(_LINKS_MAX, _LINKS_TIMES_MAX * collection.index.m)
    return kept + rows * 2 * links * _LINK_BYTES


def fitting(
    collection: Collection, segments: Sequence[SegmentState], *, sources_max: int
) -> list[SegmentState]:
    """Return the first segments that one may hold by the collection's limits; one at least."""
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


def free_segments(
    collection: Collection, state: ShardState, busy: set[tuple[int, str]]
) -> list[SegmentState]:
    """Return the flushed segments of the serving model that no task has."""
    return [
        segment
        for segment in state.segments
        if segment.model in ("", collection.model.name)
        and segment.tier != Tier.GROWING
        and (state.shard, segment.segment_id) not in busy
    ]


def busy_segments(
    tasks: Iterable[CompactionTask], *, now_s: float, failed_pause_s: float
) -> set[tuple[int, str]]:
    """Return (shard, segment id) of the sources of unfinished and of freshly failed tasks."""
    busy: set[tuple[int, str]] = set()
    for task in tasks:
        unfinished = task.phase in (TaskPhase.PENDING, TaskPhase.BUILT)
        failed = task.phase is TaskPhase.FAILED and now_s - task.finished_at_s < failed_pause_s
        if unfinished or failed:
            busy.update((task.shard, source) for source in task.sources)
    return busy


def task_of(
    collection: Collection, shard: int, rewrite: Rewrite, *, now_s: float, id: str
) -> CompactionTask:
    """Return the task that does `rewrite`, with what it will need."""
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
    """Return the memory of a build: what is read, the vectors once more, the graph, the columns."""
    vector_bytes = collection.model.dimension * 4
    # For its recall a graph may get more links than the collection's others.
    denser = _REBUILD_LINKS_TIMES if reason is TaskReason.RECALL else 1
    link_bytes = 2 * collection.index.m * denser * _LINK_BYTES
    read_bytes = sum(segment.size_bytes for segment in sources)
    return read_bytes + rows * (vector_bytes + link_bytes + _ROW_BYTES)


def _disk_bytes(collection: Collection, sources: Sequence[SegmentState]) -> int:
    """Return the scratch space: the sources, the output, and the output as it is read back."""
    read_bytes = sum(segment.size_bytes for segment in sources)
    return read_bytes + 2 * sum(output_bytes(collection, segment) for segment in sources)
