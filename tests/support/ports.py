"""Free TCP ports on loopback for servers that tests start."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"

# Some servers derive a second port by adding 10,000 to the first (SeaweedFS does so for gRPC).
DERIVED_PORT_OFFSET = 10_000

PORTS = range(10_240, 22_768)
"""Below what Linux gives to outgoing connections (32,768 and up), derived ports too: while a member
of a cluster is dead, no connection of another process takes its port."""


def free_ports(count: int, *, with_derived: bool = False) -> list[int]:
    """Return `count` different TCP ports that are free on loopback at this moment.

    All of them are held together until the last one is found, so one call never returns a port
    twice, and processes of one run look in ranges of their own. With `with_derived`,
    `port + DERIVED_PORT_OFFSET` is free as well. A process outside the run may still take a port
    before the caller binds it: start servers promptly.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for port in _candidates():
            if len(ports) == count:
                return ports
            if _hold(held, port) and (not with_derived or _hold(held, port + DERIVED_PORT_OFFSET)):
                ports.append(port)
    if len(ports) == count:
        return ports
    raise RuntimeError(f"found only {len(ports)} of {count} free ports on {LOOPBACK}")


def free_port() -> int:
    """Return one TCP port that is free on loopback at this moment."""
    return free_ports(1)[0]


def _candidates() -> Iterator[int]:
    """Yield the ports of this process's share of `PORTS`, from a random one on."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = PORTS[worker::workers]
    first = random.randrange(len(share))
    yield from share[first:]
    yield from share[:first]


def _hold(held: ExitStack, port: int) -> bool:
    """Bind `port` until `held` closes; whether it was free."""
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    try:
        listener.bind((LOOPBACK, port))
    except OSError:
        return False
    return True
