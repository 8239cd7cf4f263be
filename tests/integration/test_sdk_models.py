"""Models of a collection come and go, by the SDK and the command line, on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from tests.support.cluster import EmbeddedServer


@pytest.fixture
def client(embedded_server: EmbeddedServer) -> Iterator[Client]:
    with Client(embedded_server.address) as client:
        yield client


@pytest.fixture
def run(embedded_server: EmbeddedServer) -> Callable[..., Any]:
    """Return what a command prints as JSON; fails unless it ends with `code`."""

    def run(*arguments: str, code: ExitCode = ExitCode.OK) -> Any:
        line = ["--address", embedded_server.address, "-o", "json", *arguments]
        found = CliRunner().invoke(app, hoist(line))
        assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
        return json.loads(found.stdout or "null")

    return run


def test_models_are_added_described_and_removed(client: Client) -> None:
    name = "models-sdk"
    created = client.create_collection(name, 4, model="old")
    assert (created.serving, [one.name for one in created.models]) == ("old", ["old"])
    for _ in range(2):  # the second time it is there
        added = client.add_model(name, "new/v2", 8, metric="l2")
    assert [(one.name, one.dimension, one.metric) for one in added.models] == [
        ("old", 4, "cosine"),
        ("new/v2", 8, "l2"),
    ]
    assert client.get_collection(name) == added
    with pytest.raises(AlreadyExists, match="its dimension is 8, not 9; its metric is l2, not cos"):
        client.add_model(name, "new/v2", 9)
    with pytest.raises(InvalidArgument, match=r"model\.embedder"):
        client.add_model(name, "texts", 9, embedder="telepathy")
    with pytest.raises(FailedPrecondition, match="let another one serve first"):
        client.remove_model(name, "old")
    with pytest.raises(NotFound, match="did you mean new/v2"):
        client.remove_model(name, "new/v1")
    assert client.remove_model(name, "new/v2").models == created.models
    with pytest.raises(AlreadyExists, match="another name"):
        client.add_model(name, "new/v2", 8, metric="l2")
    client.drop_collection(name)


def test_models_on_the_command_line(client: Client, run: Callable[..., Any]) -> None:
    name = "models-cli"
    client.create_collection(name, 4, model="old")
    run("models", "add", name, "new", "--dimension", "384", "--embedder", "minilm_l6")
    run("collection", "update", name, "--model", "new", "--embedder-option", "batch_texts=7")
    old, new = run("models", "list", name)
    assert (old["model"]["name"], old["serving"], old["text_model"]) == ("old", True, None)
    assert (new["model"]["name"], new["serving"]) == ("new", False)
    assert new["text_model"]["embedder"]["batch_texts"] == 7
    assert run("models", "show", name, "new") == new
    run("models", "show", name, "nwe", code=ExitCode.NOT_FOUND)
    run("models", "remove", name, "new", code=ExitCode.FAILED_PRECONDITION)  # nobody can say yes
    run("models", "remove", name, "new", "--yes")
    assert [one["model"]["name"] for one in run("models", "list", name)] == ["old"]
    client.drop_collection(name)
