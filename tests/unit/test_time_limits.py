"""Nothing waits past its time: every call of the SDK and every command, against silent servers."""

from __future__ import annotations

import asyncio
import inspect
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from annheal import AsyncClient, Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.errors import AnnhealError, InvalidArgument, Unavailable
from annheal.runtime.deadline import Deadline
from tests.support.ports import LOOPBACK, free_port

SLACK_S = 3.0
"""For a busy machine; what hung before hung for a minute or more."""
TIMEOUT_S = 1.0
VECTOR = np.ones(4, dtype=np.float32)


class Silent(grpc.GenericRpcHandler):
    """Takes every call and answers none."""

    def __init__(self) -> None:
        self.ended = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        def wait(request: bytes, context: grpc.ServicerContext) -> bytes:
            self.ended.wait()
            return b""

        return grpc.unary_unary_rpc_method_handler(wait)


@pytest.fixture(scope="module")
def silent_grpc() -> Iterator[str]:
    """The address of a server that speaks gRPC and never answers."""
    from concurrent.futures import ThreadPoolExecutor

    silent = Silent()
    server = grpc.server(ThreadPoolExecutor(256), handlers=[silent])
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    yield f"{LOOPBACK}:{port}"
    silent.ended.set()
    server.stop(0).wait()


@pytest.fixture(scope="module")
def silent_tcp() -> Iterator[str]:
    """The address of a server that accepts connections and says nothing."""
    with socket.create_server((LOOPBACK, 0), backlog=512) as server:
        yield f"{LOOPBACK}:{server.getsockname()[1]}"


# ------------------------------------------------------------------------------------------- SDK

Calls = dict[str, Callable[[AsyncClient], Any]]
CALLS: Calls = {
    "create_collection": lambda c: c.create_collection("c", 4),
    "get_collection": lambda c: c.get_collection("c"),
    "describe_collection": lambda c: c.describe_collection("c"),
    "list_collections": lambda c: c.list_collections(),
    "update_collection": lambda c: c.update_collection("c", settings={"recall_objective": 0.9}),
    "add_model": lambda c: c.add_model("c", "m", 4),
    "remove_model": lambda c: c.remove_model("c", "m"),
    "drop_collection": lambda c: c.drop_collection("c"),
    "upsert": lambda c: c.upsert("c", ["a"], [VECTOR]),
    "update": lambda c: c.update("c", ["a"], vectors=[VECTOR]),
    "delete": lambda c: c.delete("c", ids=["a"]),
    "get": lambda c: c.get("c", ["a"]),
    "count": lambda c: c.count("c"),
    "scan": lambda c: anext(c.scan("c")),
    "search": lambda c: c.search("c", vector=VECTOR),
    "search_batch": lambda c: c.search_batch("c", [VECTOR]),
    "status": lambda c: c.status(),
    "health": lambda c: c.health(),
    "nodes": lambda c: c.nodes(),
    "shards": lambda c: c.shards(),
    "segments": lambda c: c.segments("c"),
    "flush": lambda c: c.flush("c"),
    "compact": lambda c: c.compact("c", timeout_s=TIMEOUT_S),
    "tasks": lambda c: c.tasks(),
    "task": lambda c: c.task("t"),
    "cancel_task": lambda c: c.cancel_task("t"),
    "retry_task": lambda c: c.retry_task("t"),
    "measure_recall": lambda c: c.measure_recall("c"),
    "recall": lambda c: c.recall("c"),
    "test_embedder": lambda c: c.test_embedder("c", "a"),
    "audit_recall": lambda c: c.audit_recall("c"),
    "worst_queries": lambda c: c.worst_queries("c"),
    "rebalance": lambda c: c.rebalance(),
    "collect_garbage": lambda c: c.collect_garbage(),
    "drain": lambda c: c.drain("n"),
    "undrain": lambda c: c.undrain("n"),
    "move_shard": lambda c: c.move_shard("c", 0, "n"),
    "plan_migration": lambda c: c.plan_migration("c", "m"),
    "start_migration": lambda c: c.start_migration("c", "m", who="w"),
    "migration": lambda c: c.migration("c"),
    "migrations": lambda c: c.migrations(),
    "update_migration": lambda c: c.update_migration("c", {"tasks_max": 1}, who="w"),
    "pause_migration": lambda c: c.pause_migration("c", who="w"),
    "resume_migration": lambda c: c.resume_migration("c", who="w"),
    "validate_migration": lambda c: c.validate_migration("c", who="w"),
    "commit_migration": lambda c: c.commit_migration("c", who="w"),
    "rollback_migration": lambda c: c.rollback_migration("c", who="w"),
    "abort_migration": lambda c: c.abort_migration("c", who="w"),
    "purge_migration": lambda c: c.purge_migration("c", who="w"),
}
NO_CALL = {"close", "suspend", "session", "address", "embed"}
"""What asks no server; `embed` computes here."""


def test_every_call_of_the_client_is_tried_here() -> None:
    public = {name for name, _ in inspect.getmembers(AsyncClient) if not name.startswith("_")}
    assert public - NO_CALL == set(CALLS)


@pytest.mark.parametrize("server", ["silent_grpc", "silent_tcp"])
async def test_every_call_ends_in_time(server: str, request: pytest.FixtureRequest) -> None:
    address = request.getfixturevalue(server)

    async def ended_after_s(name: str) -> float:
        async with AsyncClient(address, timeout_s=TIMEOUT_S) as client:
            began_s = time.monotonic()
            with pytest.raises(AnnhealError):
                await CALLS[name](client)
            return time.monotonic() - began_s

    took_s = dict(zip(CALLS, await asyncio.gather(*map(ended_after_s, CALLS)), strict=True))
    late = {name: took for name, took in took_s.items() if took > TIMEOUT_S + SLACK_S}
    assert not late


