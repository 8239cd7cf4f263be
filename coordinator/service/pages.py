"""Pages of lists."""

from __future__ import annotations

from typing import Final

PAGE_ROWS_MAX: Final = 1_000
"""Collections or tasks of one page."""


def page_rows(page_size: int) -> int:
    """Return the rows of a page for a caller who wants `page_size`; 0: it does not matter."""
    return min(page_size or PAGE_ROWS_MAX, PAGE_ROWS_MAX)
