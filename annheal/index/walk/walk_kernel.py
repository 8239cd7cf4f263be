"""The compiled walk through an HNSW graph that returns only the rows of a bitmap.

Imported where machine code is loaded: importing numba takes a good part of a second.

The walk keeps a pool of the `ef` nearest rows of the bitmap, expands the nearest one that is not
expanded yet, and ends when all are. Rows outside the bitmap are never compared on level 0. Where
more than a tenth of a row's neighbours are outside, the walk looks through them: it visits their
neighbours too, until it has found as many new rows as a row has links (the two-hop expansion of
ACORN, arXiv 2403.04871, with Lucene's threshold). Without a bitmap every neighbour is compared, and
the walk finds what FAISS finds.

Three things make rows reachable that are far from the query, or behind rows outside the bitmap:
rows of the bitmap to start from ("seeds"); rows outside that were met but not looked through, which
are looked through when the pool runs dry ("waypoints"); and a wider pool for a query in whose
neighbourhood few rows match (`_is_far`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import int64, njit, uint8, uint64

from annheal.index.distances import (
    REORDER_SUMS,
    distance_in,
    distances_of,
    insert,
    key_of,
    one_distance,
    prefetch,
    row_in,
)
from annheal.index.walk.walk_layout import (
    ABORTED,
    CHECKS_PER_COMPARISON,
    DIMENSION,
    EF,
    EF_FAR,
    ENTRY,
    FAR_CHECKS,
    FAR_DEVIATIONS,
    FAR_EXPECTED_MIN,
    FAR_SHARE,
    L2,
    LOOK_AHEAD_ROWS,
    LOOK_THROUGH_SHARE,
    MATCHES,
    OK,
    ROWS,
    SEEDS_MAX,
    START,
    STARVED,
    STOP,
    TOP_LEVEL,
    WAYPOINTS_PER_EF,
    WIDTHS,
    WORK_MAX,
    K,
)

EXPANDED = 1
"""The lowest bit of a key in the pool."""
EPOCH_LAST = 252
LINKS_PER_LINE = 16

# Positions in `state`, the counters of the query that is being answered.
SIZE, CURSOR, QUEUED, TAKEN, VISITED, CHECKED, BEAM, QUERY, SEEN = range(9)


class Graph(NamedTuple):
    """FAISS's arrays, as the kernel gets them."""

    neighbors: Any
    offsets: Any
    layout: Any
    stored: Any
    queries: Any
    bitmap: Any


class Scratch(NamedTuple):
    """Memory of one thread.

    `marks` has one byte for each row. Relative to the query's epoch e: below e untouched; e
    compared (a row of the bitmap) or queued (one outside); e + 1 looked through. `buffer` holds
    rows to compare from its beginning, and rows outside the bitmap in its last `width` places.
    """

    marks: Any
    pool: Any
    buffer: Any
    distances: Any
    queue: Any
    state: Any


@njit(nogil=True)
def _matches(bitmap: Any, row: Any) -> Any:
    return (bitmap[uint64(row) >> uint64(3)] >> (uint8(row) & uint8(7))) & uint8(1)


@njit(nogil=True)
def _prefetch_links(graph: Any, row: Any, width: Any) -> None:
    first = uint64(graph.offsets[uint64(row)])
    for t in range(uint64(0), width, uint64(LINKS_PER_LINE)):
        prefetch(graph.neighbors, first + t)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _compare_buffered(graph: Any, scratch: Any, count: Any, l2: Any) -> None:
    """Compare the first `count` buffered rows and put them into the pool."""
    state, pool, ef = scratch.state, scratch.pool, scratch.state[BEAM]
    distances_of(
        graph.stored,
        scratch.buffer,
        count,
        graph.queries,
        uint64(state[QUERY]),
        uint64(graph.layout[DIMENSION]),
        l2,
        scratch.distances,
    )
    size, cursor = state[SIZE], state[CURSOR]
    for t in range(uint64(count)):
        position = insert(pool, size, ef, key_of(scratch.distances[t], scratch.buffer[t]))
        if position < ef:
            size = min(size + 1, ef)
            cursor = min(cursor, position)
    state[SIZE], state[CURSOR] = size, cursor
    state[VISITED] += count