@pytest.mark.parametrize("listener", ["nobody", "silent_tcp"])
def test_a_wrong_port_is_said_within_the_time_to_connect(
    listener: str, request: pytest.FixtureRequest
) -> None:
    address = (
        f"{LOOPBACK}:{free_port()}" if listener == "nobody" else request.getfixturevalue(listener)
    )
    with Client(address) as client:  # sixty seconds a call, by default
        began_s = time.monotonic()
        with pytest.raises(Unavailable, match="no server answers at") as caught:
            client.upsert("c", ["a"], [VECTOR])
        assert time.monotonic() - began_s < 2.0 + SLACK_S
    assert caught.value.reason == "CANNOT_CONNECT"
    assert address in caught.value.message


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("https://annheal.example:7700", "write host:port, such as 'annheal.example:7700'"),
        ("http://127.0.0.1:7700/", "such as '127.0.0.1:7700'"),
        ("annheal.example", "has no port"),
        ("annheal.example:http", "has no port"),
        ("annheal.example:0", "has no port"),
        (":7700", "has no port"),
        ("", "has no port"),
    ],
)
def test_an_address_that_cannot_be_meant_is_refused(address: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^address: ") as caught:
        Client(address)
    assert said in caught.value.message


@pytest.mark.parametrize("address", ["dns:///h:7700", "[::1]:7700", "ipv4:127.0.0.1:7700"])
def test_other_ways_to_write_an_address_are_taken(address: str) -> None:
    Client(address).close()


def test_a_time_limit_bounds_calls_that_have_more_time(silent_grpc: str) -> None:
    limit = Deadline.after(TIMEOUT_S)
    with Client(silent_grpc, timeout_s=60, time_limit=limit) as client:
        for _ in range(5):
            with pytest.raises(AnnhealError):
                client.compact("c")
    assert time.monotonic() < limit.at_s + SLACK_S


# ----------------------------------------------------------------------------------- command line

COMMANDS: dict[str, list[str]] = {
    "collection create": ["c", "--dimension", "4"],
    "collection list": [],
    "collection show": ["c"],
    "collection update": ["c", "--set", "recall_objective=0.9"],
    "collection drop": ["c", "--yes"],
    "import": ["ROWS", "-c", "c"],
    "search": ["c", "--id", "a"],
    "explain": ["c", "--id", "a"],
    "get": ["c", "a"],
    "update": ["c", "a", "--payload", "{}"],
    "delete": ["c", "a", "--yes"],
    "count": ["c"],
    "scan": ["c"],
    "export": ["c", "--output", "ROWS.d"],
    "segments": ["c"],
    "flush": ["c"],
    "compact": ["c"],
    "recall": ["c", "--measure"],
    "filters": ["c"],
    "models list": ["c"],
    "models show": ["c", "m"],
    "models add": ["c", "m", "--dimension", "4"],
    "models remove": ["c", "m", "--yes"],
    "models test": ["c", "--text", "a"],
    "tasks list": [],
    "tasks show": ["t"],
    "tasks cancel": ["t"],
    "tasks retry": ["t"],
    "gc": [],
    "health": [],
    "status": [],
    "nodes": [],
    "shards": [],
    "rebalance": [],
    "drain": ["n"],
    "undrain": ["n"],
    "move": ["c/0", "n"],
    "migrate plan": ["c", "--to", "m"],
    "migrate start": ["c", "--to", "m"],
    "migrate list": [],
    "migrate export": ["c", "nowhere", "--model", "m"],
    "migrate import": ["c", "nothing.parquet", "--model", "m"],
    "migrate status": ["c"],
    "migrate watch": ["c"],
    "migrate set": ["c", "tasks_max=1"],
    "migrate pause": ["c"],
    "migrate resume": ["c"],
    "migrate validate": ["c"],
    "migrate commit": ["c", "--yes"],
    "migrate rollback": ["c"],
    "migrate abort": ["c", "--yes"],
    "migrate purge": ["c", "--yes"],
}
SERVERS = {"up", "serve coordinator", "serve shard-node", "serve compactor"}
LOCAL = {"version", "kernels build", "kernels status"}
"""Commands that call no server."""


def registered(group: click.Command, *path: str) -> Iterator[str]:
    """Yield the names of all commands below `group`."""
    commands: dict[str, click.Command] | None = getattr(group, "commands", None)
    if commands is not None:
        for name, command in commands.items():
            yield from registered(command, *path, name)
    else:
        yield " ".join(path)


def test_every_command_is_tried_here() -> None:
    tried = set(registered(typer.main.get_command(app))) - SERVERS - LOCAL
    assert tried == set(COMMANDS)


@pytest.mark.parametrize("server", ["silent_grpc", "silent_tcp"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_ends_in_time(
    command: str,
    server: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ANNHEAL_ADDRESS", request.getfixturevalue(server))
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"id": "a", "vector": [1.0, 2.0, 3.0, 4.0]}) + "\n")
    arguments = [one.replace("ROWS", str(rows)) for one in COMMANDS[command]]
    began_s = time.monotonic()
    found = CliRunner().invoke(
        app, hoist([*command.split(), *arguments, "--timeout", str(TIMEOUT_S)])
    )
    assert time.monotonic() - began_s < TIMEOUT_S + SLACK_S
    assert found.exit_code in (
        ExitCode.UNAVAILABLE,
        ExitCode.DEADLINE_EXCEEDED,
        ExitCode.UNKNOWN_OUTCOME,
        ExitCode.UNHEALTHY,
    ), (found.exit_code, found.output)
