"""Ratios of two things measured in turns, with intervals that assume nothing of the noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class PairedRatio:
    """The median of the pairs' ratios, and its interval by bootstrap over the pairs."""

    median: float
    low: float
    high: float


def paired_ratio(measured: Sequence[float], base: Sequence[float], *, seed: int = 0) -> PairedRatio:
    """Return the median of `measured[i]` by `base[i]` with its 95 % interval.

    The percentile bootstrap (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13). Raises ValueError without pairs, or where the lengths differ.
    """
    if not measured or len(measured) != len(base):
        raise ValueError(f"{len(measured)} and {len(base)} figures are no pairs")
    ratios = np.asarray(measured) / np.asarray(base)
    rng = np.random.default_rng(seed)
    again = rng.choice(ratios, size=(RESAMPLES, len(ratios)))
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(np.median(again, axis=1), [tail, 1.0 - tail])
    return PairedRatio(float(np.median(ratios)), float(low), float(high))
