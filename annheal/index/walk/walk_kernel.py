"""Compiled: a walk of an HNSW graph that returns only matching rows, those of a bitmap.

Imported only where kernels are compiled or loaded: importing numba takes half a second.

The walk keeps a pool of the `ef` nearest matching rows (its beam), expands the nearest row that is
not expanded yet, and ends when all are expanded. On level 0 only matching rows are compared. If
more than a tenth of the neighbours of a row do not match, the walk looks through these: their
neighbours are tested too, until as many new matching rows are found as a row has links (the two-hop
expansion of ACORN, arXiv 2403.04871, with Lucene's threshold). Without a bitmap every neighbour is
compared, and the walk finds the rows that FAISS finds.

Matching rows that are far from the query, or reachable only through rows that do not match, are
found by three additions. Seeds are matching rows from all over the index, where the walk begins
too. Waypoints are rows that do not match and were not looked through; while the pool is not full,
they are queued, and expanded when all rows of the pool are. And a query around which few rows match
gets a wider pool (`_is_far`).

With a reach, a walk compares rows whether or not they match, and has a beam of its own width for
every query: its pool keeps the rows that are at most so many times as far as the matching row of
rank `REACH_RANK`, at least `FLOOR` and at most `EF` of them (`_drop_out_of_reach`). Only rows that
match are returned.
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
    FLOOR,
    KEPT,
    L2,
    LOOK_AHEAD_ROWS,
    LOOK_THROUGH_SHARE,
    MATCHES,
    OK,
    REACH,
    REACH_ONE,
    REACH_RANK,
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
"""The lowest bit of a key in the pool: the row is expanded."""
STAMP_LAST = 252
"""The largest stamp of a query: after it marks, which are bytes, are cleared."""
LINKS_PER_LINE = 16
"""Links in a cache line."""

# Positions in `state`, the numbers of the query that is being answered: keys in the pool; the first
# key that may not be expanded; waypoints put into the queue and taken from it; rows compared; rows
# tested against the bitmap; the largest size of the pool; where the query begins; its stamp.
SIZE, CURSOR, QUEUED, TAKEN, VISITED, CHECKED, BEAM, QUERY, STAMP = range(9)


class Graph(NamedTuple):
    """The arrays of a call that are read; see `walk`."""

    neighbors: Any
    offsets: Any
    layout: Any
    stored: Any
    queries: Any
    bitmap: Any


class Scratch(NamedTuple):
    """Scratch memory of one thread.

    Attributes:
        marks: (rows,) uint8. Below the query's stamp: not seen. The stamp: compared, or, for a row
            that does not match, queued. The stamp + 1: looked through.
        pool: int64 keys of the nearest rows, ascending.
        buffer: int32: at its beginning rows to compare, in its last `width` places rows to look
            through.
        distances: float32, those of the buffered rows.
        queue: int32, waypoints.
        state: int64, see `SIZE` and the following.
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
    """Compare the first `count` rows of the buffer and insert them into the pool."""
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
    """Return the row of level 0 to begin at, by greedy search of the upper levels as in FAISS."""
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
    stamp = uint8(scratch.state[STAMP])
    first = uint64(graph.offsets[uint64(row)])
    count = int64(0)
    for t in range(first, first + width):
        v = graph.neighbors[t]
        if v < 0:
            break
        if scratch.marks[uint64(v)] < stamp:
            scratch.marks[uint64(v)] = stamp
            scratch.buffer[uint64(count)] = v
            count += 1
    return count


@njit(nogil=True)
def _queue(scratch: Any, row: Any) -> None:
    """Queue a row that does not match as a waypoint, unless it was seen or the queue is full."""
    state = scratch.state
    if scratch.marks[uint64(row)] < uint8(state[STAMP]) and state[QUEUED] < scratch.queue.size:
        scratch.marks[uint64(row)] = uint8(state[STAMP])
        scratch.queue[uint64(state[QUEUED])] = row
        state[QUEUED] += 1


@njit(nogil=True)
def _split_neighbors(graph: Any, scratch: Any, row: Any, width: Any) -> Any:
    """Write new matching neighbours of `row` to the beginning of the buffer, others to its end.

    Returns the number of the matching ones, the number of the others that were not looked through
    yet, and whether to look through them.
    """
    stamp = uint8(scratch.state[STAMP])
    last_places = int64(scratch.buffer.size) - int64(width)
    first = uint64(graph.offsets[uint64(row)])
    count, outside, failing, degree = int64(0), int64(0), int64(0), int64(0)
    for t in range(first, first + width):
        v = graph.neighbors[t]
        if v < 0:
            break
        degree += 1
        if _matches(graph.bitmap, v):
            if scratch.marks[uint64(v)] < stamp:
                scratch.marks[uint64(v)] = stamp
                scratch.buffer[uint64(count)] = v
                count += 1
        else:
            failing += 1
            if scratch.marks[uint64(v)] <= stamp:
                scratch.buffer[uint64(last_places + outside)] = v
                outside += 1
    scratch.state[CHECKED] += degree
    return count, outside, failing > degree * LOOK_THROUGH_SHARE


