"""How much wider than its recall curve says a segment is searched."""

from __future__ import annotations

import math
from collections.abc import Callable

from annheal.model.measures.recall import SelectivityBand

EF_CONTROL_MAX = 1_024
"""The widest beam of the controller. Beyond it exact comparison is not much slower."""

EfScale = Callable[[str, SelectivityBand], float]
"""Of a segment id and a band: by how much the curve's ef is multiplied."""


def curve_alone(segment_id: str, band: SelectivityBand) -> float:
    """Return 1: what the curve says, as long as nothing was measured."""
    return 1.0


def scaled_ef(curve_ef: int, scale: float) -> int:
    """Return `curve_ef` times `scale`, at most `EF_CONTROL_MAX` unless the curve says more."""
    if scale <= 1.0:
        return curve_ef
    return max(curve_ef, min(EF_CONTROL_MAX, math.ceil(curve_ef * scale)))
