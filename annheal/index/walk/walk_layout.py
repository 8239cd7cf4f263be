"""What the compiled walk and its callers must agree on, free of numba and FAISS."""

from __future__ import annotations

OK, STARVED, ABORTED = 0, 1, 2
"""Status of a query. OK: the beam was filled, or nothing more can be reached. STARVED: fewer than
min(k, matching rows) were found, or the budget of waypoints ended before the beam was full.
ABORTED: the work became more than the caller allowed."""

# Positions in `layout`: the graph.
ENTRY, TOP_LEVEL, DIMENSION, ROWS, WIDTHS = 0, 1, 2, 3, 4
"""From WIDTHS on: where the links of each level begin, relative to the first link of a row."""

# Positions in `settings`: the call.
L2, K, EF, EF_FAR, MATCHES, WORK_MAX, START, STOP = range(8)
SETTINGS = 8

STATE_SIZE = 16

LOOK_THROUGH_SHARE = 0.10
"""Neighbours are looked through when more than this share of them is outside the bitmap."""
WAYPOINTS_PER_EF = 4
"""Waypoints that a query may take, per unit of ef."""
QUEUE_ROWS = 8192
SEEDS_MAX = 32
CHECKS_PER_COMPARISON = 32
"""Bit tests that cost as much as one comparison of 384 floats: about 2 against 60 ns."""
LOOK_AHEAD_ROWS = 4
FAR_CHECKS = 512
"""Rows around the query that are tested to learn how many match there."""
FAR_SHARE, FAR_DEVIATIONS = 0.5, 4.0
"""A query is far from its filter when rows around it match at most this share as often as
elsewhere, or so many standard deviations less often than chance explains. With the rows farthest
from them 93 to 95 % of the queries are noticed at every selectivity, with random rows 0 to 3 %."""
FAR_EXPECTED_MIN = 4.0
"""Fewer expected matches among `FAR_CHECKS` say nothing."""