@njit(nogil=True)
def _look_through(graph: Any, scratch: Any, count: Any, outside: Any, width: Any, fill: Any) -> Any:
    """Buffer new matching neighbours of the `outside` rows at the end of the buffer.

    Returns the number of rows to compare. `outside` rows are in the order of their distance from
    the expanded row, and the first ones are looked through. With `fill` the others, and neighbours
    that do not match, become waypoints: the pool is not full.
    """
    state, marks = scratch.state, scratch.marks
    stamp = uint8(state[STAMP])
    last_places = int64(scratch.buffer.size) - int64(width)
    for i in range(min(outside, int64(LOOK_AHEAD_ROWS))):
        _prefetch_links(graph, scratch.buffer[uint64(last_places + i)], width)
    for i in range(outside):
        w = scratch.buffer[uint64(last_places + i)]
        if count >= int64(width):
            if not fill:
                break
            _queue(scratch, w)
            continue
        if i + LOOK_AHEAD_ROWS < outside:
            ahead = scratch.buffer[uint64(last_places + i + LOOK_AHEAD_ROWS)]
            _prefetch_links(graph, ahead, width)
        marks[uint64(w)] = stamp + uint8(1)
        first = uint64(graph.offsets[uint64(w)])
        checked = int64(0)
        for t in range(first, first + width):
            v = graph.neighbors[t]
            if v < 0:
                break
            checked += 1
            if _matches(graph.bitmap, v):
                if marks[uint64(v)] < stamp:
                    marks[uint64(v)] = stamp
                    scratch.buffer[uint64(count)] = v
                    count += 1
            elif fill:
                _queue(scratch, v)
        state[CHECKED] += checked
    return count


