"""The order of the output's rows: those of the graph, held-out rows, and copies of both last."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from annheal.compactor.build.slices import slices
from annheal.compactor.fetch import Source
from annheal.model.records import Float32Matrix
from annheal.runtime.stop import YieldPoint, no_yield_point

Int64s = npt.NDArray[np.int64]
Uint64s = npt.NDArray[np.uint64]

_CHUNK_ROWS = 10_000
"""Rows hashed or compared at a time: 15 MB of 384 floats."""


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Where each live row of the sources goes.

    Attributes:
        positions: (n,) int64, the position among all live rows, source after source, of each row
            of the output.
        graph_size: rows of the output with a vector that no row before has; they come first.
        originals: (n - graph_size,) int64, ascending: the row of the output that each of the
            others equals. Those of one row are in the order of their ids.
    """

    positions: Int64s
    graph_size: int
    originals: Int64s


def vector_labels(
    sources: Sequence[Source],
    kept: Sequence[Int64s],
    *,
    yield_point: YieldPoint = no_yield_point,
) -> list[Int64s]:
    """Return a number for each of the rows `kept` of each source; equal vectors have the same.

    A label is the position of the first row with that vector. Reads every vector once, and those
    that share a hash twice more.
    """
    starts = np.cumsum([0, *map(len, kept)])
    hashes = np.concatenate(
        [
            vector_hashes(source.segment.vectors, rows, yield_point=yield_point)
            for source, rows in zip(sources, kept, strict=True)
        ]
    )
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    begins = np.concatenate([[True], ~same])
    first = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    labels = np.empty(len(hashes), dtype=np.int64)
    labels[order] = first

    def vectors_at(positions: Int64s) -> Float32Matrix:
        found = np.empty((len(positions), sources[0].segment.vectors.shape[1]), dtype=np.float32)
        numbers = np.searchsorted(starts, positions, side="right") - 1
        for number in np.unique(numbers).tolist():
            where = numbers == number
            rows = kept[number][positions[where] - starts[number]]
            found[where] = sources[number].segment.vectors[rows]
        return found

    _separate_unequal(labels, vectors_at, yield_point)
    return [labels[start:stop] for start, stop in itertools.pairwise(starts)]


def vector_hashes(
    vectors: Float32Matrix, rows: Int64s, *, yield_point: YieldPoint = no_yield_point
) -> Uint64s:
    """Return a 64-bit hash of each of the `rows` of `vectors`; equal vectors have the same."""
    dimension = vectors.shape[1]
    factors = np.random.default_rng(dimension).integers(
        0, 2**64, dimension, dtype=np.uint64, endpoint=False
    ) | np.uint64(1)
    hashes = np.empty(len(rows), dtype=np.uint64)
    for part in slices(len(rows), _CHUNK_ROWS, yield_point):
        some = np.ascontiguousarray(vectors[rows[part]])
        some = some + np.float32(0)  # -0 equals 0
        bits = some.view(np.uint32).astype(np.uint64)
        bits *= factors
        bits ^= bits >> np.uint64(29)
        hashes[part] = bits.sum(axis=1, dtype=np.uint64)
    return hashes


def order_rows(
    sources: Sequence[Source],
    kept: Sequence[Int64s],
    labels: Sequence[Int64s],
    *,
    hold_out: Callable[[int], Int64s],
) -> RowOrder:
    """Return the order of the rows `kept` of each source, of which `labels` says the vectors.

    Of the rows with equal vectors the first one goes into the graph. `hold_out` says which of so
    many such rows are held out.
    """
    together = np.concatenate(labels)
    _, first, group = np.unique(together, return_index=True, return_inverse=True)
    original = first[group]
    distinct = np.sort(first)
    held_out = distinct[hold_out(len(distinct))]
    in_order = np.concatenate([np.setdiff1d(distinct, held_out), held_out])
    place = np.full(len(together), -1, dtype=np.int64)
    place[in_order] = np.arange(len(in_order))
    copies = np.flatnonzero(original != np.arange(len(together)))
    originals = place[original[copies]]
    by_id = np.lexsort((_id_ranks(sources, kept, copies), originals))
    return RowOrder(np.concatenate([in_order, copies[by_id]]), len(in_order), originals[by_id])


def _separate_unequal(
    labels: Int64s, vectors_at: Callable[[Int64s], Float32Matrix], yield_point: YieldPoint
) -> None:
    """Give rows their own label where only the hash is that of the labelled row."""
    suspects = np.flatnonzero(labels != np.arange(len(labels)))
    for part in slices(len(suspects), _CHUNK_ROWS, yield_point):
        some = suspects[part]
        differ = (vectors_at(some) != vectors_at(labels[some])).any(axis=1)
        labels[some[differ]] = some[differ]


def _id_ranks(sources: Sequence[Source], kept: Sequence[Int64s], positions: Int64s) -> Int64s:
    """Return numbers that order the rows at some positions, ascending, as their ids do."""
    starts = np.cumsum([0, *map(len, kept)])
    parts = []
    for number, source in enumerate(sources):
        inside = positions[(positions >= starts[number]) & (positions < starts[number + 1])]
        rows = kept[number][inside - starts[number]]
        parts.append(source.segment.ids.take(pa.array(rows, type=pa.int64())))
    order = pc.sort_indices(pa.concat_arrays(parts)).to_numpy()
    ranks = np.empty(len(positions), dtype=np.int64)
    ranks[order] = np.arange(len(positions))
    return ranks
