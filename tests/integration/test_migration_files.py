"""A backfill by files: texts out, vectors in, and what was changed meanwhile is left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.errors import InvalidArgument
from tests.support.cluster import EmbeddedServer
from tests.support.embedding_server import vector_of

NAME = "by-files"
ROWS, DIMENSION = 230, 8
IDS = [f"r{row}" for row in range(ROWS)]
NAMES = [None if row % 10 == 0 else f"name {row}" for row in range(ROWS)]
RNG = np.random.default_rng(3)


@pytest.fixture
def client(embedded_server: EmbeddedServer) -> Iterator[Client]:
    with Client(embedded_server.address) as client:
        client.create_collection(NAME, 4, model="old", attributes={"name": "keyword"})
        client.upsert(NAME, IDS, RNG.random((ROWS, 4)), attributes={"name": NAMES})
        client.add_model(NAME, "new", DIMENSION)
        yield client
        client.drop_collection(NAME)


@pytest.fixture
def run(embedded_server: EmbeddedServer) -> Callable[..., Any]:
    def run(*arguments: str, code: ExitCode = ExitCode.OK) -> Any:
        line = ["--address", embedded_server.address, "-o", "json", "migrate", *arguments]
        found = CliRunner().invoke(app, hoist(line))
        assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
        return json.loads(found.stdout) if code is ExitCode.OK else found.stderr

    return run


def embedded(folder: Path, target: Path) -> None:
    """Embed the exported texts, as a farm would."""
    target.mkdir()
    for file in sorted(folder.iterdir()):
        table = pq.read_table(file)
        vectors = [vector_of(text).tolist() for text in table.column("text").to_pylist()]
        table = table.drop_columns("text").append_column("vector", pa.array(vectors))
        pq.write_table(table, target / file.name)


def test_texts_go_out_and_vectors_come_in(
    client: Client, run: Callable[..., Any], tmp_path: Path
) -> None:
    texts, vectors = tmp_path / "texts", tmp_path / "vectors"
    export = ("export", NAME, str(texts), "--model", "new")
    assert "--source" in run(*export, code=ExitCode.INVALID_ARGUMENT)
    found = run(*export, "--source", "{name}", "--rows-per-file", "100")
    without = sum(name is None for name in NAMES)
    assert (found["records"], found["files"], found["without_text"]) == (ROWS - without, 3, without)
    assert "is missing" in found["without_text_named"][0]["reason"]
    assert "no empty folder" in run(*export, "--source", "{name}", code=ExitCode.CONFLICT)
    embedded(texts, vectors)

    client.update(NAME, ["r1"], attributes={"name": ["changed"]})
    client.delete(NAME, ["r2"])
    files = [str(file) for file in sorted(vectors.iterdir())]
    found = run("import", NAME, *files, "--model", "new")
    assert found["written"] == ROWS - without - 2
    assert (found["changed_meanwhile_named"], found["missing_named"]) == (["r1"], ["r2"])
    records = {one.id: one for one in client.get(NAME, IDS, model="new")}
    assert "r2" not in records
    for row, record_id in enumerate(IDS):
        if record_id == "r2":
            continue
        vector = records[record_id].vector
        if NAMES[row] is None or record_id == "r1":
            assert vector is None
        else:
            np.testing.assert_allclose(vector, vector_of(str(NAMES[row])), atol=1e-6)
    again = run("export", NAME, str(tmp_path / "again"), "--model", "new", "--source", "{name}")
    assert (again["records"], again["without_text"]) == (1, without)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": ["r1"], "version": [1]}, "vector: there is no such column"),
        ({"id": ["r1"], "version": [1], "vector": [[0.5] * 7]}, "has 7 floats, the model 8"),
        ({"id": ["r1", None], "version": [1, 1], "vector": [[0.5] * 8] * 2}, "is missing"),
        ({"id": ["r1"], "version": [1], "vector": [[float("nan")] * 8]}, "holds NaN or infinity"),
    ],
)
def test_files_that_cannot_be_right_are_refused(
    client: Client,
    run: Callable[..., Any],
    tmp_path: Path,
    columns: dict[str, list[Any]],
    message: str,
) -> None:
    file = tmp_path / "bad.parquet"
    pq.write_table(pa.table(columns), file)
    text = run("import", NAME, str(file), "--model", "new", code=ExitCode.INVALID_ARGUMENT)
    assert message in text
    assert client.get(NAME, ["r1"], model="new")[0].vector is None


def test_not_a_number_is_refused_and_never_taken_for_no_vector(client: Client) -> None:
    nan = np.full((1, DIMENSION), np.nan)
    with pytest.raises(InvalidArgument, match="holds nan at position 0"):
        client.update(NAME, ["r1"], vectors=nan, model="new")
    with pytest.raises(InvalidArgument, match="holds nan at position 0"):
        client.upsert(NAME, ["r1"], nan, model="new")
