"""The compiled part of carrying a graph over: links without dead rows, and what takes their place.

Imported by `annheal.index.carry.merge_compiled` alone: importing numba takes a good part of a
second.

A live row whose links led to dead rows is linked to the live rows behind them: the rows that are
reached through dead rows only (as in Qdrant's and Weaviate's healing), chosen with the rule by
which HNSW chooses links (Malkov & Yashunin, algorithm 4): nearest first, none that is nearer to a
row already linked than to the row itself. Links to live rows stay. A row with fewer links than a
floor also gets the nearest that the rule refused, and neighbours of its neighbours: without a floor
repeated repairs thin a graph out until its recall falls (Lucene #16552).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba import int32, int64, njit, uint32, uint64

from annheal.index.carry.merge_layout import (
    BRIDGES_MAX,
    DIMENSION,
    EPOCH,
    FLOOR_DIVISOR,
    L2,
    REPAIR,
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

KEPT = 1
"""The lowest bit of a key: the row is linked already."""


class OldGraph(NamedTuple):
    """FAISS's arrays of the base; `widths` are where the links of each level begin."""

    neighbors: Any
    offsets: Any
    widths: Any
    new_of_old: Any


class NewRows(NamedTuple):
    """The rows that are carried over, in their new order; `vectors` is flat."""

    kept: Any
    levels: Any
    vectors: Any


class Scratch(NamedTuple):
    """Memory of one thread: `marks` has an epoch for each old row, `stack` rows to look through."""

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
def _meet(old: Any, scratch: Any, state: Any, row: Any, level: Any, dead: Any) -> None:
    """Collect the live neighbours of `row` that were not met; put the others on the stack.

    `state`: [epoch, candidates, rows on the stack]. Without `dead` only live ones are noted.
    """
    first = _first_link(old, row, level)
    last = _first_link(old, row, level + 1)
    epoch = uint32(state[0])
    for t in range(first, last):
        v = old.neighbors[t]
        if v < 0:
            break
        if scratch.marks[uint64(v)] == epoch:
            continue
        scratch.marks[uint64(v)] = epoch
        new = old.new_of_old[uint64(v)]
        if new >= 0:
            if state[1] < scratch.found.size:
                scratch.found[uint64(state[1])] = new
                state[1] += 1
        elif dead and state[2] < scratch.stack.size:
            scratch.stack[uint64(state[2])] = v
            state[2] += 1


@njit(nogil=True)
def _candidates(
    old: Any, rows: Any, scratch: Any, state: Any, row: Any, level: Any, linked: Any, floor: Any
) -> None:
    """Collect the live rows behind the dead neighbours of `row`, after the `linked` ones.

    With fewer than `floor` of them, the neighbours of the linked ones too.
    """
    looked_through = int64(0)
    while looked_through < state[2] and looked_through < BRIDGES_MAX:
        _meet(old, scratch, state, scratch.stack[uint64(looked_through)], level, True)
        looked_through += 1
    if state[1] >= floor:
        return
    for i in range(linked):
        _meet(old, scratch, state, rows.kept[uint64(scratch.found[uint64(i)])], level, False)


@njit(nogil=True, fastmath=REORDER_SUMS)
def _ranked(
    rows: Any, scratch: Any, row: Any, linked: Any, count: Any, dimension: Any, l2: Any
) -> Any:
    """Sort the found rows into the pool by distance to `row`; return how many there are."""
    query = uint64(row) * dimension
    distances_of(
        rows.vectors, scratch.found, count, rows.vectors, query, dimension, l2, scratch.distances
    )
    size = int64(0)
    for i in range(count):
        key = key_of(scratch.distances[uint64(i)], scratch.found[uint64(i)])
        if i < linked:
            key |= int64(KEPT)
        insert(scratch.pool, size, int64(scratch.pool.size), key)
        size = min(size + 1, int64(scratch.pool.size))
    return size


@njit(nogil=True, fastmath=REORDER_SUMS)
def _is_apart(
    rows: Any, candidate: Any, distance: Any, accepted: Any, count: Any, dimension: Any, l2: Any
) -> Any:
    """Return whether no accepted row is nearer to the candidate than the row to be linked is."""
    query = uint64(candidate) * dimension
    for i in range(count):
        start = uint64(accepted[uint64(i)]) * dimension
        if one_distance(rows.vectors, start, rows.vectors, query, dimension, l2) < distance:
            return False
    return True


@njit(nogil=True, fastmath=REORDER_SUMS)
def _choose(
    rows: Any, scratch: Any, size: Any, free: Any, short: Any, dimension: Any, l2: Any
) -> Any:
    """Mark linked rows and at most `free` others of the pool, nearest first; return the number.

    `short`: how many of the others are taken although the rule refuses them.
    """
    count, added = int64(0), int64(0)
    for i in range(size):
        key = scratch.pool[uint64(i)]
        row = row_in(key)
        if not key & KEPT:
            if added >= free:
                continue
            distance = distance_in(key)
            if not _is_apart(rows, row, distance, scratch.accepted, count, dimension, l2):
                continue
            scratch.pool[uint64(i)] = key | int64(KEPT)
            added += 1
        scratch.accepted[uint64(count)] = row
        count += 1
    missing = short - added
    for i in range(size):
        if missing <= 0:
            break
        if not scratch.pool[uint64(i)] & KEPT:
            scratch.pool[uint64(i)] |= int64(KEPT)
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
    """Write the links of the new rows `settings[START]` to `settings[STOP]` (exclusive).

    `new_neighbors` holds -1 everywhere; `counts` (3,) int64 gets the links carried over, lost
    and made. `settings`: see `merge_layout`; settings[EPOCH] counts on from call to call.
    """
    old = OldGraph(neighbors, offsets, widths, new_of_old)
    rows = NewRows(kept, levels, vectors)
    scratch = Scratch(marks, stack, found, distances, pool, accepted)
    dimension, l2 = uint64(settings[DIMENSION]), settings[L2] != 0
    state = settings[EPOCH:]
    for row in range(settings[START], settings[STOP]):
        old_row = kept[uint64(row)]
        for level in range(int64(levels[uint64(row)])):
            state[0] += 1
            state[1], state[2] = 0, 0
            marks[uint64(old_row)] = uint32(state[0])
            _meet(old, scratch, state, old_row, level, True)
            linked, lost = state[1], state[2]
            first = uint64(new_offsets[uint64(row)]) + uint64(widths[level])
            width = int64(widths[level + 1]) - int64(widths[level])
            counts[0] += linked
            counts[1] += lost
            if settings[REPAIR] == 0 or lost == 0:
                for i in range(uint64(linked)):
                    new_neighbors[first + i] = int32(found[i])
                continue
            floor = width // FLOOR_DIVISOR
            _candidates(old, rows, scratch, state, old_row, level, linked, floor)
            size = _ranked(rows, scratch, row, linked, state[1], dimension, l2)
            _choose(rows, scratch, size, lost, min(lost, floor - linked), dimension, l2)
            place = first
            for i in range(uint64(size)):
                if pool[i] & KEPT and place < first + uint64(width):
                    new_neighbors[place] = int32(row_in(pool[i]))
                    place += uint64(1)
            counts[2] += int64(place - first) - linked


@njit(nogil=True)
def mark_reached(
    neighbors: Any, offsets: Any, width: Any, entry: Any, parent: Any, parents: Any, stack: Any
) -> None:
    """Write into `parents` (int32) of every row that level 0 leads to from `entry` who led to it.

    Rows with a parent (not -1) are not looked through; that of `entry` is given. `stack` int32 has
    a place for each row.
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
