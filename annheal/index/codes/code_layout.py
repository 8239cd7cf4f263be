"""What the compiled kernels and their callers agree on about codes in planes."""

from __future__ import annotations

COLUMNS = 5
WIDTH, KIND, PART, BEGIN, SEEN = range(COLUMNS)
"""Columns of a layout, which has a row for each plane: the bytes that a row takes in it; what they
are; the part of the components that it holds; the first component of the part; and the last part of
which something is known once this plane has been read, after all before it."""

ROWS_AT_ONCE = 16
"""Rows multiplied at a time: as many as a vector has lanes."""
ROWS_PADDING = ROWS_AT_ONCE - 1
"""Room after a list of rows, in which its last one is repeated."""

WHOLE, HIGH, LOW = range(3)
"""Kinds of planes: 8-bit codes; or the higher nibbles of codes, or the lower ones."""

LINE_BYTES = 64
NIBBLE_STEP = 16
"""A code cut in two nibbles is so many times the higher one plus the lower one."""
NIBBLE_CENTER = 8
"""Added to nibbles, to keep them without a sign, two in a byte. In every group of `NIBBLE_LINE`
components, byte j holds components j and j + 64, the latter in its higher bits."""
NIBBLE_LINE = 2 * LINE_BYTES

SCALE_GROUPS, OTHER_GROUPS = 16, 4
GROUPS = SCALE_GROUPS * OTHER_GROUPS
"""Groups of rows with similar scales, and similar factors or norms. The rows of a group share one
threshold of the first plane."""

FACTOR_TYPICAL_MAX = 2.0
"""Up to here the slack of a row's rest counts as one more random error, and its square is added to
those of the codes; what exceeds it counts as a hard bound, and is added as it is."""
