"""Since when a part fails, and with what: told of every call, asked by health checks."""

from __future__ import annotations

import logging
from typing import Final

from annheal.errors import AnnhealError
from annheal.model.measures.part_health import PartHealth, PartKind
from annheal.runtime.clock import Clock, wall_s

TELL_INTERVAL_S: Final = 30.0
"""Between two log lines about a part that goes on failing."""

_log = logging.getLogger(__name__)


class PartTracker:
    """The state of one part, as far as the calls to it say.

    The first failure is logged at once, those that follow every `TELL_INTERVAL_S`, and the first
    success after them too, so that a log says when a part was away without a line a call.

    Args:
        kind: which part.
        process: who asks.
        place: which one of several, such as the shard of a log.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        kind: PartKind,
        *,
        process: str,
        place: str = "",
        wall_clock: Clock = wall_s,
    ) -> None:
        self._kind = kind
        self._process = process
        self._place = place
        self._wall_clock = wall_clock
        self._failing_since_s = 0.0
        self._succeeded_at_s = 0.0
        self._error = ""
        self._failures = 0
        self._told_s = 0.0

    @property
    def health(self) -> PartHealth:
        """The state now."""
        return PartHealth(
            kind=self._kind,
            process=self._process,
            place=self._place,
            failing_since_s=self._failing_since_s,
            error=self._error,
            succeeded_at_s=self._succeeded_at_s,
        )

    @property
    def failing_for_s(self) -> float:
        """For how long the part has failed; 0 while it works."""
        if not self._failing_since_s:
            return 0.0
        return max(0.0, self._wall_clock() - self._failing_since_s)

    @property
    def error(self) -> str:
        """What it failed with the last time; empty while it works."""
        return self._error

    def succeeded(self) -> None:
        """Note that a call was answered."""
        now_s = self._wall_clock()
        if self._failing_since_s:
            away_s = now_s - self._failing_since_s
            _log.info(
                "%s: works again after %.1f s and %d failures", self._name, away_s, self._failures
            )
        self._failing_since_s, self._succeeded_at_s = 0.0, now_s
        self._error, self._failures = "", 0

    def failed(self, error: AnnhealError | str, *, since_s: float | None = None) -> None:
        """Note that a call failed, or has not been answered since `since_s`."""
        now_s = self._wall_clock()
        text = error if isinstance(error, str) else f"{error.reason}: {error.message}"
        first = not self._failing_since_s
        if first:
            self._failing_since_s = now_s if since_s is None else since_s
        self._error = text
        self._failures += 1
        if first or now_s - self._told_s >= TELL_INTERVAL_S:
            self._told_s = now_s
            _log.warning(
                "%s: failing for %.1f s (%d failures): %s",
                self._name,
                now_s - self._failing_since_s,
                self._failures,
                text,
            )

    @property
    def _name(self) -> str:
        return f"{self._kind} of {self._place}" if self._place else str(self._kind)
