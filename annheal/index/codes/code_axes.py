"""Directions along which few components of a vector tell most of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index.codes.code_layout import HALF_LINE, LINE_BYTES
from annheal.model.records import Float32Matrix

AXES_ROWS = 8_192
"""Rows of which directions are made; an index of fewer has one plane."""
PART_VARIANCES = (0.75, 0.96)
"""Share of the variance held at least by the parts up to the first cut, and up to the second."""
CUT_MAX = 0.7
"""Share of the components before a cut; with more, cutting saves too little."""
VARIANCE_MIN = 1e-7
"""Of a direction, by that of the strongest: no sample says that others have none, and directions
rounded to halves give all of them a hundred-millionth."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axes:
    """Directions by which rows are cut: a row becomes (row - mean) @ directions.

    `deviations` (d,) are those along the principal directions, from the strongest; the first part
    mixes its own.
    """

    mean: Floats
    directions: Floats
    deviations: Doubles
    cuts: tuple[int, ...]


def axes_of(vectors: Float32Matrix) -> Axes | None:
    """Return directions with cuts that are worth making, or None."""
    rows, dimension = vectors.shape
    if rows < AXES_ROWS:
        return None
    chosen = np.random.default_rng(dimension).choice(rows, AXES_ROWS, replace=False)
    sample = np.array(vectors[np.sort(chosen)])
    mean = sample.mean(axis=0)
    sample -= mean
    limits = np.finfo(np.float32)
    wide = sample.astype(np.float64)
    covariance = wide.T @ wide / AXES_ROWS
    # What is so small or large has lost digits, or overflows with the next product.
    if not limits.tiny / limits.eps < np.trace(covariance) < limits.max * limits.eps:
        return None
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    variances = np.maximum(variances, VARIANCE_MIN * variances[0])
    total = variances.sum()
    needed = 1 + np.searchsorted(np.cumsum(variances), np.array(PART_VARIANCES) * total)
    # Lines of halves, then lines of codes.
    first, second = (
        -(-int(width) // line) * line
        for width, line in zip(needed, (HALF_LINE, LINE_BYTES), strict=True)
    )
    if first > CUT_MAX * dimension:
        return None
    cuts = (first, second) if first < second <= CUT_MAX * dimension else (first,)
    # The largest component of a row is the unit of all: spread rows evenly over the first part.
    mixing, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((cuts[0], cuts[0])))
    directions = np.hstack([directions[:, : cuts[0]] @ mixing, directions[:, cuts[0] :]])
    # Queries are turned with halves, which are read in half the time.
    turned = np.ascontiguousarray(directions).astype(np.float16).astype(np.float32)
    return Axes(mean, turned, np.sqrt(variances), cuts)
