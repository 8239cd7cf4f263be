"""Constants shared by the compiled `merge_kernel` and its caller `merge`."""

from __future__ import annotations

# Positions in `settings`, the arguments of a call that are numbers. From STAMP on `settings` is the
# state of the repairs: the stamp, the number of found rows, the number of rows on the stack.
DIMENSION, L2, REPAIR, START, STOP, STAMP = range(6)
SETTINGS = 9

DEAD_ROWS_PASSED_MAX = 64
"""Dead rows whose neighbours become candidates in the repair of one row."""
POOL_ROWS = 256
"""Candidates of one row, its linked rows included; more are ignored."""
LINKS_MIN_DIVISOR = 2
"""A repair fills at least the level's places by this, 16 of 32, if the row had so many links."""
