"""Where Prometheus scrapes a process: HTTP, on threads of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from wsgiref.simple_server import WSGIServer

from prometheus_client import start_http_server

from annheal.errors import FailedPrecondition, InvalidArgument
from annheal.runtime.metrics import Metrics

_log = logging.getLogger(__name__)


def split_listen(listen: str) -> tuple[str, int]:
    """Return host and port of `host:port`; raises `InvalidArgument`."""
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        raise InvalidArgument.of("metrics_listen", f"{listen!r} is not of the form host:port")
    return host.strip("[]"), int(port)


@asynccontextmanager
async def metrics_endpoint(metrics: Metrics, listen: str) -> AsyncIterator[str]:
    """Serve `/metrics` on `listen` (port 0 picks a free one) and watch the event loop.

    Yields the address. Raises `FailedPrecondition` when the port is taken.
    """
    host, port = split_listen(listen)
    try:
        server, thread = start_http_server(port, host, registry=metrics.registry)
    except OSError as error:
        raise FailedPrecondition(
            f"cannot serve metrics on {listen}: {error.strerror or error}", reason="CANNOT_LISTEN"
        ) from error
    lag = asyncio.create_task(metrics.watch_loop(), name="event-loop-lag")
    address = f"{listen.rpartition(':')[0]}:{server.server_port}"
    _log.info("metrics are served at http://%s/metrics", address)
    try:
        yield address
    finally:
        lag.cancel()
        await asyncio.gather(lag, return_exceptions=True)
        await asyncio.to_thread(_close, server, thread)


def _close(server: WSGIServer, thread: threading.Thread) -> None:
    server.shutdown()
    server.server_close()
    thread.join()
