"""The pace of commands that show something again and again (`--watch`)."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator


def every(interval_s: float) -> Iterator[int]:
    """Yield 0 at once, then 1, 2 and so on, `interval_s` seconds after the last turn ended.

    The caller ends it, usually by Ctrl-C, which ends the pause too.
    """
    for turn in itertools.count():
        yield turn
        time.sleep(interval_s)  # the pause that the user asked for, in a command that does no more
