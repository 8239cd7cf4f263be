"""Recall of filtered walks, measured at build for every share of matching rows that matters."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.compactor.build.recalls import recalls_of
from annheal.index import LiveBitmap, VectorIndex, warm_up
from annheal.model.records import Float32Matrix
from annheal.segment import RecallPoint

BANDS = ("0.5", "0.2", "0.1", "0.05", "0.02", "0.01")
"""Shares of matching rows. Fewer are compared exactly."""
BAND_ROWS_MIN = 10_000
"""With fewer matching rows comparing by codes is cheaper than every walk: 0.14 ms at 384 floats."""
FAR_ROWS_MIN = 100_000
"""The same for the wide walks of far queries; 20,000 rows take codes 0.3 ms and a walk 1.9 ms."""
SELECTOR_BANDS = ("0.5", "0.2")
"""Bands in which the plain walk can be cheaper: its beam grows by 1 / share."""
BAND_EFS = (32, 48, 64, 80, 96, 128, 192, 256)
FAR_EFS = (64, 128, 256, 384)
BAND_FILTERS, BAND_PROBES = 4, 200
"""Random filters of a band, and the probes that they share."""
FAR_FILTERS, FAR_PROBES = 8, 10
"""Filters of a far band, each with as many probes that are near one another."""
FAR_ABORT_CHECKS = 32
"""Bit tests that cost as much as one comparison, as in the walk's own limit of work."""
RECALL_ENOUGH = 0.98
"""A curve ends at the first point that is surely this good."""
CALIBRATION_SHARE = 0.1
CALIBRATION_MIN_S = 4.0
PLAIN_VISIT_PROBES = 32
_CHUNK_ROWS = 10_000

_Filtered = list[tuple[Float32Matrix, LiveBitmap]]
"""Queries, and the filter that they are asked with."""


@dataclass(frozen=True, slots=True)
class _Truth:
    """Queries under one filter with their exact best scores (n, k)."""

    queries: Float32Matrix
    matching: LiveBitmap
    scores: npt.NDArray[np.float32]


def budget_s(build_s: float) -> float:
    """Return how long the bands may be measured, after a build that took so long."""
    return max(CALIBRATION_MIN_S, CALIBRATION_SHARE * build_s)


def measure_bands(
    index: VectorIndex, queries: Float32Matrix, *, k: int, limit_s: float
) -> tuple[RecallPoint, ...]:
    """Return recall@`k` under random and far filters, as far as `limit_s` seconds allow.

    `queries` (n, d) must not be rows of the index. Bands without a point, for want of rows or of
    time, are answered exactly. Waits for the kernels when the index is large enough for a band.
    """
    if index.rows * float(BANDS[0]) < BAND_ROWS_MIN:
        return ()
    warm_up(storage=index.storage)
    deadline_s = time.monotonic() + limit_s
    rng = np.random.default_rng(index.rows)
    points: list[RecallPoint] = []
    for band in BANDS:
        matches = int(float(band) * index.rows)
        if matches < BAND_ROWS_MIN:
            break
        if time.monotonic() > deadline_s:
            break
        near = _with_truth(index, _random_filters(index.rows, matches, queries, rng), k=k)
        points.extend(_curve(index, near, band=band, k=k, deadline_s=deadline_s))
        if band in SELECTOR_BANDS:
            points.extend(_selector_curve(index, near, band=band, k=k, deadline_s=deadline_s))
    if time.monotonic() > deadline_s or index.rows * float(BANDS[0]) < FAR_ROWS_MIN:
        return tuple(points)
    order = _far_order(index, queries[:FAR_FILTERS])
    for band in sorted({point.band for point in points}, key=float, reverse=True):
        if time.monotonic() > deadline_s:
            break
        matches = int(float(band) * index.rows)
        if matches < FAR_ROWS_MIN:
            break
        far = _with_truth(index, _far_filters(order, matches, queries), k=k)
        points.extend(_curve(index, far, band=band, k=k, deadline_s=deadline_s, far=True))
    return tuple(points)


def plain_visits(index: VectorIndex, queries: Float32Matrix, *, ef: int, k: int) -> float:
    """Return the mean of the rows that a walk without a filter compares; 0 for a small index."""
    if index.rows * float(BANDS[0]) < BAND_ROWS_MIN:
        return 0.0
    few = np.ascontiguousarray(queries[:PLAIN_VISIT_PROBES])
    walked = index.walk_filtered(few, k=k, ef=ef, matching=None)
    return round(float(walked.visited.mean()), 1)


