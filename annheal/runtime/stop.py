"""Asking work that runs in a thread to stop: its caller has gone, or its deadline has passed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from annheal.errors import DeadlineExceeded
from annheal.runtime.deadline import Deadline

YieldPoint: TypeAlias = Callable[[], None]
"""Long work calls it between its slices. It returns, perhaps after other work, or raises to end it.
"""


def no_yield_point() -> None:
    """Return at once: the yield point of work that nothing stops."""


class WorkStopped(Exception):
    """The work was stopped at a yield point, because nobody waits for its result any more."""


class StopSignal:
    """Whether a piece of work should stop. Set in one thread, read in any other.

    The deadline is looked at here too: an event loop that is late must not keep the work running.
    """

    __slots__ = ("_deadline", "_stopped")

    def __init__(self, deadline: Deadline | None = None) -> None:
        self._deadline = deadline
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped

    def stop(self) -> None:
        """Let the next `check` raise; may be called repeatedly."""
        self._stopped = True

    def check(self) -> None:
        """Raise `WorkStopped` after `stop`, and `DeadlineExceeded` after the deadline."""
        if self._stopped:
            raise WorkStopped
        if self._deadline is not None and self._deadline.passed:
            raise DeadlineExceeded("the deadline passed while the work was under way")
