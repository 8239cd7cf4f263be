"""The factor between the ef that a segment is searched with and that of its recall curve."""

from __future__ import annotations

import math
from collections.abc import Callable

from annheal.model.measures.recall import SelectivityBand

EF_CONTROL_MAX = 1_024
"""The largest ef that the controller sets. Beyond it exact comparison is not much slower."""

EfScale = Callable[[str, SelectivityBand], float]
"""Returns, for a segment id and a band, the factor of the curve's ef."""


def unscaled(segment_id: str, band: SelectivityBand) -> float:
    """Return 1, the factor where nothing was measured: the curve's ef is used."""
    return 1.0


def scaled_ef(curve_ef: int, scale: float) -> int:
    """Return `curve_ef` times `scale`, at most the larger of `EF_CONTROL_MAX` and `curve_ef`."""
    if scale <= 1.0:
        return curve_ef
    return max(curve_ef, min(EF_CONTROL_MAX, math.ceil(curve_ef * scale)))