@njit(nogil=True, fastmath=REORDER_SUMS)
def _descend(graph: Any, scratch: Any, l2: Any) -> Any:
    """Return the row of level 0 to begin at: greedy search of the upper levels, as in FAISS."""
    layout, state = graph.layout, scratch.state
    dimension, query = uint64(layout[DIMENSION]), uint64(state[QUERY])
    current = layout[ENTRY]
    best = one_distance(
        graph.stored, uint64(current) * dimension, graph.queries, query, dimension, l2
    )
    state[VISITED] += 1
    for level in range(layout[TOP_LEVEL], 0, -1):
        moved = True
        while moved:
            moved = False
            first = graph.offsets[uint64(current)]
            count = int64(0)
            for t in range(
                uint64(first + layout[WIDTHS + level]), uint64(first + layout[WIDTHS + level + 1])
            ):
                if graph.neighbors[t] < 0:
                    break
                scratch.buffer[uint64(count)] = graph.neighbors[t]
                count += 1
            distances_of(
                graph.stored,
                scratch.buffer,
                count,
                graph.queries,
                query,
                dimension,
                l2,
                scratch.distances,
            )
            state[VISITED] += count
            for i in range(uint64(count)):
                if scratch.distances[i] < best:
                    best = scratch.distances[i]
                    current = int64(scratch.buffer[i])
                    moved = True
    return current


@njit(nogil=True)
def _new_neighbors(graph: Any, scratch: Any, row: Any, width: Any) -> Any:
    """Buffer the neighbours of `row` that were not compared yet; return their number."""
    seen = uint8(scratch.state[SEEN])
    first = uint64(graph.offsets[uint64(row)])
    count = int64(0)
    for t in range(first, first + width):
        v = graph.neighbors[t]
        if v < 0:
            break
        if scratch.marks[uint64(v)] < seen:
            scratch.marks[uint64(v)] = seen
            scratch.buffer[uint64(count)] = v
            count += 1
    return count


@njit(nogil=True)
def _queue(scratch: Any, row: Any) -> None:
    """Remember a row outside the bitmap as a waypoint, unless it is one or the queue is full."""
    state = scratch.state
    if scratch.marks[uint64(row)] < uint8(state[SEEN]) and state[QUEUED] < scratch.queue.size:
        scratch.marks[uint64(row)] = uint8(state[SEEN])
        scratch.queue[uint64(state[QUEUED])] = row
        state[QUEUED] += 1


@njit(nogil=True)
def _split_neighbors(graph: Any, scratch: Any, row: Any, width: Any) -> Any:
    """Buffer the new matching neighbours of `row` in front and the others at the end.

    Returns (new matching ones, others not looked through yet, whether to look through them).
    """
    seen = uint8(scratch.state[SEEN])
    last_places = int64(scratch.buffer.size) - int64(width)
    first = uint64(graph.offsets[uint64(row)])
    count, outside, failing, degree = int64(0), int64(0), int64(0), int64(0)
    for t in range(first, first + width):
        v = graph.neighbors[t]
        if v < 0:
            break
        degree += 1
        if _matches(graph.bitmap, v):
            if scratch.marks[uint64(v)] < seen:
                scratch.marks[uint64(v)] = seen
                scratch.buffer[uint64(count)] = v
                count += 1
        else:
            failing += 1
            if scratch.marks[uint64(v)] <= seen:
                scratch.buffer[uint64(last_places + outside)] = v
                outside += 1
    scratch.state[CHECKED] += degree
    return count, outside, failing > degree * LOOK_THROUGH_SHARE


@njit(nogil=True)
def _look_through(
    graph: Any, scratch: Any, count: Any, outside: Any, width: Any, hungry: Any
) -> Any:
    """Buffer the new matching neighbours of the `outside` rows; return how many are buffered now.

    Neighbours are stored nearest first, so the nearest are looked through; the rest, and rows
    outside the bitmap behind them, become waypoints while the pool is `hungry`.
    """
    state, marks = scratch.state, scratch.marks
    seen = uint8(state[SEEN])
    last_places = int64(scratch.buffer.size) - int64(width)
    for i in range(min(outside, int64(LOOK_AHEAD_ROWS))):
        _prefetch_links(graph, scratch.buffer[uint64(last_places + i)], width)
    for i in range(outside):
        w = scratch.buffer[uint64(last_places + i)]
        if count >= int64(width):
            if not hungry:
                break
            _queue(scratch, w)
            continue
        if i + LOOK_AHEAD_ROWS < outside:
            ahead = scratch.buffer[uint64(last_places + i + LOOK_AHEAD_ROWS)]
            _prefetch_links(graph, ahead, width)
        marks[uint64(w)] = seen + uint8(1)
        first = uint64(graph.offsets[uint64(w)])
        checked = int64(0)
        for t in range(first, first + width):
            v = graph.neighbors[t]
            if v < 0:
                break
            checked += 1
            if _matches(graph.bitmap, v):
                if marks[uint64(v)] < seen:
                    marks[uint64(v)] = seen
                    scratch.buffer[uint64(count)] = v
                    count += 1
            elif hungry:
                _queue(scratch, v)
        state[CHECKED] += checked
    return count


