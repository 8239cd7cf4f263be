"""A moment by which something must be done, on the monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass

from annheal.errors import DeadlineExceeded
from annheal.runtime.clock import monotonic_s


@dataclass(frozen=True, slots=True, order=True)
class Deadline:
    """The caller's deadline; `at_s` is in seconds of `annheal.runtime.clock.monotonic_s`."""

    at_s: float

    @classmethod
    def after(cls, timeout_s: float) -> Deadline:
        """Return the deadline `timeout_s` from now."""
        return cls(monotonic_s() + timeout_s)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative."""
        return max(0.0, self.at_s - monotonic_s())

    @property
    def passed(self) -> bool:
        """Whether the time is over."""
        return monotonic_s() >= self.at_s

    def check(self, doing: str) -> None:
        """Raise `DeadlineExceeded` when the time is over; `doing` says what was not finished."""
        if self.passed:
            raise DeadlineExceeded(f"the deadline passed while {doing}")
