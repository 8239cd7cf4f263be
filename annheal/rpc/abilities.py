"""What a server can do at present, as health services of their own beside that of the server.

`grpc.health.v1.Health` for "" says whether the process answers; that stays SERVING while a store is
away, because taking a node out of service would take its reads away too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from annheal.objectstore.store_watch import StoreWatch
from annheal.rpc.server import RpcServer

WRITE: Final = "annheal.write"
READ: Final = "annheal.read"
LOOK_INTERVAL_S: Final = 1.0


@asynccontextmanager
async def abilities_reported(server: RpcServer, stores: StoreWatch) -> AsyncIterator[None]:
    """Keep the health services `annheal.write` and `annheal.read` up to date inside the context."""
    task = asyncio.create_task(_report(server, stores), name="abilities")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _report(server: RpcServer, stores: StoreWatch) -> None:
    said: dict[str, bool] = {}
    while True:
        for service, able in ((WRITE, stores.writable), (READ, stores.readable)):
            if said.get(service) is not able:
                said[service] = able
                await server.set_service(service, able)
        await asyncio.sleep(LOOK_INTERVAL_S)
