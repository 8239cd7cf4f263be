"""Free TCP ports on loopback for servers that tests start."""

from __future__ import annotations

import socket
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"

# Some servers derive a second port by adding 10,000 to the first (SeaweedFS does so for gRPC).
DERIVED_PORT_OFFSET = 10_000

_DERIVABLE_PORT_MAX = 65_535 - DERIVED_PORT_OFFSET
_ATTEMPTS_MAX = 10_000


def free_ports(count: int, *, with_derived: bool = False) -> list[int]:
    """Return `count` different TCP ports that are free on loopback at this moment.

    All of them are held together until the last one is found, so one call never returns a port
    twice. With `with_derived`, `port + DERIVED_PORT_OFFSET` is free as well. Another process may
    still take a port before the caller binds it: start servers promptly and retry once.
    """
    ports: list[int] = []
    with ExitStack() as held:
        for _ in range(_ATTEMPTS_MAX):
            if len(ports) == count:
                return ports
            port = _hold(held, 0)
            if port is None:
                continue
            if with_derived and (
                port > _DERIVABLE_PORT_MAX or _hold(held, port + DERIVED_PORT_OFFSET) is None
            ):
                continue
            ports.append(port)
    if len(ports) == count:
        return ports
    raise RuntimeError(f"found only {len(ports)} of {count} free ports on {LOOPBACK}")


def free_port() -> int:
    """Return one TCP port that is free on loopback at this moment."""
    return free_ports(1)[0]


def _hold(held: ExitStack, port: int) -> int | None:
    """Bind `port` (0: any) until `held` closes; None when somebody has it."""
    listener = held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
    try:
        listener.bind((LOOPBACK, port))
    except OSError:
        return None
    bound: int = listener.getsockname()[1]
    return bound
