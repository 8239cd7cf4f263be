"""Named places at which a test can make this process die as if the machine had lost power.

`ANNHEAL_FAIL_POINT=<name>` in the environment makes the process kill itself with SIGKILL when it
reaches `fail_point(<name>)`, `<name>:3` when it reaches it for the third time: nothing is flushed,
no `finally` runs. Names are `<service>.<step just finished>`. Unless armed, a fail point costs one
comparison.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

ENV_FAIL_POINT: Final = "ANNHEAL_FAIL_POINT"

BACKFILL_POINTS: Final = (
    "compactor.embedded",
    "shard_node.part_loaded",
    "shard_node.part_stored",
)
"""Fail points that only a backfill reaches; it reaches some of those of a compaction, too."""
FAIL_POINTS: Final = (
    # The life of a compaction, from its plan to the end of its sources.
    "coordinator.planned",
    "compactor.claimed",
    "compactor.fetched",
    "compactor.built",
    "compactor.uploading",  # after each file
    "compactor.uploaded",
    "compactor.verified",
    "compactor.reported",
    "coordinator.proposing",
    "shard_node.loaded",
    "shard_node.carried",
    "shard_node.swapped",
    "shard_node.replaced",
    "coordinator.proposed",
    "coordinator.finished",
    "coordinator.collecting",
    "coordinator.collected",
    *BACKFILL_POINTS,
    # The life of a flush.
    "shard_node.flushed",
    "shard_node.checkpointed",
    "shard_node.trimmed",
)
"""Every fail point there is, in the order in which they are reached."""

_log = logging.getLogger(__name__)


def kill_this_process() -> None:
    """End this process at once."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(slots=True)
class _Armed:
    name: str
    left: int
    die: Callable[[], None]


_armed: _Armed | None = None


def arm(text: str, *, die: Callable[[], None] = kill_this_process) -> None:
    """Call `die` when the fail point of `text` (`name` or `name:times`) is reached so often.

    Only one is armed at a time. Raises `ValueError` for a name that does not exist.
    """
    global _armed
    name, _, times = text.partition(":")
    if name not in FAIL_POINTS:
        raise ValueError(f"there is no fail point {name!r}; there are {', '.join(FAIL_POINTS)}")
    _armed = _Armed(name, int(times or "1"), die)


def disarm() -> None:
    """Let every fail point pass."""
    global _armed
    _armed = None


def fail_point(name: str) -> None:
    """Die here and now if this fail point is armed."""
    if _armed is None or _armed.name != name:
        return
    _armed.left -= 1
    if _armed.left == 0:
        _log.warning("dying at the fail point %s", name)
        _armed.die()


if os.environ.get(ENV_FAIL_POINT):
    arm(os.environ[ENV_FAIL_POINT])