def _random_filters(
    rows: int, matches: int, queries: Float32Matrix, rng: np.random.Generator
) -> _Filtered:
    parts = np.array_split(queries[:BAND_PROBES], BAND_FILTERS)
    return [
        (
            np.ascontiguousarray(part),
            LiveBitmap.from_rows(rng.choice(rows, matches, replace=False), rows=rows),
        )
        for part in parts
    ]


def _far_order(index: VectorIndex, anchors: Float32Matrix) -> npt.NDArray[np.int64]:
    """Return the rows from the farthest to the nearest of each anchor, (anchors, rows)."""
    nearness = np.empty((len(anchors), index.rows), dtype=np.float32)
    for start in range(0, index.rows, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, index.rows))
        nearness[:, rows] = _nearness(anchors, index.reconstruct(rows))
    order: npt.NDArray[np.int64] = np.argsort(nearness, axis=1)
    return order


def _far_filters(order: npt.NDArray[np.int64], matches: int, queries: Float32Matrix) -> _Filtered:
    """Return for each of the first probes those near it, with the rows farthest from it."""
    filters: _Filtered = []
    for anchor, rows in enumerate(order):
        close = _nearness(queries[anchor : anchor + 1], queries)[0]
        group = np.ascontiguousarray(queries[np.argsort(-close)[:FAR_PROBES]])
        filters.append((group, LiveBitmap.from_rows(rows[:matches], rows=len(rows))))
    return filters


def _nearness(left: Float32Matrix, right: Float32Matrix) -> npt.NDArray[np.float32]:
    """Return (l, r) values that order the right side by nearness under every metric."""
    products: npt.NDArray[np.float32] = 2 * left @ right.T - (right * right).sum(axis=1)
    return products


def _with_truth(index: VectorIndex, filtered: _Filtered, *, k: int) -> list[_Truth]:
    return [
        _Truth(queries, matching, index.search_matching(queries, matching=matching, k=k)[0])
        for queries, matching in filtered
    ]


def _curve(
    index: VectorIndex,
    truths: list[_Truth],
    *,
    band: str,
    k: int,
    deadline_s: float,
    far: bool = False,
) -> Iterator[RecallPoint]:
    """Yield the walk's points until one is good enough, dearer than comparing, or too late."""
    for ef in FAR_EFS if far else BAND_EFS:
        if ef < k:
            continue
        if time.monotonic() > deadline_s:
            return
        recalls, visited, checked = [], [], []
        for truth in truths:
            walked = index.walk_filtered(truth.queries, k=k, ef=ef, matching=truth.matching)
            recalls.append(recalls_of(walked.scores, truth.scores))
            visited.append(walked.visited)
            checked.append(walked.checked)
        point = _point(recalls, k=k, ef=ef, band=band)
        mean_visited = float(np.concatenate(visited).mean())
        mean_checked = float(np.concatenate(checked).mean())
        yield RecallPoint(
            point.k,
            point.ef,
            point.recall,
            point.error,
            band=band,
            far=far,
            visited=round(mean_visited, 1),
            checked=round(mean_checked, 1),
        )
        work = mean_visited + mean_checked / FAR_ABORT_CHECKS
        if point.recall - 2 * point.error >= RECALL_ENOUGH or work > truths[0].matching.count:
            return


def _selector_curve(
    index: VectorIndex, truths: list[_Truth], *, band: str, k: int, deadline_s: float
) -> Iterator[RecallPoint]:
    """Yield points of the plain walk whose beam is filtered afterwards."""
    for ef in BAND_EFS:
        if ef * float(band) < k:
            continue
        if time.monotonic() > deadline_s:
            return
        recalls = []
        for truth in truths:
            scores, rows = index.search(truth.queries, k=ef, ef=ef)
            inside = (rows >= 0) & truth.matching.contains(np.maximum(rows, 0))
            found = -np.sort(-np.where(inside, scores, np.float32(-np.inf)), axis=1)[:, :k]
            recalls.append(recalls_of(found, truth.scores))
        point = _point(recalls, k=k, ef=ef, band=band, selector=True)
        yield point
        if point.recall - 2 * point.error >= RECALL_ENOUGH:
            return


def _point(
    recalls: list[npt.NDArray[np.float64]], *, k: int, ef: int, band: str, selector: bool = False
) -> RecallPoint:
    every = np.concatenate(recalls)
    error = float(every.std() / np.sqrt(len(every)))
    mean = round(float(every.mean()), 4)
    return RecallPoint(k, ef, mean, round(error, 5), band=band, selector=selector)
