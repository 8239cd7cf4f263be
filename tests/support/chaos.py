"""How much of the chaos tests is run, and from when on they have tested something."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence

ENV_EVERY_POINT = "ANNHEAL_CHAOS_EVERY_POINT"
ACKNOWLEDGED_MIN = 100
"""Writes without which nothing was tested."""


def chosen(points: Sequence[str], *, seed: int) -> tuple[str, ...]:
    """Return half of some crash points, in their order; another half for another seed.

    `make test-chaos` sets `ANNHEAL_CHAOS_EVERY_POINT`, and all of them are chosen.
    """
    if os.environ.get(ENV_EVERY_POINT):
        return tuple(points)
    rng = random.Random(f"{seed}/{points[0]}")
    places = sorted(rng.sample(range(len(points)), (len(points) + 1) // 2))
    return tuple(points[place] for place in places)
