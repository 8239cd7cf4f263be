"""`annheal migrate` on a real server."""

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
from tests.support.cluster import EmbeddedServer

NAME = "migrated"


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
        return json.loads(found.stdout or "null") if code == ExitCode.OK else found.stderr

    return run


def test_a_plan_and_the_refusals_of_today(client: Client, run: Callable[..., Any]) -> None:
    client.create_collection(NAME, 4, model="old", attributes={"name": "keyword"})
    client.add_model(NAME, "new", 384, embedder="minilm_l6", source="{name}")
    client.add_model(NAME, "outside", 5)
    client.upsert(NAME, ["a", "b"], [[1.0] * 4] * 2, attributes={"name": ["x", "y"]})
    estimate = run("migrate", "plan", NAME, "--to", "outside")
    assert (estimate["rows"], estimate["rows_lacking"]) == (2, 2)
    assert "must come from clients" in estimate["warnings"][0]
    assert "it has 'old', 'new', 'outside'" in run(
        "migrate", "plan", NAME, "--to", "nwe", code=ExitCode.NOT_FOUND
    )
    said = run("migrate", "start", NAME, "--to", "new", code=ExitCode.UNIMPLEMENTED)
    assert "migrate plan" in said
    assert run("migrate", "list") == []
    for command in ("status", "pause", "resume", "rollback", "watch"):
        assert "has no migration" in run("migrate", command, NAME, code=ExitCode.NOT_FOUND)
    for command in ("commit", "abort", "purge"):
        run("migrate", command, NAME, code=ExitCode.FAILED_PRECONDITION)  # nobody can say yes
        run("migrate", command, NAME, "--yes", code=ExitCode.NOT_FOUND)
    run("migrate", "set", NAME, "canary_share=5%", code=ExitCode.NOT_FOUND)
    run("migrate", "set", NAME, "cnary_share=5%", code=ExitCode.INVALID_ARGUMENT)
    client.drop_collection(NAME)
