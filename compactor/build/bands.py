"""Recall of walks under filters, measured at the build for shares of matching rows (bands)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.recalls import recalls_of
from annheal.compactor.build.slices import queries_compared, queries_walked, slices
from annheal.index import LiveBitmap, VectorIndex
from annheal.model.records import Float32Matrix
from annheal.runtime.clock import monotonic_s
from annheal.runtime.stop import YieldPoint, no_yield_point
from annheal.segment import RecallPoint

BANDS = ("0.5", "0.2", "0.1", "0.05", "0.02", "0.01")
"""Shares of matching rows. With smaller shares a search compares all matching rows."""
BAND_ROWS_MIN = 10_000
"""With fewer matching rows a scan of 8-bit codes is cheaper than a walk: 0.14 ms at 384 floats."""
FAR_ROWS_MIN = 100_000
"""The same for far filters, whose walks are wide: 20,000 rows take 0.3 ms by codes, 1.9 walked."""
SELECTOR_BANDS = ("0.5", "0.2")
"""Bands in which post-filtering can be cheaper: FAISS's walk, with a beam wider by 1 / share."""
BAND_EFS = (32, 48, 64, 80, 96, 128, 192, 256)
FAR_EFS = (64, 128, 256, 384)
BAND_FILTERS, BAND_QUERIES = 4, 200
"""Random filters of a band, and the queries of all of them together."""
FAR_FILTERS, FAR_QUERIES = 8, 10
"""Far filters of a band, and the queries of each, which are near one another."""
CHECKS_PER_COMPARISON = 32
"""Bit tests that cost as much as one comparison; the walk limits its own work by the same rule."""
CURVE_END_RECALL = 0.98
"""A curve ends at the first point whose recall, less two standard errors, reaches this."""
BANDS_TIME_SHARE = 0.1
"""Share of the build time that measuring the bands may take."""
BANDS_TIME_MIN_S = 4.0
VISITED_QUERIES = 32
"""Queries that count the rows which an unfiltered walk compares."""
_CHUNK_ROWS = 10_000

Scores = npt.NDArray[np.float32]
_FilteredQueries = list[tuple[Float32Matrix, LiveBitmap]]
"""Queries (n, d), and the rows that match their filter."""


@dataclass(frozen=True, slots=True)
class _GroundTruth:
    """Queries (n, d), the rows that match their filter, and their exact best scores (n, k)."""

    queries: Float32Matrix
    matching: LiveBitmap
    scores: Scores


@dataclass(frozen=True, slots=True)
class _Measurement:
    """What all points are measured with: the clock stops it at `deadline_s`, a yield point too."""

    index: VectorIndex
    k: int
    deadline_s: float
    yield_point: YieldPoint

    def is_late(self) -> bool:
        """Return whether the deadline has passed."""
        return monotonic_s() > self.deadline_s

    def slices(self, truth: _GroundTruth, *, ef: int) -> Iterator[tuple[Float32Matrix, Scores]]:
        """Yield the queries of one slice of walks, and their exact best scores."""
        for part in slices(len(truth.queries), queries_walked(ef), self.yield_point):
            yield truth.queries[part], truth.scores[part]


def bands_time_s(build_s: float) -> float:
    """Return the seconds that measuring the bands may take after a build of `build_s` seconds."""
    return max(BANDS_TIME_MIN_S, BANDS_TIME_SHARE * build_s)


def has_bands(rows: int) -> bool:
    """Return whether an index with `rows` rows is large enough for a band."""
    return rows * float(BANDS[0]) >= BAND_ROWS_MIN


