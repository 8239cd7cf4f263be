"""Compiled: carries the links of a graph over without its dead rows, and replaces lost links.

Imported only where kernels are compiled: importing numba takes most of a second.

A live row with links to dead rows gets links to the live rows behind them, that is rows that are
reached from it through dead rows only (as in the repairs of Qdrant and Weaviate). They are chosen
by HNSW's link rule (Malkov & Yashunin, algorithm 4): nearest first, and none that is nearer to a
linked row than to the row itself. Links to live rows stay. A row with fewer links than a minimum
also gets the nearest candidates that the rule refused, and neighbours of its neighbours are
candidates too: without a minimum, repeated repairs make a graph sparser until its recall falls
(Lucene #16552).

All row numbers, vectors and arrays are as in `annheal.index.carry.merge`; a `level` is counted from
0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import int32, int64, njit, uint32, uint64

from annheal.index.carry.merge_layout import (
    DEAD_ROWS_PASSED_MAX,
    DIMENSION,
    L2,
    LINKS_MIN_DIVISOR,
    REPAIR,
    STAMP,
    START,
    STOP,
)
from annheal.index.distances import (
    REORDER_SUMS,
    distance_in,
    distances_of,
    insert,
    key_of,
    one_distance,
    row_in,
)

LINKED = 1
"""The lowest bit of a key in the pool: the row is linked."""


class OldGraph(NamedTuple):
    """FAISS's arrays of the base.

    `widths`: where the links of each level begin within those of a row; `new_of_old`: the new
    number of each row, -1 for a dead one.
    """

    neighbors: Any
    offsets: Any
    widths: Any
    new_of_old: Any


class NewRows(NamedTuple):
    """The kept rows in their new order.

    `kept`: their old numbers; `levels`: their numbers of levels; `vectors`: float32, flat.
    """

    kept: Any
    levels: Any
    vectors: Any


class RepairMemory(NamedTuple):
    """Working memory of one thread for the repair of one row after the other.

    `marks`: for each old row the stamp (number of the repair) that last met it. `stack`: dead rows
    (old numbers) whose neighbours are collected. `found`: live rows (new numbers), the linked ones
    first; `distances`: theirs. `pool`: keys (distance, row, linked bit), nearest first. `accepted`:
    rows that the link rule has accepted.
    """

    marks: Any
    stack: Any
    found: Any
    distances: Any
    pool: Any
    accepted: Any


@njit(nogil=True)
def _first_link(old: Any, row: Any, level: Any) -> Any:
    return uint64(old.offsets[uint64(row)]) + uint64(old.widths[level])


@njit(nogil=True)
def _collect_neighbours(
    old: Any, memory: Any, state: Any, row: Any, level: Any, stack_dead: Any
) -> None:
    """Append the neighbours of old row `row` that this repair has not met: live ones to `found`.

    Dead ones go on the stack if `stack_dead`. `state`: [stamp, rows in `found`, rows on the stack].
    """
    first = _first_link(old, row, level)
    last = _first_link(old, row, level + 1)
    stamp = uint32(state[0])
    for t in range(first, last):
        v = old.neighbors[t]
        if v < 0:
            break
        if memory.marks[uint64(v)] == stamp:
            continue
        memory.marks[uint64(v)] = stamp
        new = old.new_of_old[uint64(v)]
        if new >= 0:
            if state[1] < memory.found.size:
                memory.found[uint64(state[1])] = new
                state[1] += 1
        elif stack_dead and state[2] < memory.stack.size:
            memory.stack[uint64(state[2])] = v
            state[2] += 1


@njit(nogil=True)
def _collect_candidates(
    old: Any, rows: Any, memory: Any, state: Any, level: Any, linked: Any, links_min: Any
) -> None:
    """Append the live rows behind the dead rows of the stack to `found`, after the `linked` ones.

    If `found` then has fewer than `links_min` rows, the neighbours of the linked ones too.
    """
    passed = int64(0)
    while passed < state[2] and passed < DEAD_ROWS_PASSED_MAX:
        _collect_neighbours(old, memory, state, memory.stack[uint64(passed)], level, True)
        passed += 1
    if state[1] >= links_min:
        return
    for i in range(linked):
        neighbour = rows.kept[uint64(memory.found[uint64(i)])]
        _collect_neighbours(old, memory, state, neighbour, level, False)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _rank(
    rows: Any, memory: Any, row: Any, linked: Any, count: Any, dimension: Any, l2: Any
) -> Any:
    """Sort the `count` rows of `found` into the pool by distance to `row`; return its size.

    The first `linked` of them get the linked bit.
    """
    query = uint64(row) * dimension
    distances_of(
        rows.vectors, memory.found, count, rows.vectors, query, dimension, l2, memory.distances
    )
    size = int64(0)
    for i in range(count):
        key = key_of(memory.distances[uint64(i)], memory.found[uint64(i)])
        if i < linked:
            key |= int64(LINKED)
        insert(memory.pool, size, int64(memory.pool.size), key)
        size = min(size + 1, int64(memory.pool.size))
    return size


@njit(nogil=True, fastmath=REORDER_SUMS)
def _passes_link_rule(
    rows: Any, candidate: Any, distance: Any, accepted: Any, count: Any, dimension: Any, l2: Any
) -> Any:
    """Return whether no accepted row is nearer to `candidate` than `distance`.

    `distance` is that of the candidate to the repaired row.
    """
    query = uint64(candidate) * dimension
    for i in range(count):
        start = uint64(accepted[uint64(i)]) * dimension
        if one_distance(rows.vectors, start, rows.vectors, query, dimension, l2) < distance:
            return False
    return True


@njit(nogil=True, fastmath=REORDER_SUMS)
def _choose_links(
    rows: Any, memory: Any, size: Any, new_max: Any, new_min: Any, dimension: Any, l2: Any
) -> Any:
    """Set the linked bit of up to `new_max` more rows of the pool.

    They are taken nearest first, if the link rule accepts them. If these are fewer than `new_min`,
    the nearest refused ones are taken as well. Returns the number of rows that were linked before
    or that the rule accepts.
    """
    count, added = int64(0), int64(0)
    for i in range(size):
        key = memory.pool[uint64(i)]
        row = row_in(key)
        if not key & LINKED:
            if added >= new_max:
                continue
            distance = distance_in(key)
            if not _passes_link_rule(rows, row, distance, memory.accepted, count, dimension, l2):
                continue
            memory.pool[uint64(i)] = key | int64(LINKED)
            added += 1
        memory.accepted[uint64(count)] = row
        count += 1
    missing = new_min - added
    for i in range(size):
        if missing <= 0:
            break
        if not memory.pool[uint64(i)] & LINKED:
            memory.pool[uint64(i)] |= int64(LINKED)
            missing -= 1
    return count


@njit(nogil=True, fastmath=REORDER_SUMS)
def carry_links(
    neighbors: Any,
    offsets: Any,
    widths: Any,
    new_of_old: Any,
    kept: Any,
    levels: Any,
    vectors: Any,
    settings: Any,
    marks: Any,
    stack: Any,
    found: Any,
    distances: Any,
    pool: Any,
    accepted: Any,
    new_offsets: Any,
    new_neighbors: Any,
    counts: Any,
) -> None:
    """Write the links of rows `settings[START]` to `settings[STOP]` (exclusive) of the new graph.

    `new_neighbors` holds -1 everywhere before. Adds to `counts` (3,) int64 the links that are kept,
    lost and made. `settings`: see `merge_layout`; from `STAMP` on it is the state of the repairs.
    The other arrays: see `OldGraph`, `NewRows` and `RepairMemory`; `new_offsets` and
    `new_neighbors` are the offsets and neighbors of the new graph.
    """
    old = OldGraph(neighbors, offsets, widths, new_of_old)
    rows = NewRows(kept, levels, vectors)
    memory = RepairMemory(marks, stack, found, distances, pool, accepted)
    dimension, l2 = uint64(settings[DIMENSION]), settings[L2] != 0
    state = settings[STAMP:]
    for row in range(settings[START], settings[STOP]):
        old_row = kept[uint64(row)]
        for level in range(int64(levels[uint64(row)])):
            state[0] += 1
            state[1], state[2] = 0, 0
            marks[uint64(old_row)] = uint32(state[0])
            _collect_neighbours(old, memory, state, old_row, level, True)
            linked, lost = state[1], state[2]
            first = uint64(new_offsets[uint64(row)]) + uint64(widths[level])
            width = int64(widths[level + 1]) - int64(widths[level])
            counts[0] += linked
            counts[1] += lost
            if settings[REPAIR] == 0 or lost == 0:
                for i in range(uint64(linked)):
                    new_neighbors[first + i] = int32(found[i])
                continue
            links_min = width // LINKS_MIN_DIVISOR
            _collect_candidates(old, rows, memory, state, level, linked, links_min)
            size = _rank(rows, memory, row, linked, state[1], dimension, l2)
            new_min = min(lost, links_min - linked)
            _choose_links(rows, memory, size, lost, new_min, dimension, l2)
            place = first
            for i in range(uint64(size)):
                if pool[i] & LINKED and place < first + uint64(width):
                    new_neighbors[place] = int32(row_in(pool[i]))
                    place += uint64(1)
            counts[2] += int64(place - first) - linked


@njit(nogil=True)
def mark_reached(
    neighbors: Any, offsets: Any, width: Any, entry: Any, parent: Any, parents: Any, stack: Any
) -> None:
    """Search level 0 from `entry`; write the row from which each row is first reached to `parents`.

    `parents` (n,) int32 holds -1 for rows not reached yet; rows with a parent are not searched
    again. `parent` is that of `entry`. `stack` (n,) int32 is working memory.
    """
    parents[uint64(entry)] = parent
    stack[uint64(0)] = entry
    height = int64(1)
    while height > 0:
        height -= 1
        row = stack[uint64(height)]
        first = uint64(offsets[uint64(row)])
        for t in range(first, first + uint64(width)):
            v = neighbors[t]
            if v < 0:
                break
            if parents[uint64(v)] < 0:
                parents[uint64(v)] = row
                stack[uint64(height)] = v
                height += 1
