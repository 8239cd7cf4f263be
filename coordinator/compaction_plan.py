"""Which segments to rewrite, and why. Pure: what nodes report goes in, tasks come out.

Flushed segments are flat: exact, but searched row by row. The plan turns them into graphs when
there are enough of them, when nothing was written for a while, or when too many rows have no graph.
Rows that a compactor left flat, because no graph served them, count as if they had one.
A graph is rewritten together with new rows only when those are a fair share of it, so that a row is
built into a graph about log(rows / flushed rows) times and not once for every flush. Dead rows
are rewritten away when their share is large. A graph whose recall on live queries stays below the
objective although it is searched as widely as allowed is built anew, once. No segment is ever in
two unfinished tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

from annheal.model.collection import Collection
from annheal.model.manifest import IndexKind, Tier
from annheal.model.shard import ShardPhase
from annheal.model.task import CompactionTask, TaskPhase, TaskReason
from annheal.model.write import SegmentState, ShardState

PRIORITY_MERGE = 0
PRIORITY_TOMBSTONES = 5
PRIORITY_RECALL = 7
PRIORITY_MANUAL = 10

WARM_ROWS_MAX = 250_000
"""Rows of a warm segment; larger ones are cold."""
_LINK_BYTES = 8  # a link of the graph with FAISS's overhead (level 0 keeps 2 M of them)
_RECALL_LINKS_TIMES = 2
_ROW_BYTES = 128  # ids, sequences, hashes and the like while building


@dataclass(frozen=True, slots=True)
class CompactionSettings:
    """When to merge.

    Without `automatic` only what somebody asks for is compacted. While a shard is written to,
    `flat_segments_max` flat segments or `flat_rows_max` rows in them
    start a merge; after `quiet_s` without a write two are enough. A graph joins a merge when it
    has at most `growth_busy` (`growth_quiet` when quiet) times the rows of the others together. A
    lone flat segment below `graph_rows_min` rows stays as it is. More than `graphs_max` graphs in a
    shard are merged, the smallest first. A task that failed keeps its sources away from new tasks
    for `failed_pause_s`.
    """

    automatic: bool = True
    flat_segments_max: int = 4
    flat_rows_max: int = 100_000
    quiet_s: float = 3.0
    growth_busy: float = 1.0
    growth_quiet: float = 4.0
    graph_rows_min: int = 2_000
    graphs_max: int = 8
    sources_max: int = 64
    failed_pause_s: float = 600.0


@dataclass(frozen=True, slots=True)
class ShardObservation:
    """What the owner reports of a shard, and for how long its sequence has not grown."""

    state: ShardState
    quiet_s: float = 0.0


NewId = Callable[[], str]


def plan_compactions(
    collection: Collection,
    shards: Sequence[ShardObservation],
    tasks: Iterable[CompactionTask],
    *,
    now_s: float,
    settings: CompactionSettings,
    new_id: NewId,
) -> tuple[CompactionTask, ...]:
    """Return the tasks to add: at most one merge a shard, and one task for each worn segment.

    Shards that are not served are skipped. `tasks` are all tasks known; `now_s` is seconds since
    the epoch; `new_id` gives each task its id.
    """
    tasks = tuple(tasks)
    rebuilt = _rebuilt_segments(tasks)
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=settings.failed_pause_s)
    planned: list[CompactionTask] = []
    for shard in sorted(shards, key=lambda one: one.state.shard):
        if shard.state.phase != ShardPhase.SERVING or not _belongs(collection, shard.state):
            continue
        merge = _merge_sources(collection, shard, busy, settings)
        if merge:
            planned.append(
                _task(collection, shard.state, merge, TaskReason.MERGE, now_s=now_s, id=new_id())
            )
        taken = busy | {(shard.state.shard, segment.segment_id) for segment in merge}
        for sources, reason in _own_rewrites(collection, shard.state, taken, rebuilt, settings):
            planned.append(
                _task(collection, shard.state, sources, reason, now_s=now_s, id=new_id())
            )
    return tuple(planned)


def plan_manual(
    collection: Collection,
    states: Sequence[ShardState],
    tasks: Iterable[CompactionTask],
    *,
    now_s: float,
    new_id: NewId,
    settings: CompactionSettings,
    shard: int | None = None,
) -> tuple[CompactionTask, ...]:
    """Return the tasks that rewrite a shard (all when None) into as few clean segments as may be.

    A lone segment without dead rows that has a graph, or is too small for one, is left alone.
    Segments of unfinished tasks are left out; failed tasks do not hold anything back.
    """
    busy = busy_segments(tasks, now_s=now_s, failed_pause_s=0.0)
    planned: list[CompactionTask] = []
    for state in sorted(states, key=lambda one: one.shard):
        wanted = shard is None or state.shard == shard
        if not wanted or state.phase != ShardPhase.SERVING or not _belongs(collection, state):
            continue
        free = _free(collection, state, busy)
        for group in _packed(free, collection.settings.segment_rows_max, settings.sources_max):
            if len(group) == 1 and _clean(group[0], settings):
                continue
            planned.append(
                _task(collection, state, group, TaskReason.MANUAL, now_s=now_s, id=new_id())
            )
    return tuple(planned)


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


def tier_of(rows: int) -> Tier:
    """Return the tier of a segment that a compactor builds with `rows` rows."""
    return Tier.WARM if rows < WARM_ROWS_MAX else Tier.COLD


def _belongs(collection: Collection, state: ShardState) -> bool:
    return state.collection_id == collection.id


def _free(
    collection: Collection, state: ShardState, busy: set[tuple[int, str]]
) -> list[SegmentState]:
    return [
        segment
        for segment in state.segments
        if segment.model in ("", collection.model.name)
        and segment.tier != Tier.GROWING
        and (state.shard, segment.segment_id) not in busy
    ]


def _merge_sources(
    collection: Collection,
    shard: ShardObservation,
    busy: set[tuple[int, str]],
    settings: CompactionSettings,
) -> list[SegmentState]:
    """Return the segments to merge now, or none."""
    rows_max = collection.settings.segment_rows_max
    free = sorted(_free(collection, shard.state, busy), key=_by_size)
    graphs = [segment for segment in free if _settled(segment, settings)]
    flats = [segment for segment in free if not _settled(segment, settings)]
    quiet = shard.quiet_s >= settings.quiet_s
    if _flats_are_due(flats, graphs, quiet=quiet, settings=settings):
        chosen = _within(flats, rows_max, settings.sources_max)
        growth = settings.growth_quiet if quiet else settings.growth_busy
        chosen = _with_graphs(chosen, graphs, growth=growth, rows_max=rows_max, settings=settings)
        if len(chosen) > 1 or not _clean(chosen[0], settings):
            return chosen
    if len(graphs) > settings.graphs_max:
        # At least so many that the number falls to the limit; more of the same size come along.
        excess = len(graphs) - settings.graphs_max + 1
        chosen = _within(graphs[: max(excess, 2)], rows_max, settings.sources_max)
        if len(chosen) > 1:
            return chosen
    return []


def _flats_are_due(
    flats: Sequence[SegmentState],
    graphs: Sequence[SegmentState],
    *,
    quiet: bool,
    settings: CompactionSettings,
) -> bool:
    if not flats:
        return False
    rows = sum(map(_live, flats))
    if len(flats) >= settings.flat_segments_max or rows > settings.flat_rows_max:
        return True
    if not quiet:
        return False
    if rows >= settings.graph_rows_min:
        return True
    # Few rows beside a small graph belong into it; beside a large one they wait for more.
    return len(flats) > 1 or any(_live(graph) <= settings.growth_quiet * rows for graph in graphs)


def _with_graphs(
    chosen: list[SegmentState],
    graphs: Sequence[SegmentState],
    *,
    growth: float,
    rows_max: int,
    settings: CompactionSettings,
) -> list[SegmentState]:
    """Return `chosen` and the graphs, smallest first, that are not much larger than it."""
    rows = sum(map(_live, chosen))
    joined = list(chosen)
    for graph in graphs:
        fits = rows + _live(graph) <= rows_max and len(joined) < settings.sources_max
        if not fits or _live(graph) > growth * rows:
            break
        joined.append(graph)
        rows += _live(graph)
    return joined


def _within(
    segments: Sequence[SegmentState], rows_max: int, sources_max: int
) -> list[SegmentState]:
    """Return the smallest segments with at most `rows_max` live rows together; one at least."""
    chosen: list[SegmentState] = []
    rows = 0
    for segment in segments[:sources_max]:
        if chosen and rows + _live(segment) > rows_max:
            break
        chosen.append(segment)
        rows += _live(segment)
    return chosen


def _packed(
    segments: Iterable[SegmentState], rows_max: int, sources_max: int
) -> list[list[SegmentState]]:
    rest = sorted(segments, key=_by_size)
    groups: list[list[SegmentState]] = []
    while rest:
        group = _within(rest, rows_max, sources_max)
        groups.append(group)
        rest = rest[len(group) :]
    return groups


def _own_rewrites(
    collection: Collection,
    state: ShardState,
    taken: Set[tuple[int, str]],
    rebuilt: Set[str],
    settings: CompactionSettings,
) -> list[tuple[list[SegmentState], TaskReason]]:
    """Return what to rewrite for itself and why: each segment alone, those wholly dead together.

    Wholly dead segments need no build; one task drops them all, so that they never queue up
    before the merges of rows that live.
    """
    rewrites: list[tuple[list[SegmentState], TaskReason]] = []
    dead: list[SegmentState] = []
    for segment in state.segments:
        if (state.shard, segment.segment_id) in taken:
            continue
        reason = _own_reason(collection, segment, rebuilt)
        if reason is TaskReason.TOMBSTONES and _live(segment) == 0:
            dead.append(segment)
        elif reason is not None:
            rewrites.append(([segment], reason))
    if dead:
        rewrites.insert(0, (dead[: settings.sources_max], TaskReason.TOMBSTONES))
    return rewrites


def _rebuilt_segments(tasks: Iterable[CompactionTask]) -> set[str]:
    """Return the segments that were built for the recall of their predecessors."""
    return {
        task.output.segment_id
        for task in tasks
        if task.reason is TaskReason.RECALL and task.output is not None
    }


def _own_reason(
    collection: Collection, segment: SegmentState, rebuilt: Set[str]
) -> TaskReason | None:
    """Return why a segment must be rewritten by itself, or None."""
    if segment.rebuild and not segment.stuck and segment.segment_id not in rebuilt:
        return TaskReason.RECALL
    return TaskReason.TOMBSTONES if _worn(collection, segment) else None


def _worn(collection: Collection, segment: SegmentState) -> bool:
    """Return whether the dead rows of a segment ask for a rewrite (all dead: always)."""
    if segment.tier == Tier.GROWING or not segment.dead_rows:
        return False
    if segment.dead_rows >= segment.rows:
        return True
    settings = collection.settings
    enough = segment.dead_rows >= settings.tombstone_rows_min
    return enough and segment.dead_rows >= settings.tombstone_ratio_max * segment.rows


def _clean(segment: SegmentState, settings: CompactionSettings) -> bool:
    """Return whether rewriting this segment alone would change nothing worth it."""
    if segment.dead_rows:
        return False
    return segment.index_kind != IndexKind.FLAT or segment.rows < settings.graph_rows_min


def _settled(segment: SegmentState, settings: CompactionSettings) -> bool:
    """Return whether a segment is as good as a build makes it, dead rows apart.

    A compactor that leaves a large segment flat has found that no graph serves it: building it
    again would find the same, for ever.
    """
    refused = segment.tier != Tier.HOT and segment.rows >= settings.graph_rows_min
    return segment.index_kind != IndexKind.FLAT or refused


def _live(segment: SegmentState) -> int:
    return max(segment.rows - segment.dead_rows, 0)


def _by_size(segment: SegmentState) -> tuple[int, str]:
    return _live(segment), segment.segment_id


def _task(
    collection: Collection,
    state: ShardState,
    sources: Sequence[SegmentState],
    reason: TaskReason,
    *,
    now_s: float,
    id: str,
) -> CompactionTask:
    rows = sum(map(_live, sources))
    priorities = {
        TaskReason.MERGE: PRIORITY_MERGE,
        TaskReason.TOMBSTONES: PRIORITY_TOMBSTONES,
        TaskReason.MANUAL: PRIORITY_MANUAL,
        TaskReason.RECALL: PRIORITY_RECALL,
    }
    return CompactionTask(
        id=id,
        collection_id=collection.id,
        shard=state.shard,
        sources=tuple(segment.segment_id for segment in sources),
        tier=tier_of(rows).value,
        reason=reason,
        priority=priorities[reason],
        estimated_bytes=_estimated_bytes(collection, sources, rows, reason),
        created_at_s=now_s,
    )


def _estimated_bytes(
    collection: Collection, sources: Sequence[SegmentState], rows: int, reason: TaskReason
) -> int:
    """Return the memory of a build: what is read, the vectors once more, the graph, the columns."""
    vector_bytes = collection.model.dimension * 4
    # For its recall a graph may get more links than the collection's others.
    denser = _RECALL_LINKS_TIMES if reason is TaskReason.RECALL else 1
    link_bytes = 2 * collection.index.m * denser * _LINK_BYTES
    read_bytes = sum(segment.size_bytes for segment in sources)
    return read_bytes + rows * (vector_bytes + link_bytes + _ROW_BYTES)