def measure_bands(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    k: int,
    limit_s: float,
    yield_point: YieldPoint = no_yield_point,
) -> tuple[RecallPoint, ...]:
    """Return recall@`k` under random filters and under far filters.

    A far filter matches the rows that are farthest from its queries, the hardest case for a walk.
    `queries` (n, d) must not be rows of the index. Measuring stops after `limit_s` seconds. A band
    without a point has too few matching rows or was not reached in time: a search compares all its
    matching rows. Without loaded kernels no band has a point.
    """
    if not has_bands(index.rows) or not index.walk_ready:
        return ()
    measurement = _Measurement(index, k, monotonic_s() + limit_s, yield_point)
    rng = np.random.default_rng(index.rows)
    points: list[RecallPoint] = []
    for band in BANDS:
        matches = int(float(band) * index.rows)
        if matches < BAND_ROWS_MIN:
            break
        if measurement.is_late():
            break
        filters = _random_filters(index.rows, matches, queries, rng)
        random = _ground_truths(measurement, filters)
        points.extend(_curve(measurement, random, band=band))
        if band in SELECTOR_BANDS:
            points.extend(_post_filter_curve(measurement, random, band=band))
    if measurement.is_late() or index.rows * float(BANDS[0]) < FAR_ROWS_MIN:
        return tuple(points)
    order = _rows_far_to_near(index, queries[:FAR_FILTERS], yield_point)
    for band in sorted({point.band for point in points}, key=float, reverse=True):
        if measurement.is_late():
            break
        matches = int(float(band) * index.rows)
        if matches < FAR_ROWS_MIN:
            break
        far = _ground_truths(measurement, _far_filters(order, matches, queries))
        points.extend(_curve(measurement, far, band=band, far=True))
    return tuple(points)


def mean_visited(
    index: VectorIndex,
    queries: Float32Matrix,
    *,
    ef: int,
    k: int,
    yield_point: YieldPoint = no_yield_point,
) -> float:
    """Return the mean number of rows that an unfiltered walk compares; 0 for a small index.

    Measured with the first `VISITED_QUERIES` of `queries`. Small: too few rows for any band. Also
    0 without loaded kernels.
    """
    if not has_bands(index.rows) or not index.walk_ready:
        return 0.0
    yield_point()
    few = np.ascontiguousarray(queries[:VISITED_QUERIES])
    walked = index.walk_filtered(few, k=k, ef=ef, matching=None)
    return round(float(walked.visited.mean()), 1)


def _random_filters(
    rows: int, matches: int, queries: Float32Matrix, rng: np.random.Generator
) -> _FilteredQueries:
    """Return `BAND_FILTERS` filters of `matches` random rows with a part of the queries each."""
    parts = np.array_split(queries[:BAND_QUERIES], BAND_FILTERS)
    return [
        (
            np.ascontiguousarray(part),
            LiveBitmap.from_rows(rng.choice(rows, matches, replace=False), rows=rows),
        )
        for part in parts
    ]


def _rows_far_to_near(
    index: VectorIndex, anchors: Float32Matrix, yield_point: YieldPoint = no_yield_point
) -> npt.NDArray[np.int64]:
    """Return the row numbers of `index`, farthest from each anchor first: (anchors, rows) int64."""
    nearness = np.empty((len(anchors), index.rows), dtype=np.float32)
    for part in slices(index.rows, _CHUNK_ROWS, yield_point):
        rows = np.arange(part.start, part.stop)
        nearness[:, rows] = _nearness(anchors, index.reconstruct(rows))
    order = np.empty(nearness.shape, dtype=np.int64)
    for part in slices(len(anchors), 1, yield_point):
        order[part] = np.argsort(nearness[part], axis=1)
    return order


def _far_filters(
    order: npt.NDArray[np.int64], matches: int, queries: Float32Matrix
) -> _FilteredQueries:
    """Return a filter for each anchor: the `FAR_QUERIES` nearest queries, the farthest rows.

    Anchor i is query i; `order` as from `_rows_far_to_near`.
    """
    filters: _FilteredQueries = []
    for anchor, rows in enumerate(order):
        close = _nearness(queries[anchor : anchor + 1], queries)[0]
        group = np.ascontiguousarray(queries[np.argsort(-close)[:FAR_QUERIES]])
        filters.append((group, LiveBitmap.from_rows(rows[:matches], rows=len(rows))))
    return filters


