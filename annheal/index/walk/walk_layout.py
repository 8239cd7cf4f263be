"""Constants shared by the compiled walk and its callers; imports neither numba nor FAISS."""

from __future__ import annotations

OK, STARVED, ABORTED = 0, 1, 2
"""Status of a query. OK: the pool became full, or no more matching row is reachable. STARVED: fewer
than min(k, matching rows) were found, or the budget of waypoints was spent before the pool was
full. ABORTED: the query is far and `EF_FAR` is 0, or it took more work than `WORK_MAX`."""

# Positions in `layout`, the numbers of a graph.
ENTRY, TOP_LEVEL, DIMENSION, ROWS, WIDTHS = 0, 1, 2, 3, 4
"""From WIDTHS on `layout` has where the links of each level begin among the links of a row."""

# Positions in `settings`, the arguments of a call that are numbers.
L2, K, EF, EF_FAR, MATCHES, WORK_MAX, START, STOP, REACH, REACH_RANK, FLOOR, KEPT = range(12)
SETTINGS = 12
REACH_ONE = 1_000_000
"""`REACH` is a ratio of distances in units of 1 / this; 0: every query is walked with width `EF`.
"""

STATE_SIZE = 16

LOOK_THROUGH_SHARE = 0.10
"""A row is expanded by two hops if more than this share of its neighbours does not match (Lucene's
threshold)."""
WAYPOINTS_PER_EF = 4
"""The most waypoints that a query takes from its queue, per unit of ef."""
QUEUE_ROWS = 8192
"""Places for waypoints in the queue of a query."""
SEEDS_MAX = 32
"""Seeds that are sampled if the caller gives none."""
CHECKS_PER_COMPARISON = 32
"""Bit tests that cost as much as one comparison: about 2 against 60 ns at 384 floats."""
LOOK_AHEAD_ROWS = 4
"""Rows whose links are prefetched ahead."""
FAR_CHECKS = 512
"""Rows around the query that are tested to estimate the share of matching rows there."""
FAR_SHARE, FAR_DEVIATIONS = 0.5, 4.0
"""A query is far if the matching rows around it are fewer than `FAR_SHARE` of those expected by the
selectivity, or `FAR_DEVIATIONS` standard deviations fewer. Of queries whose filters match the rows
farthest from them, 93 to 95 % are recognised at every selectivity; with random rows 0 to 3 %."""
FAR_EXPECTED_MIN = 4.0
"""With fewer matching rows expected among `FAR_CHECKS`, no query is taken for far."""
