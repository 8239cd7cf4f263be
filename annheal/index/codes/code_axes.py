"""Principal axes: the directions along which the rows of an index vary most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.index.codes.code_layout import LINE_BYTES, NIBBLE_LINE
from annheal.model.records import Float32Matrix

AXES_ROWS = 8_192
"""Rows from which principal axes are computed; an index of fewer has one plane."""
PART_VARIANCES = (0.75, 0.96)
"""Share of the variance held at least by the parts up to the first cut, and up to the second."""
CUT_MAX = 0.7
"""Share of the components before a cut; with more, cutting saves too little."""
VARIANCE_MIN = 1e-7
"""Least variance of an axis, as a share of the largest: a sample does not prove that others have
none, and rounding the axes to float16 adds a hundred-millionth to all of them."""

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axes:
    """Principal axes and where rows are cut along them: a row becomes (row - mean) @ principal.

    `deviations` (d,) are the standard deviations of the rows along the axes, the largest first.
    Within the first part the axes are mixed, so that rows vary evenly along them.
    """

    mean: Floats
    principal: Floats
    deviations: Doubles
    cuts: tuple[int, ...]


def axes_of(vectors: Float32Matrix) -> Axes | None:
    """Return the principal axes with the cuts that are worth making, or None."""
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
    variances, principal = np.linalg.eigh(covariance)
    variances, principal = variances[::-1], principal[:, ::-1]
    variances = np.maximum(variances, VARIANCE_MIN * variances[0])
    total = variances.sum()
    needed = 1 + np.searchsorted(np.cumsum(variances), np.array(PART_VARIANCES) * total)
    # The first cut in lines of nibbles, the second in lines of codes.
    first, second = (
        -(-int(width) // line) * line
        for width, line in zip(needed, (NIBBLE_LINE, LINE_BYTES), strict=True)
    )
    if first > CUT_MAX * dimension:
        return None
    cuts = (first, second) if first < second <= CUT_MAX * dimension else (first,)
    # The largest component of a row is the unit of all: spread rows evenly over the first part.
    mixing, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((cuts[0], cuts[0])))
    principal = np.hstack([principal[:, : cuts[0]] @ mixing, principal[:, cuts[0] :]])
    # Queries are rotated with float16 axes, which are read in half the time.
    rotated = np.ascontiguousarray(principal).astype(np.float16).astype(np.float32)
    return Axes(mean, rotated, np.sqrt(variances), cuts)
