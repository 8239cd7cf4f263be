"""Notices that live queries are distributed otherwise than those that the last estimate stands on.

Each query that passes the thinning (`thinning.py`) leaves a sketch: a few projections of its vector
on random directions, its length, and the score of its best hit, which is low for queries unlike the
rows. The newest sketches are compared with those of the measured queries, feature by feature, by
the two-sample test of Kolmogorov and Smirnov. Its distance D of m against n values exceeds d with a
probability of at most e exp(-2 d^2 m n / (m + n)) if both are drawn from one distribution; for
m < n <= 200, e can be replaced by 2 (F. Wei and R. M. Dudley, "Two-sample
Dvoretzky-Kiefer-Wolfowitz inequalities", Statistics & Probability Letters 82, 2012). The bounds of
all features and numbers of newest queries are added up (Bonferroni), so a look raises a false alarm
with a probability of at most `FALSE_ALARM`, if queries are independent.

Scores depend on how queries are answered too. When that changes, the scores before are forgotten.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from annheal.model.records import Float32Matrix

PROJECTIONS = 8
"""Random directions on which the vectors of queries are projected."""
FEATURES = PROJECTIONS + 2
"""Of a sketch: the projections, the logarithm of the length, the score of the best hit."""
NEWEST_TESTED = (32, 128)
"""So many of the newest queries are compared with the measured ones."""
REFERENCE_MIN = 32
"""With fewer measured queries no change is looked for."""
LOOK_QUERIES = 8
"""New queries between two looks."""
FALSE_ALARM = 1e-6
"""Of one look. With a look every second, the largest number: one false alarm in more than ten
days."""
SCORE = PROJECTIONS + 1
"""The column of the scores. NaN there: forgotten."""
CHANGED_MIN = 16
"""Queries since a change, at least, when the moment of the change is looked for."""
_SEED = 20_240_817

Sketch = npt.NDArray[np.float32]
"""(FEATURES,)"""
Sketches = npt.NDArray[np.float32]
"""(n, FEATURES)"""


def directions(dimension: int) -> Float32Matrix:
    """Return the random directions, (d, PROJECTIONS): the same in every process."""
    rng = np.random.default_rng(_SEED)
    return rng.standard_normal((dimension, PROJECTIONS), dtype=np.float32)


def sketch_of(
    query: npt.NDArray[np.float32], along: Float32Matrix, *, best_score: float | None
) -> Sketch:
    """Return the sketch of `query` (d,); `best_score` is None where there was no hit."""
    sketch = np.empty(FEATURES, dtype=np.float32)
    length = math.sqrt(float(query @ query))
    np.matmul(query, along, out=sketch[:PROJECTIONS])
    sketch[:PROJECTIONS] /= length or 1.0
    sketch[PROJECTIONS] = math.log(length) if length else -math.inf
    sketch[SCORE] = -math.inf if best_score is None else best_score
    return sketch


class ChangeDetector:
    """Compares the newest queries of a stream with those that were measured.

    `false_alarm` is the largest probability with which a look finds a change where there is none.
    """

    def __init__(self, *, false_alarm: float = FALSE_ALARM) -> None:
        self._false_alarm = false_alarm
        self._newest: deque[tuple[float, Sketch]] = deque(maxlen=NEWEST_TESTED[-1])
        self._added = 0
        self._reference: Sketches | None = None
        """The measured queries, each column sorted."""

    def add(self, at_s: float, sketch: Sketch) -> None:
        """Note a query that arrived at `at_s`."""
        self._newest.append((at_s, sketch))
        self._added += 1

    def refer_to(self, measured: Sequence[Sketch]) -> None:
        """Compare with these queries from now on; with too few of them, with nothing."""
        self._reference, self._added = None, 0
        if len(measured) >= REFERENCE_MIN:
            self._reference = np.sort(np.stack(measured), axis=0)

    def forget_scores(self) -> None:
        """Compare no score of the queries so far: they are answered otherwise from now on."""
        for _, sketch in self._newest:
            forget_score(sketch)
        if self._reference is not None:
            self._reference[:, SCORE] = math.nan

    def look(self) -> float | None:
        """Return when the distribution of the queries changed; None: it did not, as far as known.

        After a change nothing is compared until `refer_to` is called.
        """
        if self._reference is None or self._added < LOOK_QUERIES:
            return None
        self._added = 0
        newest = np.stack([sketch for _, sketch in self._newest])
        excess, feature = _excess(newest, self._reference, false_alarm=self._false_alarm)
        if excess <= 0.0:
            return None
        forgotten = np.flatnonzero(np.isnan(newest[:, feature]))
        first = int(forgotten[-1]) + 1 if len(forgotten) else 0
        since = first + _began(newest[first:, [feature]], _known(self._reference, [feature]))
        self._reference = None
        return self._newest[since][0]


def forget_score(sketch: Sketch) -> None:
    """Mark the score of `sketch` as one that is not compared with others."""
    sketch[SCORE] = math.nan


def _known(reference: Sketches, columns: Sequence[int]) -> Sketches:
    """Return some columns of the reference without the rows whose scores are forgotten."""
    values = reference[:, columns]
    return values[~np.isnan(values).any(axis=1)]


def _excess(newest: Sketches, reference: Sketches, *, false_alarm: float) -> tuple[float, int]:
    """Return by how much a distance exceeds its limit, and the feature for which it does most."""
    found = (-math.inf, 0)
    sizes = [size for size in NEWEST_TESTED if size <= len(newest)]
    for columns in (range(SCORE), range(SCORE, FEATURES)):
        known = _known(reference, columns)
        for size in sizes:
            values = newest[-size:, columns]
            if len(known) < REFERENCE_MIN or np.isnan(values).any():
                continue
            limit = distance_limit(size, len(known), chance=false_alarm / FEATURES / len(sizes))
            excess = ks_distances(values, known) - limit
            found = max(found, (float(excess.max()), columns[int(excess.argmax())]))
    return found


def ks_distances(values: Sketches, reference: Sketches) -> npt.NDArray[np.float64]:
    """Return the largest difference of the empirical distribution functions of each column.

    `values` (m, f) in any order, `reference` (n, f) with sorted columns. Between two values of the
    reference one function is constant and the other one monotone, so the ends are compared.
    """
    ordered = np.sort(values, axis=0)
    found = np.empty(values.shape[1])
    for column, (mine, theirs) in enumerate(zip(ordered.T, reference.T, strict=True)):
        distances = [
            np.abs(_shares(mine, theirs, "right") - _shares(theirs, theirs, "right")).max(),
            np.abs(_shares(mine, theirs, "left") - _shares(theirs, theirs, "left")).max(),
        ]
        found[column] = max(distances)
    return found


def _shares(
    values: npt.NDArray[np.float32],
    at: npt.NDArray[np.float32],
    side: Literal["left", "right"],
) -> npt.NDArray[np.float64]:
    """Return the share of the sorted `values` that are at most each of `at`, or below it: left."""
    return np.searchsorted(values, at, side=side) / len(values)


def distance_limit(m: int, n: int, *, chance: float) -> float:
    """Return the distance that m and n values of one distribution exceed with at most `chance`."""
    factor = 2.0 if m != n and min(m, n) >= 4 and max(m, n) <= 200 else math.e
    return math.sqrt(math.log(factor / chance) * (m + n) / (2.0 * m * n))


def _began(newest: Sketches, reference: Sketches) -> int:
    """Return the position in `newest` from which on queries differ most from all before.

    Both have one column.
    """
    best, began = -math.inf, max(0, len(newest) - CHANGED_MIN)
    for start in range(0, len(newest) - CHANGED_MIN + 1, CHANGED_MIN // 4):
        before = np.sort(np.concatenate([reference, newest[:start]]), axis=0)
        m, n = len(newest) - start, len(before)
        weighed = float(ks_distances(newest[start:], before)[0]) * math.sqrt(m * n / (m + n))
        if weighed > best:
            best, began = weighed, start
    return began
