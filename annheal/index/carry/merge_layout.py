"""What the compiled carrying over of a graph and its callers must agree on."""

from __future__ import annotations

# Positions in `settings`: the call. From EPOCH on it is the kernel's own state.
DIMENSION, L2, REPAIR, START, STOP, EPOCH = range(6)
SETTINGS = 9

BRIDGES_MAX = 64
"""Dead rows that are looked through to find new neighbours of one row."""
POOL_ROWS = 256
"""Candidates of one row that are compared."""
FLOOR_DIVISOR = 2
"""A repaired row keeps at least its level's width by this, 16 of 32 links, if it had as many."""
