"""Recall of scores against exact ones."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_TIE_TOLERANCE = np.float32(1e-6)


def recalls_of(
    found: npt.NDArray[np.float32], truth: npt.NDArray[np.float32]
) -> npt.NDArray[np.float64]:
    """Return each query's recall of scores `found` (n, k) against the exact best `truth` (n, k).

    Compared by score and not by row, so that equal vectors count for one another. Both are
    higher = better, best first; -inf pads.
    """
    worst = np.where(np.isfinite(truth), truth, np.inf).min(axis=1, keepdims=True)
    worst -= np.abs(worst) * _TIE_TOLERANCE
    wanted = np.count_nonzero(np.isfinite(truth), axis=1)
    hits = np.minimum(np.count_nonzero(found >= worst, axis=1), wanted)
    recalls: npt.NDArray[np.float64] = hits / np.maximum(wanted, 1)
    return recalls
