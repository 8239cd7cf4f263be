"""Runs `annheal` in a process that kills itself at a chosen effect on a store.

    ANNHEAL_TEST_CRASH_AT='objects put_file_if_absent after segments/ 2' \\
        python -m tests.support.crash_points serve compactor

means: SIGKILL right after the second `put_file_if_absent` of a key that starts with `segments/`
took effect. The words are: the store (`objects` or `meta`), the method, `before` or `after`, the
start of the key (`*`: any), and which of the calls that match. The product has no fail points of
its own: everything that outlives a process is an effect on one of its two stores.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from annheal.metastore.etcd import EtcdMetaStore
from annheal.metastore.protocol import Delete, Put
from annheal.metastore.sqlite import SqliteMetaStore
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.s3 import S3ObjectStore

ENV_CRASH_AT = "ANNHEAL_TEST_CRASH_AT"
_STORES: dict[str, tuple[type[Any], ...]] = {
    "objects": (LocalObjectStore, S3ObjectStore),
    "meta": (EtcdMetaStore, SqliteMetaStore),
}


@dataclass(slots=True)
class CrashPoint:
    """Where to die; `left` matching calls from now."""

    store: str
    method: str
    moment: str
    key_prefix: str
    left: int

    @classmethod
    def parse(cls, text: str) -> CrashPoint:
        """Read the five words of the module's docstring."""
        store, method, moment, prefix, count = text.split()
        if store not in _STORES or moment not in ("before", "after"):
            raise ValueError(f"no crash point: {text}")
        return cls(store, method, moment, "" if prefix == "*" else prefix, int(count))

    def matches(self, keys: Iterable[str]) -> bool:
        """Whether this call is the one to die at; counts it."""
        if not any(key.startswith(self.key_prefix) for key in keys):
            return False
        self.left -= 1
        return self.left == 0


def install(point: CrashPoint) -> None:
    """Make this process die at `point`."""
    for kind in _STORES[point.store]:
        setattr(kind, point.method, _dying(getattr(kind, point.method), point))


def _dying(
    method: Callable[..., Awaitable[Any]], point: CrashPoint
) -> Callable[..., Awaitable[Any]]:
    async def call(self: object, first: Any, *args: Any, **kwargs: Any) -> Any:
        hit = point.matches(_keys(first))
        if hit and point.moment == "before":
            _die(point)
        try:
            result = await method(self, first, *args, **kwargs)
        except BaseException:
            if hit:
                point.left = 1  # it had no effect to die after: the next one counts
            raise
        if hit:
            _die(point)
        return result

    return call


def _keys(first: object) -> list[str]:
    if isinstance(first, str):
        return [first]
    if isinstance(first, Iterable):
        return [one.key if isinstance(one, Put | Delete) else str(one) for one in first]
    return []


def _die(point: CrashPoint) -> None:
    print(f"dying at {point}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Install the crash point of the environment, then be `annheal`."""
    text = os.environ.pop(ENV_CRASH_AT, "")
    if text:
        install(CrashPoint.parse(text))
    from annheal.cli.__main__ import main as annheal

    annheal()


if __name__ == "__main__":
    main()
