"""What a process asks its machine for: the time, chance, and names that nobody else gives.

The one place that does. Logic takes these as arguments, with the functions here as what a running
process gives, so that a test gives its own; ruff refuses `time.time`, `random.random`,
`uuid.uuid4` and their like elsewhere (composition roots excepted).
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Returns seconds."""
Jitter: TypeAlias = Callable[[], float]
"""Returns a random number from 0 up to, and without, 1."""
NewId: TypeAlias = Callable[[], str]
"""Returns a name that was never given before."""

TOKEN_BYTES = 8


def monotonic_s() -> float:
    """Return seconds that never go back, for durations and deadlines."""
    return time.monotonic()


def wall_s() -> float:
    """Return seconds since the epoch, for what people and other processes read."""
    return time.time()


def boottime_s() -> float:
    """Return seconds that go on while the machine sleeps, where the system counts them."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.time()


def jitter() -> float:
    """Return a random number from 0 up to, and without, 1."""
    return random.random()


def new_token() -> str:
    """Return 16 hexadecimal digits that nobody else gives, for names of files and objects."""
    return secrets.token_hex(TOKEN_BYTES)