@njit(nogil=True)
def _is_far(graph: Any, scratch: Any, row: Any, width: Any, matches: Any) -> Any:
    """Return whether the share of matching rows around `row` is much smaller than elsewhere.

    Tests the neighbours of its neighbours. `row` is where level 0 begins, which does not depend on
    the filter, so these rows are around the query.
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
    """Write matching rows from all over the bitmap to `seeds`; return their number."""
    count, row = int64(0), int64(0)
    for i in range(int64(seeds.size)):
        row = max(row, i * rows // int64(seeds.size))
        while row < rows and not _matches(bitmap, row):
            # Bytes that are zero are skipped.
            row = row + 8 if row & 7 == 0 and bitmap[uint64(row >> 3)] == 0 else row + 1
        if row >= rows:
            break
        seeds[uint64(count)] = row
        count += 1
        row += 1
    return count


@njit(nogil=True)
def _begin(scratch: Any, query: Any, ef: Any) -> None:
    """Reset `state` and choose a stamp above the marks of earlier queries."""
    state = scratch.state
    stamp = state[STAMP] + 2
    if stamp > STAMP_LAST:
        scratch.marks[:] = 0
        stamp = int64(2)
    state[:] = 0
    state[STAMP], state[BEAM], state[QUERY] = stamp, ef, query


@njit(nogil=True)
def _next_in_pool(scratch: Any) -> Any:
    """Mark the nearest row of the pool that is not expanded as expanded; return it, or -1."""
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


@njit(nogil=True)
def _place_of_rank(graph: Any, scratch: Any, rank: Any) -> Any:
    """Return the position in the pool of the matching row of `rank`; its size if there is none."""
    size = scratch.state[SIZE]
    if graph.bitmap.size == 0:
        return min(rank - 1, size)
    for i in range(size):
        rank -= _matches(graph.bitmap, row_in(scratch.pool[uint64(i)]))
        if rank == 0:
            return i
    return size


@njit(nogil=True)
def _drop_out_of_reach(graph: Any, scratch: Any, settings: Any, shift: Any) -> None:
    """Drop the rows of the pool that are out of reach, but for the first ones.

    These are `FLOOR`, or more where fewer of them match than are returned. The others would never
    be expanded: the distance of the row of rank `REACH_RANK` only falls. `shift` makes distances
    proportional to squared Euclidean ones.
    """
    pool, state = scratch.pool, scratch.state
    high = state[SIZE]
    if high <= settings[FLOOR]:
        return
    last = _place_of_rank(graph, scratch, max(settings[KEPT], settings[REACH_RANK]))
    low = max(settings[FLOOR], last + 1)
    if high <= low:
        return
    place = _place_of_rank(graph, scratch, settings[REACH_RANK])
    ratio = np.float32(settings[REACH]) / np.float32(REACH_ONE)
    near = distance_in(pool[uint64(place)]) + shift
    limit = max(near, np.float32(0)) * ratio * ratio - shift
    while low < high:
        middle = (low + high) >> int64(1)
        if distance_in(pool[uint64(middle)]) <= limit:
            low = middle + 1
        else:
            high = middle
    state[SIZE] = low


@njit(nogil=True, fastmath=REORDER_SUMS)
def _walk_unfiltered(
    graph: Any, scratch: Any, entry: Any, settings: Any, shift: Any, width: Any, l2: Any
) -> Any:
    scratch.marks[uint64(entry)] = uint8(scratch.state[STAMP])
    scratch.buffer[uint64(0)] = entry
    count = int64(1)
    scratch.state[VISITED] -= 1  # compared in the descent already
    row = entry
    while row >= 0:
        _compare_buffered(graph, scratch, count, l2)
        if settings[REACH]:
            _drop_out_of_reach(graph, scratch, settings, shift)
        row = _next_in_pool(scratch)
        if row >= 0:
            count = _new_neighbors(graph, scratch, row, width)
    return OK


@njit(nogil=True)
def _next_waypoint(scratch: Any, budget: Any) -> Any:
    """Return the next waypoint not looked through yet; -1 if none is left, -2 over the budget."""
    state = scratch.state
    while state[TAKEN] < state[QUEUED]:
        if state[TAKEN] >= budget:
            return int64(-2)
        row = int64(scratch.queue[uint64(state[TAKEN])])
        state[TAKEN] += 1
        if scratch.marks[uint64(row)] == uint8(state[STAMP]):
            scratch.marks[uint64(row)] = uint8(state[STAMP] + 1)
            return row
    return int64(-1)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _start_filtered(graph: Any, scratch: Any, entry: Any, seeds: Any, l2: Any) -> None:
    """Compare the seeds, and the entry if it matches, and insert them into the pool."""
    stamp = uint8(scratch.state[STAMP])
    count = int64(0)
    for i in range(uint64(seeds.size)):
        v = seeds[i]
        if scratch.marks[uint64(v)] < stamp:
            scratch.marks[uint64(v)] = stamp
            scratch.buffer[uint64(count)] = v
            count += 1
    if _matches(graph.bitmap, entry) and scratch.marks[uint64(entry)] < stamp:
        scratch.marks[uint64(entry)] = stamp
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
    # The entry is expanded even if it does not match: its links lead towards the query.
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
        fill = state[SIZE] < goal
        if waypoint:
            for i in range(outside):
                _queue(scratch, scratch.buffer[uint64(scratch.buffer.size - width + i)])
        elif look:
            count = _look_through(graph, scratch, count, outside, width, fill)
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
    shifts: Any,
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

    Reads the graph (`annheal.index.graph.HnswGraph`); `stored`, flat vectors; `queries`, flat
    float32; `bitmap`, uint8, empty where all rows match; `given_seeds`, int32, empty to sample
    some; `shifts`, (n,) float32, read with a reach: a distance plus the shift of its query is
    proportional to the squared Euclidean one; `settings`, see `walk_layout`. `marks` to `state` are
    the fields of `Scratch`. Writes, for n queries: scores (n, kept) float32 and rows (n, kept)
    int64, best first, with kept at least k and the columns after the last hit not written; counts
    (n, 3) int64: rows compared, rows tested, beam width used; status (n,) uint8.
    """
    graph = Graph(neighbors, offsets, layout, stored, queries, bitmap)
    scratch = Scratch(marks, pool, buffer, distances, queue, state)
    width = uint64(layout[WIDTHS + 1])
    l2 = settings[L2] != 0
    filtered = bitmap.size > 0 and settings[REACH] == 0
    seeds = given_seeds
    if filtered and seeds.size == 0:
        # Sampled once for all queries of the call, into the last places of the queue.
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
            shift = shifts[uint64(q)] if settings[REACH] else np.float32(0)
            status[q] = _walk_unfiltered(graph, scratch, entry, settings, shift, width, l2)
        returned = int64(0)
        for i in range(state[SIZE]):
            if returned == int64(scores.shape[1]):
                break
            key = pool[uint64(i)]
            if bitmap.size == 0 or _matches(bitmap, row_in(key)):
                scores[q, returned] = -distance_in(key)
                rows[q, returned] = row_in(key)
                returned += 1
        counts[q, 0] = state[VISITED]
        counts[q, 1] = state[CHECKED]
        counts[q, 2] = state[SIZE] if settings[REACH] else state[BEAM]
