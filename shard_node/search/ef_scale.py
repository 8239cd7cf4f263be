"""What measured recall says of a segment: the factor of its ef, and how far it falls short."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from annheal.model.measures.recall import SelectivityBand, Shortfall

EF_CONTROL_MAX = 1_024
"""The largest ef that the controller sets. Beyond it exact comparison is not much slower."""

EfScale = Callable[[str, SelectivityBand], float]
"""Returns, for a segment id and a band, the factor of the curve's ef."""


ShortfallOf = Callable[[str, Sequence[str], SelectivityBand], Shortfall | None]
"""Returns, for a segment id, the ids that it was built from and a band, what is known against its
graph."""


def no_shortfall(
    segment_id: str, sources: Sequence[str], band: SelectivityBand
) -> Shortfall | None:
    """Return None: no graph is known to be below the objective."""
    return None


def unscaled(segment_id: str, band: SelectivityBand) -> float:
    """Return 1, the factor where nothing was measured: the curve's ef is used."""
    return 1.0


def scaled_ef(curve_ef: int, scale: float) -> int:
    """Return `curve_ef` times `scale`, at most the larger of `EF_CONTROL_MAX` and `curve_ef`."""
    if scale <= 1.0:
        return curve_ef
    return max(curve_ef, min(EF_CONTROL_MAX, math.ceil(curve_ef * scale)))
