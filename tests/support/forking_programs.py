"""Programs that fork with clients around, run by `tests/integration/test_forks.py`.

`python -m tests.support.forking_programs PROGRAM ADDRESS` prints what each process found, a line
each, and ends with 0; `serve` answers ListCollections on a free port, which it prints.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from annheal import AsyncClient, Client
from annheal.errors import AnnhealError
from annheal.v1 import collections_pb2

CHILDREN = 10
TIMEOUT_S = 5.0


class Empty(grpc.GenericRpcHandler):
    """Answers every call as if there were nothing."""

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        answer = collections_pb2.ListCollectionsResponse().SerializeToString()
        return grpc.unary_unary_rpc_method_handler(lambda request, context: answer)


def serve(_: str) -> None:
    server = grpc.server(ThreadPoolExecutor(8), handlers=[Empty()])
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


def outcome(ask: Callable[[], object]) -> str:
    """Return what `ask` came to, in a word."""
    try:
        return f"ok {ask()}"
    except AnnhealError as error:
        return f"{type(error).__name__} {error.reason}"


def own_client(address: str) -> object:
    with Client(address, timeout_s=TIMEOUT_S) as client:
        return client.list_collections()


def in_child(ask: Callable[[], object]) -> None:
    """Fork; the child prints the outcome of `ask`, this process how the child ended."""
    child = os.fork()
    if not child:
        print("child", outcome(ask), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print("ended", os.waitstatus_to_exitcode(status), flush=True)


def before_any_client(address: str) -> None:
    in_child(lambda: own_client(address))


def client_open(address: str) -> None:
    """gunicorn --preload, Celery's prefork pool: a client of the module, and one in each worker."""
    with Client(address) as client:
        print("parent", outcome(client.list_collections))
        for _ in range(CHILDREN):
            in_child(lambda: own_client(address))
            print("parent", outcome(client.list_collections))


def client_closed(address: str) -> None:
    with Client(address) as client:
        print("parent", outcome(client.list_collections))
    for _ in range(CHILDREN):
        in_child(lambda: own_client(address))


def parents_client(address: str) -> None:
    client = Client(address)
    print("parent", outcome(client.list_collections))
    in_child(lambda: client.list_collections(timeout_s=TIMEOUT_S))
    in_child(lambda: client.close())
    print("parent", outcome(client.list_collections))
    client.close()


def _work(address: str) -> str:
    return outcome(lambda: own_client(address))


def pool(address: str) -> None:
    """PyTorch's loaders: a pool of forked workers, again and again, beside an open client."""
    with Client(address) as client:
        print("parent", outcome(client.list_collections))
        for _ in range(2):
            with multiprocessing.get_context("fork").Pool(3) as workers:
                for found in workers.map(_work, [address] * 6):
                    print("child", found)
        print("parent", outcome(client.list_collections))


def grandchildren(address: str) -> None:
    def child() -> object:
        with Client(address, timeout_s=TIMEOUT_S) as client:
            first = client.list_collections()
            in_child(lambda: own_client(address))
            return first == client.list_collections()

    with Client(address) as client:
        print("parent", outcome(client.list_collections))
        in_child(child)


def threads(address: str) -> None:
    """Other threads use the client all the time, and forks come in between."""
    stop = threading.Event()
    failures: list[str] = []
    with Client(address) as client:

        def ask() -> None:
            while not stop.is_set():
                found = outcome(client.list_collections)
                if not found.startswith("ok"):
                    failures.append(found)

        asking = [threading.Thread(target=ask) for _ in range(3)]
        for thread in asking:
            thread.start()
        for _ in range(CHILDREN):
            in_child(lambda: own_client(address))
        stop.set()
        for thread in asking:
            thread.join()
    print("parent", failures or "ok []")


def async_client_open(address: str) -> None:
    async def run() -> None:
        async with AsyncClient(address) as client:
            print("parent ok", await client.list_collections())
            in_child(lambda: own_client(address))
            print("parent ok", await client.list_collections())

    asyncio.run(run())
    in_child(lambda: own_client(address))


def reentered(address: str) -> None:
    with Client(address, timeout_s=TIMEOUT_S) as client:

        def call() -> str:
            async def inside(_: AsyncClient) -> object:
                return outcome(client.list_collections)

            return str(client._run(inside))

        print("parent", call())
        print("parent", outcome(client.list_collections))


if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2] if len(sys.argv) > 2 else "")