@njit(nogil=True)
def _is_far(graph: Any, scratch: Any, row: Any, width: Any, matches: Any) -> Any:
    """Return whether rows match around `row` far more seldom than elsewhere.

    Looks at the neighbours of its neighbours, the query's surroundings whatever the filter.
    """
    share = matches / graph.layout[ROWS]
    if share * FAR_CHECKS < FAR_EXPECTED_MIN:
        return False
    checked, matching = int64(0), int64(0)
    first = uint64(graph.offsets[uint64(row)])
    for t in range(first, first + width):
        w = graph.neighbors[t]
        if w < 0 or checked >= FAR_CHECKS:
            break
        second = uint64(graph.offsets[uint64(w)])
        for s in range(second, second + width):
            v = graph.neighbors[s]
            if v < 0:
                break
            checked += 1
            matching += _matches(graph.bitmap, v)
    scratch.state[CHECKED] += checked
    expected = checked * share
    chance = FAR_DEVIATIONS * np.sqrt(expected * (1.0 - share))
    return matching < max(expected * FAR_SHARE, expected - chance)


@njit(nogil=True)
def _sample_seeds(bitmap: Any, rows: Any, seeds: Any) -> Any:
    """Write matching rows at about equal distances into `seeds`; return their number."""
    count, row = int64(0), int64(0)
    for i in range(int64(seeds.size)):
        row = max(row, i * rows // int64(seeds.size))
        while row < rows and not _matches(bitmap, row):
            # Bytes without a bit are skipped as a whole.
            row = row + 8 if row & 7 == 0 and bitmap[uint64(row >> 3)] == 0 else row + 1
        if row >= rows:
            break
        seeds[uint64(count)] = row
        count += 1
        row += 1
    return count


@njit(nogil=True)
def _begin(scratch: Any, query: Any, ef: Any) -> None:
    """Clear what the query before left behind."""
    state = scratch.state
    epoch = state[SEEN] + 2
    if epoch > EPOCH_LAST:
        scratch.marks[:] = 0
        epoch = int64(2)
    state[:] = 0
    state[SEEN], state[BEAM], state[QUERY] = epoch, ef, query


@njit(nogil=True)
def _next_in_pool(scratch: Any) -> Any:
    """Return the nearest row of the pool not expanded yet, marking it expanded; -1 when none."""
    pool, state = scratch.pool, scratch.state
    cursor = state[CURSOR]
    while cursor < state[SIZE]:
        key = pool[uint64(cursor)]
        if not key & EXPANDED:
            pool[uint64(cursor)] = key | EXPANDED
            state[CURSOR] = cursor + 1
            return row_in(key)
        cursor += 1
    state[CURSOR] = cursor
    return int64(-1)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _walk_unfiltered(graph: Any, scratch: Any, entry: Any, width: Any, l2: Any) -> Any:
    scratch.marks[uint64(entry)] = uint8(scratch.state[SEEN])
    scratch.buffer[uint64(0)] = entry
    count = int64(1)
    scratch.state[VISITED] -= 1  # compared in the descent already
    row = entry
    while row >= 0:
        _compare_buffered(graph, scratch, count, l2)
        row = _next_in_pool(scratch)
        if row >= 0:
            count = _new_neighbors(graph, scratch, row, width)
    return OK


@njit(nogil=True)
def _next_waypoint(scratch: Any, budget: Any) -> Any:
    """Return a queued row not looked through yet; -1 when there is none, -2 over the budget."""
    state = scratch.state
    while state[TAKEN] < state[QUEUED]:
        if state[TAKEN] >= budget:
            return int64(-2)
        row = int64(scratch.queue[uint64(state[TAKEN])])
        state[TAKEN] += 1
        if scratch.marks[uint64(row)] == uint8(state[SEEN]):
            scratch.marks[uint64(row)] = uint8(state[SEEN] + 1)
            return row
    return int64(-1)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _start_filtered(graph: Any, scratch: Any, entry: Any, seeds: Any, l2: Any) -> None:
    """Put the seeds, and the entry if it matches, into the pool."""
    seen = uint8(scratch.state[SEEN])
    count = int64(0)
    for i in range(uint64(seeds.size)):
        v = seeds[i]
        if scratch.marks[uint64(v)] < seen:
            scratch.marks[uint64(v)] = seen
            scratch.buffer[uint64(count)] = v
            count += 1
    if _matches(graph.bitmap, entry) and scratch.marks[uint64(entry)] < seen:
        scratch.marks[uint64(entry)] = seen
        scratch.buffer[uint64(count)] = entry
        count += 1
    _compare_buffered(graph, scratch, count, l2)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _walk_filtered(
    graph: Any, scratch: Any, entry: Any, seeds: Any, settings: Any, width: Any, l2: Any
) -> Any:
    state, matches = scratch.state, settings[MATCHES]
    if _is_far(graph, scratch, entry, width, matches):
        if settings[EF_FAR] == 0:
            return ABORTED
        state[BEAM] = settings[EF_FAR]
    _start_filtered(graph, scratch, entry, seeds, l2)
    goal = min(state[BEAM], matches)
    # The entry is looked at whether it matches or not: its links lead to the query.
    row = entry if not _matches(graph.bitmap, entry) else _next_in_pool(scratch)
    while True:
        waypoint = row < 0
        if waypoint:
            if state[SIZE] >= goal:
                return OK
            row = _next_waypoint(scratch, state[BEAM] * WAYPOINTS_PER_EF)
            if row < 0:
                enough = row == -1 and state[SIZE] >= min(settings[K], matches)
                return OK if enough else STARVED
        count, outside, look = _split_neighbors(graph, scratch, row, width)
        hungry = state[SIZE] < goal
        if waypoint:
            for i in range(outside):
                _queue(scratch, scratch.buffer[uint64(scratch.buffer.size - width + i)])
        elif look:
            count = _look_through(graph, scratch, count, outside, width, hungry)
        _compare_buffered(graph, scratch, count, l2)
        if state[VISITED] + state[CHECKED] // CHECKS_PER_COMPARISON > settings[WORK_MAX]:
            return ABORTED
        row = _next_in_pool(scratch)


@njit(nogil=True, fastmath=REORDER_SUMS)
def walk(
    neighbors: Any,
    offsets: Any,
    layout: Any,
    stored: Any,
    queries: Any,
    bitmap: Any,
    given_seeds: Any,
    settings: Any,
    marks: Any,
    pool: Any,
    buffer: Any,
    distances: Any,
    queue: Any,
    state: Any,
    scores: Any,
    rows: Any,
    counts: Any,
    status: Any,
) -> None:
    """Answer the queries `settings[START]` to `settings[STOP]` (exclusive).

    Writes scores (n, kept) float32 and rows (n, kept) int64 of the found rows, best first, where
    kept is at least k; counts (n, 3) int64: rows compared, bits tested, beam width used; status
    (n,) uint8. What is not found stays as it is. `layout` and `settings`: see `walk_layout`; an
    empty bitmap means no filter.
    """
    graph = Graph(neighbors, offsets, layout, stored, queries, bitmap)
    scratch = Scratch(marks, pool, buffer, distances, queue, state)
    width = uint64(layout[WIDTHS + 1])
    l2 = settings[L2] != 0
    filtered = bitmap.size > 0
    seeds = given_seeds
    if filtered and seeds.size == 0:
        # Seeds outlive the queries of a call, so they are kept behind the queue.
        sampled = queue[uint64(queue.size - SEEDS_MAX) :]
        seeds = sampled[: _sample_seeds(bitmap, layout[ROWS], sampled)]
        scratch = Scratch(
            marks, pool, buffer, distances, queue[: uint64(queue.size - SEEDS_MAX)], state
        )
    for q in range(settings[START], settings[STOP]):
        _begin(scratch, q * layout[DIMENSION], settings[EF])
        entry = _descend(graph, scratch, l2)
        if filtered:
            status[q] = _walk_filtered(graph, scratch, entry, seeds, settings, width, l2)
        else:
            status[q] = _walk_unfiltered(graph, scratch, entry, width, l2)
        for i in range(min(int64(scores.shape[1]), state[SIZE])):
            key = pool[uint64(i)]
            scores[q, i] = -distance_in(key)
            rows[q, i] = row_in(key)
        counts[q, 0] = state[VISITED]
        counts[q, 1] = state[CHECKED]
        counts[q, 2] = state[BEAM]
