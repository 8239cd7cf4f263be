"""Measurements of a build in slices of about a tenth of a second, with a yield point before each.

So a compactor that is told to stop need not wait until a graph is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from annheal.index import PRODUCT_VALUES_MIN
from annheal.runtime.stop import YieldPoint

SLICE_COMPARISONS = 4_000_000
"""Pairs of a query and a row that are compared in a slice: 0.1 to 0.2 s at 384 floats."""
SLICE_BEAM_ROWS = 16_384
"""Sum of the beam widths of the walks of a slice: 0.04 s, under filters up to 0.25 s."""


def slices(count: int, size: int, yield_point: YieldPoint) -> Iterator[slice]:
    """Yield slices of `size` that cover [0, `count`), at least one, each after a yield point."""
    for start in range(0, max(1, count), size):
        yield_point()
        yield slice(start, min(count, start + size))


def queries_compared(rows: int) -> int:
    """Return the queries of a slice that compares each with `rows` rows."""
    return max(1, SLICE_COMPARISONS // max(1, rows))


def queries_compared_at_once(count: int, *, rows: int, dimension: int) -> int:
    """Return the queries of a slice where `count` queries are compared with all of `rows` rows.

    If `count` is enough for matrix products, which are ten times faster, so is each slice but for
    the rest of a division.
    """
    least = math.ceil(PRODUCT_VALUES_MIN / dimension)
    if count < least:
        return queries_compared(rows)
    return math.ceil(count / max(1, count // max(least, queries_compared(rows))))


def queries_walked(ef: int) -> int:
    """Return the queries of a slice of walks with beam width `ef`."""
    return max(1, SLICE_BEAM_ROWS // ef)
