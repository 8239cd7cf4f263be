"""Requests and tokens per minute, so that an endpoint's own limit is not run into."""

from __future__ import annotations

from annheal.runtime.clock import Clock

_MINUTE_S = 60.0


class RateLimit:
    """Two buckets that fill at a constant rate and hold a second of it, at least one request.

    A request is let through when both buckets are not empty, and may leave a debt that later ones
    wait for; so a request with more tokens than a bucket holds is let through as well.

    Args:
        requests_per_minute: 0 for no limit.
        tokens_per_minute: 0 for no limit.
        clock: seconds that never go back.
    """

    def __init__(
        self, *, requests_per_minute: float, tokens_per_minute: float, clock: Clock
    ) -> None:
        self._clock = clock
        self._buckets = (
            _Bucket(requests_per_minute / _MINUTE_S, now_s=clock()),
            _Bucket(tokens_per_minute / _MINUTE_S, now_s=clock()),
        )
        self._held_until_s = float("-inf")

    def wait_s(self) -> float:
        """Return the seconds until the next request may be sent; 0: now."""
        now_s = self._clock()
        waits = [bucket.wait_s(now_s) for bucket in self._buckets]
        return max(0.0, self._held_until_s - now_s, *waits)

    def take(self, *, tokens: int) -> None:
        """Count one request of so many tokens, right after `wait_s` has returned 0."""
        now_s = self._clock()
        for bucket, amount in zip(self._buckets, (1, tokens), strict=True):
            bucket.take(amount, now_s)

    def hold(self, seconds: float) -> None:
        """Let nothing through for so long: the endpoint has said when it may be asked again."""
        self._held_until_s = max(self._held_until_s, self._clock() + seconds)


class _Bucket:
    def __init__(self, per_s: float, *, now_s: float) -> None:
        self._per_s = per_s
        self._full = max(1.0, per_s)
        self._level = self._full
        self._at_s = now_s

    def wait_s(self, now_s: float) -> float:
        if not self._per_s:
            return 0.0
        self._fill(now_s)
        return 0.0 if self._level >= 1.0 else (1.0 - self._level) / self._per_s

    def take(self, amount: float, now_s: float) -> None:
        if self._per_s:
            self._fill(now_s)
            self._level -= amount

    def _fill(self, now_s: float) -> None:
        self._level = min(self._full, self._level + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
