"""`annheal migrate` on a real server, whose embedder is a real HTTP server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from tests.support.cluster import EmbeddedServer
from tests.support.embedding_server import DIMENSION, MODEL, EmbeddingServer, serve_embeddings

ROWS = 300
NAMELESS = 15
WAIT_S = 60.0
VECTORS = np.random.default_rng(7).normal(size=(ROWS, 4)).astype(np.float32)
IDS = [f"p{number}" for number in range(ROWS)]
NAMES = [None if number < NAMELESS else f"package {number}" for number in range(ROWS)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[EmbeddingServer]:
    with serve_embeddings() as found:
        yield found


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


def fill(client: Client, endpoint: EmbeddingServer, name: str) -> None:
    """Create a collection with vectors of one model and names, and a second model."""
    client.create_collection(name, 4, model="old", attributes={"name": "keyword"}, metric="cosine")
    client.upsert(name, IDS, VECTORS, attributes={"name": NAMES})
    client.flush(name)
    client.add_model(
        name,
        "new",
        DIMENSION,
        embedder={"kind": "openai", "url": endpoint.url, "remote_model": MODEL, "retries": 0},
        source="{name}",
    )


def until(client: Client, name: str, condition: Callable[[Any], bool]) -> Any:
    """Return the migration once `condition` holds."""
    deadline_s = time.monotonic() + WAIT_S
    while True:
        found = client.migration(name)
        if condition(found):
            return found
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)


def ids_of(client: Client, name: str, row: int) -> list[str]:
    return [hit.id for hit in client.search(name, vector=VECTORS[row], k=5, model="old")]


def test_from_the_plan_to_the_commit_and_back(
    client: Client, run: Callable[..., Any], endpoint: EmbeddingServer
) -> None:
    name = "migrated"
    fill(client, endpoint, name)
    before = [ids_of(client, name, row) for row in range(0, ROWS, 30)]
    estimate = run("migrate", "plan", name, "--to", "new")
    assert (estimate["rows"], estimate["rows_lacking"]) == (ROWS, ROWS)
    assert estimate["sampled_without_text"] == NAMELESS
    assert estimate["rows_per_s"] > 0
    run("migrate", "start", name, "--to", "new", "--who", "ada", "--why", "a test",
        "--set", "lacking_share_max=10%")  # fmt: skip
    # The old vectors are random, so the two models agree on nothing: the gate says so.
    found = until(client, name, lambda one: one.migration.report is not None)
    assert found.migration.phase == "validate"
    assert (found.rows_done, found.rows_skipped) == (ROWS - NAMELESS, NAMELESS)
    assert [(one.reason, one.rows) for one in found.skipped_by_reason] == [("no_source", NAMELESS)]
    assert {one.id for one in found.migration.skipped} <= set(IDS[:NAMELESS])
    report = found.migration.report
    assert report.recall == 1.0
    assert report.overlap < 0.1
    assert report.latency_ratio > 0
    assert report.queries == 200
    refused = run("migrate", "commit", name, "--yes", code=ExitCode.FAILED_PRECONDITION)
    assert "overlap is" in refused
    assert "needed is at least 0.1" in refused
    run("migrate", "set", name, "overlap_min=0", "latency_ratio_max=1000")
    run("migrate", "validate", name)
    until(client, name, lambda one: one.migration.phase == "ready")
    run("migrate", "commit", name, "--yes", "--who", "bob")
    assert client.get_collection(name).serving == "new"
    (hit,) = client.search(name, text="package 77", k=1)  # embedded by the new model
    assert hit.id == "p77"
    run("migrate", "rollback", name, "--why", "a drill")
    assert client.get_collection(name).serving == "old"
    assert [ids_of(client, name, row) for row in range(0, ROWS, 30)] == before
    status = run("migrate", "status", name)
    assert [one["event"] for one in status["migration"]["history"]][-3:] == [
        "validated", "commit", "rollback",
    ]  # fmt: skip
    run("migrate", "abort", name, "--yes")
    until(client, name, lambda one: one.migration.phase == "aborted")
    assert [one.name for one in client.get_collection(name).usable_models] == ["old"]
    assert [ids_of(client, name, row) for row in range(0, ROWS, 30)] == before
    client.drop_collection(name)


def test_after_a_purge_the_old_vectors_are_gone(
    client: Client, run: Callable[..., Any], endpoint: EmbeddingServer
) -> None:
    name = "purged"
    fill(client, endpoint, name)
    run("migrate", "start", name, "--to", "new", "--set", "lacking_share_max=10%",
        "--set", "overlap_min=0", "--set", "latency_ratio_max=1000")  # fmt: skip
    until(client, name, lambda one: one.migration.phase == "ready")
    run("migrate", "commit", name, "--yes")
    run("migrate", "purge", name, "--yes")
    until(client, name, lambda one: one.migration.phase == "purged")
    assert run("migrate", "watch", name)["migration"]["phase"] == "purged"  # ends by itself
    assert [one.name for one in client.get_collection(name).usable_models] == ["new"]
    (hit,) = client.search(name, text="package 77", k=1)
    assert hit.id == "p77"
    assert client.count(name) == ROWS
    client.drop_collection(name)


def test_what_is_refused(client: Client, run: Callable[..., Any]) -> None:
    name = "refusing"
    client.create_collection(name, 4, model="old", attributes={"name": "keyword"})
    client.add_model(name, "outside", 5)
    client.upsert(name, ["a", "b"], [[1.0] * 4] * 2)
    estimate = run("migrate", "plan", name, "--to", "outside")
    assert "must come from clients" in estimate["warnings"][0]
    assert "it has 'old', 'outside'" in run(
        "migrate", "plan", name, "--to", "nwe", code=ExitCode.NOT_FOUND
    )
    start = ("migrate", "start", name, "--to", "outside")
    assert "canary_share" in run(*start, "--set", "canary_share=5%", code=ExitCode.UNIMPLEMENTED)
    assert name not in [one["collection"] for one in run("migrate", "list")]
    for command in ("status", "pause", "resume", "rollback", "watch"):
        assert "has no migration" in run("migrate", command, name, code=ExitCode.NOT_FOUND)
    for command in ("commit", "abort", "purge"):
        run("migrate", command, name, code=ExitCode.FAILED_PRECONDITION)  # nobody can say yes
        run("migrate", command, name, "--yes", code=ExitCode.NOT_FOUND)
    run("migrate", "set", name, "tasks_max=3", code=ExitCode.NOT_FOUND)
    run("migrate", "set", name, "tsks_max=3", code=ExitCode.INVALID_ARGUMENT)
    client.drop_collection(name)
