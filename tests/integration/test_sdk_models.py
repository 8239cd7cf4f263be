"""Models of a collection come and go, by the SDK and the command line, on a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from annheal.model.records import Float32Matrix
from tests.support.cluster import EmbeddedServer

_numbers = count()


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


ROWS = 50
IDS = [f"r{row:02}" for row in range(ROWS)]
OLD = np.random.default_rng(1).standard_normal((ROWS, 6)).astype(np.float32)
NEW = np.random.default_rng(2).standard_normal((ROWS, 3)).astype(np.float32)
WITHOUT_NEW, WITHOUT_OLD = set(range(0, ROWS, 5)), set(range(1, ROWS, 5))


def gapped(vectors: Float32Matrix, without: set[int]) -> list[Float32Matrix | None]:
    return [None if row in without else vectors[row] for row in range(ROWS)]


@pytest.fixture
def two(client: Client) -> Iterator[str]:
    """A collection of two models; some records lack the one, some the other."""
    name = f"models-{next(_numbers)}"
    client.create_collection(
        name, 6, metric="l2", model="old", shard_count=2, attributes={"row": "int64"}
    )
    client.add_model(name, "new", 3, metric="inner_product")
    client.upsert(
        name,
        IDS,
        {"new": gapped(NEW, WITHOUT_NEW), "old": gapped(OLD, WITHOUT_OLD)},
        attributes={"row": range(ROWS)},
        payloads=[{"row": row} for row in range(ROWS)],
        batch_rows=7,
    )
    yield name
    client.drop_collection(name)


def nearest_old(query: Float32Matrix, vectors: dict[str, Float32Matrix]) -> list[str]:
    return sorted(vectors, key=lambda one: (float(((vectors[one] - query) ** 2).sum()), one))


def check_reads(client: Client, name: str, stored: dict[str, dict[str, Float32Matrix]]) -> None:
    """Every read agrees with `stored`, the vectors by model and id."""
    query = np.ones(6, dtype=np.float32)
    expected = nearest_old(query, stored["old"])
    for model in (None, "old"):
        found = client.search(name, query, k=ROWS, model=model, include="vector")
        assert found.ids == expected
        for hit in found:
            np.testing.assert_array_equal(hit.vector, stored["old"][hit.id])
    dots = {one: float(vector.sum()) for one, vector in stored["new"].items()}
    by_new = client.search(name, np.ones(3), k=ROWS, model="new", include="vector")
    assert by_new.ids == sorted(dots, key=lambda one: (-dots[one], one))
    for hit in by_new:
        np.testing.assert_array_equal(hit.vector, stored["new"][hit.id])
    batch = client.search_batch(name, ids=sorted(stored["new"])[:3], model="new", k=1)
    assert len(batch) == 3

    everything = client.get(name, IDS, model=["new", "old"])
    pages = [one for page in client.scan(name, model=["new", "old"]) for one in page]
    assert sorted(one.id for one in pages) == sorted(one.id for one in everything)
    for record in (*everything, *pages):
        assert record.vectors is not None
        for model, vector in record.vectors.items():
            wanted = stored[model].get(record.id)
            assert (vector is None) == (wanted is None), (record.id, model)
            assert wanted is None or np.array_equal(np.asarray(vector), wanted)
        assert record.payload == {"row": int(record.id[1:])}
    for model, vectors in stored.items():
        for record in client.get(name, IDS, model=model):
            assert (record.vector is None) == (record.id not in vectors)


def test_records_have_vectors_of_two_models_in_memory_and_in_segments(
    client: Client, two: str
) -> None:
    stored = {
        "old": {IDS[row]: OLD[row] for row in range(ROWS) if row not in WITHOUT_OLD},
        "new": {IDS[row]: NEW[row] for row in range(ROWS) if row not in WITHOUT_NEW},
    }
    check_reads(client, two, stored)
    client.flush(two)
    check_reads(client, two, stored)

    # One model's vector is set, the rest stays; whole records are replaced, with what they had.
    lacked = sorted(WITHOUT_NEW)
    client.update(two, [IDS[row] for row in lacked], vectors=NEW[lacked], model="new")
    stored["new"] |= {IDS[row]: NEW[row] for row in lacked}
    client.update(two, [IDS[2], IDS[3]], vectors={"old": [OLD[0], None], "new": [None, NEW[0]]})
    stored["old"][IDS[2]], stored["new"][IDS[3]] = OLD[0], NEW[0]
    client.upsert(two, [IDS[4]], [OLD[5]], attributes={"row": [4]}, payloads=[{"row": 4}])
    stored["old"][IDS[4]] = OLD[5]
    del stored["new"][IDS[4]]
    check_reads(client, two, stored)
    client.flush(two)
    client.compact(two, full=True)
    check_reads(client, two, stored)


def test_vectors_of_another_model_are_refused_with_those_there_are(
    client: Client, two: str
) -> None:
    there = r"'old' \(6 floats\), 'new' \(3 floats\)"
    for call in (
        lambda: client.search(two, np.ones(6), model="other"),
        lambda: client.search(two, id=IDS[2], model="other"),
        lambda: client.upsert(two, ["a"], np.ones((1, 6)), model="other"),
        lambda: client.update(two, [IDS[0]], vectors={"other": [[1.0]]}),
    ):
        with pytest.raises(InvalidArgument, match=there):
            call()
    with pytest.raises(InvalidArgument, match="did you mean new"):
        client.get(two, IDS, model="nwe")
    for call in (
        lambda: client.search(two, np.ones(3)),
        lambda: client.upsert(two, ["a"], np.ones((1, 3))),
        lambda: client.upsert(two, ["a"], {"new": np.ones((1, 6))}),
    ):
        with pytest.raises(InvalidArgument, match=r"has dimension \d; embed with that model"):
            call()
    with_nan = NEW.copy()
    with_nan[41, 0] = np.nan
    with pytest.raises(InvalidArgument, match=r"vectors\['new'\]\[41\]: holds nan"):
        client.upsert(two, IDS, {"old": OLD, "new": with_nan})
    with pytest.raises(InvalidArgument, match=r"vectors\[1\]: is missing for every model"):
        client.upsert(two, ["a", "b"], {"old": [OLD[0], None]})
    with pytest.raises(NotFound, match="has no vector of model 'new'"):
        client.search(two, id=IDS[0], model="new")
    assert client.count(two) == ROWS


def test_a_removed_model_is_not_read_any_more(client: Client, two: str) -> None:
    client.remove_model(two, "new")
    with pytest.raises(InvalidArgument, match=r"there are: old"):
        client.get(two, IDS, model="new")
    with pytest.raises(InvalidArgument, match="is 'new', but the models"):
        client.search(two, np.ones(3), model="new")
    for _ in range(2):
        found = client.search(two, np.ones(6, dtype=np.float32), k=ROWS)
        assert len(found) == ROWS - len(WITHOUT_OLD)
        assert len(client.get(two, IDS)) == ROWS
        client.flush(two)
        client.compact(two, full=True)


def test_records_that_lack_a_vector_are_counted(
    client: Client, two: str, run: Callable[..., Any]
) -> None:
    for _ in range(2):  # in memory, then in segments
        old, new = run("models", "list", two)
        assert (old["rows"], old["lacking"]) == (ROWS - len(WITHOUT_OLD), len(WITHOUT_OLD))
        assert (new["rows"], new["lacking"]) == (ROWS - len(WITHOUT_NEW), len(WITHOUT_NEW))
        measured = client.measure_recall(two, sample_size=ROWS, k=5)
        assert measured.recall == 1.0, "queries are vectors that there are"
        client.flush(two)


def test_vectors_of_models_on_the_command_line(
    client: Client, two: str, run: Callable[..., Any], embedded_server: EmbeddedServer
) -> None:
    (one,) = run("get", two, IDS[0], "--model", "new")
    assert "vector" not in one, "it has none"
    (one,) = run("get", two, IDS[2], "--model", "new")
    np.testing.assert_array_equal(np.float32(one["vector"]), NEW[2])
    both = run("get", two, *IDS[:3], "--model", "new", "--model", "old")
    assert [sorted(name for name, v in r["vector"].items() if v) for r in both] == [
        ["old"], ["new"], ["new", "old"],
    ]  # fmt: skip
    found = run("search", two, "--id", IDS[2], "--model", "new", "-k", "1", "-i", "vector")
    assert len(found["queries"][0][0]["vector"]) == 3
    line = ["--address", embedded_server.address, "get", two, *IDS[:3]]
    shown = CliRunner().invoke(app, hoist([*line, "--model", "new", "--model", "old"]))
    assert "VECTOR new" in shown.stdout
    client.flush(two)


def test_lines_with_vectors_by_model_are_imported(
    client: Client,
    two: str,
    run: Callable[..., Any],
    tmp_path: Path,
    embedded_server: EmbeddedServer,
) -> None:
    line = ["--address", embedded_server.address, "-o", "json", "scan", two]
    printed = CliRunner().invoke(app, hoist([*line, "--model", "new", "--model", "old"])).stdout
    file = tmp_path / "records.jsonl"
    file.write_text(printed)
    before = {record.id: record for record in client.get(two, IDS, model=["new", "old"])}
    client.delete(two, IDS)
    run("import", str(file), "-c", two)
    for record in client.get(two, IDS, model=["new", "old"]):
        wanted = before.pop(record.id)
        assert (record.attributes, record.payload) == (wanted.attributes, wanted.payload)
        assert record.vectors is not None
        assert wanted.vectors is not None
        for model, vector in record.vectors.items():
            assert np.array_equal(np.asarray(vector), np.asarray(wanted.vectors[model]))
    assert not before

    def refused(*more: str) -> str:
        command = ["--address", embedded_server.address, "import", str(file), *more]
        found = CliRunner().invoke(app, hoist(command))
        assert found.exit_code == ExitCode.INVALID_ARGUMENT
        return " ".join(found.stderr.split())

    for vector, words in (
        ('{"newer": [1, 2, 3]}', "is of model 'newer'; there are old, new"),
        ('{"new": [1, 2]}', "vector.new has 2 numbers, not 3"),
        ('{"new": "x"}', "must be an object with a list of numbers"),
        ('{"new": null}', "records.jsonl:1: vectors[0]: is missing for every model"),
    ):
        file.write_text(f'{{"id": "a", "vector": {vector}}}\n')
        assert words in refused("-c", two)
    assert "add its models first" in refused("-c", "models-never", "--create")
    file.write_text('{"id": "a", "vector": [1, 2, 3]}\n')
    run("import", str(file), "-c", two, "--model", "new")
    assert "its vectors have 3 floats" in refused("-c", two)


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
