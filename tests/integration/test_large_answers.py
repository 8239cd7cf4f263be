"""300 records of 1 MiB, more than any one answer holds: everything can be read all the same."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import numpy as np
import pytest
from typer.testing import CliRunner

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.errors import InvalidArgument
from annheal.model.limits import PAYLOAD_BYTES_MAX, SCAN_PAGE_BYTES
from annheal.model.values.answer_size import ANSWER_TOO_LARGE
from tests.support.cluster import EmbeddedServer

ROWS, DIMENSION = 300, 4
IDS = [f"r{row}" for row in range(ROWS)]


@pytest.fixture(scope="module")
def large(embedded_server: EmbeddedServer) -> Iterator[tuple[Client, str]]:
    """Half of the records in segments, half in memory."""
    name = "large"
    payload = b'"' + b"p" * (PAYLOAD_BYTES_MAX - 2) + b'"'
    vectors = np.random.default_rng(2).standard_normal((ROWS, DIMENSION))
    with Client(embedded_server.address, timeout_s=300) as client:
        client.create_collection(
            name, DIMENSION, metric="l2", attributes={"n": "int64"}, shard_count=2
        )
        for first in (0, ROWS // 2):
            rows = range(first, first + ROWS // 2)
            client.upsert(
                name,
                [IDS[row] for row in rows],
                vectors[rows.start : rows.stop],
                attributes={"n": list(rows)},
                payloads=[payload] * len(rows),
            )
            if first == 0:
                client.flush(name)
        yield client, name
        client.drop_collection(name)


def test_scans_go_on_behind_short_pages(large: tuple[Client, str]) -> None:
    client, name = large
    seen: list[str] = []
    for page in client.scan(name, page_rows=10_000):
        assert page.payloads is not None
        assert page.payloads.nbytes <= SCAN_PAGE_BYTES
        seen += page.ids
    assert sorted(seen) == sorted(IDS)


def test_reads_by_id_come_in_parts(large: tuple[Client, str]) -> None:
    client, name = large
    found = client.get(name, IDS)
    assert found.ids == IDS
    assert found.payloads is not None
    assert found.payloads.nbytes > ROWS * (PAYLOAD_BYTES_MAX - 2)


def test_searches_say_what_to_ask_for_instead(large: tuple[Client, str]) -> None:
    client, name = large
    query = np.zeros(DIMENSION)
    with pytest.raises(InvalidArgument, match="fewer hits") as caught:
        client.search(name, query, k=ROWS, include="payload")
    assert caught.value.reason == ANSWER_TOO_LARGE
    hits = client.search(name, query, k=ROWS, include="n")
    assert len(hits) == ROWS
    assert len(client.get(name, hits.ids[:3], include="payload")) == 3
    assert len(client.search(name, query, k=50, include="payload")) == 50


def test_the_command_line_reads_all_of_them(
    large: tuple[Client, str],
    embedded_server: EmbeddedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, name = large
    for variable in os.environ:
        if variable.startswith("ANNHEAL_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("ANNHEAL_ADDRESS", embedded_server.address)
    scanned = CliRunner().invoke(app, hoist(["scan", name, "-i", "all", "-o", "json"]))
    assert scanned.exit_code == 0, scanned.stderr
    assert sorted(json.loads(line)["id"] for line in scanned.stdout.splitlines()) == sorted(IDS)