def _nearness(left: Float32Matrix, right: Float32Matrix) -> npt.NDArray[np.float32]:
    """Return (l, r) values that are larger for nearer pairs of a row of `left` and one of `right`.

    2 l r - r^2 orders the rows of `right` by l2 distance to a row of `left`.
    """
    products: npt.NDArray[np.float32] = 2 * left @ right.T - (right * right).sum(axis=1)
    return products


def _ground_truths(measurement: _Measurement, filtered: _FilteredQueries) -> list[_GroundTruth]:
    index, k = measurement.index, measurement.k
    truths = []
    for queries, matching in filtered:
        size = queries_compared(matching.count)
        scores = [
            index.search_matching(queries[part], matching=matching, k=k)[0]
            for part in slices(len(queries), size, measurement.yield_point)
        ]
        truths.append(_GroundTruth(queries, matching, np.concatenate(scores)))
    return truths


def _curve(
    measurement: _Measurement, truths: list[_GroundTruth], *, band: str, far: bool = False
) -> Iterator[RecallPoint]:
    """Yield points of the filtered walk, by growing ef.

    Ends at `CURVE_END_RECALL`, at the deadline, or where the walk costs more than a comparison of
    all matching rows.
    """
    index, k = measurement.index, measurement.k
    for ef in FAR_EFS if far else BAND_EFS:
        if ef < k:
            continue
        if measurement.is_late():
            return
        recalls, visited, checked = [], [], []
        for truth in truths:
            for queries, scores in measurement.slices(truth, ef=ef):
                walked = index.walk_filtered(queries, k=k, ef=ef, matching=truth.matching)
                recalls.append(recalls_of(walked.scores, scores))
                visited.append(walked.visited)
                checked.append(walked.checked)
        point = _point(recalls, k=k, ef=ef, band=band)
        rows_visited = float(np.concatenate(visited).mean())
        rows_checked = float(np.concatenate(checked).mean())
        yield RecallPoint(
            point.k,
            point.ef,
            point.recall,
            point.error,
            band=band,
            far=far,
            visited=round(rows_visited, 1),
            checked=round(rows_checked, 1),
        )
        work = rows_visited + rows_checked / CHECKS_PER_COMPARISON
        if point.recall - 2 * point.error >= CURVE_END_RECALL or work > truths[0].matching.count:
            return


def _post_filter_curve(
    measurement: _Measurement, truths: list[_GroundTruth], *, band: str
) -> Iterator[RecallPoint]:
    """Yield points of post-filtering: the hits of a walk without the filter are filtered."""
    index, k = measurement.index, measurement.k
    for ef in BAND_EFS:
        if ef * float(band) < k:
            continue
        if measurement.is_late():
            return
        recalls = []
        for truth in truths:
            for queries, exact in measurement.slices(truth, ef=ef):
                scores, rows = index.search(queries, k=ef, ef=ef)
                inside = (rows >= 0) & truth.matching.contains(np.maximum(rows, 0))
                found = -np.sort(-np.where(inside, scores, np.float32(-np.inf)), axis=1)[:, :k]
                recalls.append(recalls_of(found, exact))
        point = _point(recalls, k=k, ef=ef, band=band, selector=True)
        yield point
        if point.recall - 2 * point.error >= CURVE_END_RECALL:
            return


def _point(
    recalls: list[npt.NDArray[np.float64]], *, k: int, ef: int, band: str, selector: bool = False
) -> RecallPoint:
    every = np.concatenate(recalls)
    error = float(every.std() / np.sqrt(len(every)))
    mean = round(float(every.mean()), 4)
    return RecallPoint(k, ef, mean, round(error, 5), band=band, selector=selector)
