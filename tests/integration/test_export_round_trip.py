"""Export and import are inverse: whatever a collection holds comes back equal, bit for bit."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from annheal import Client
from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.cli.exports import find_export
from annheal.cli.user_commands import exporting
from annheal.client import Record
from annheal.model.collection import Collection
from tests.support.cluster import EmbeddedServer

Run = Callable[..., Result]
DIMENSION = 3
_numbers = count()


@pytest.fixture
def run(embedded_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> Run:
    for name in os.environ:
        if name.startswith("ANNHEAL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ANNHEAL_ADDRESS", embedded_server.address)

    def run(*arguments: object, code: int = 0) -> Result:
        found = CliRunner().invoke(app, hoist([str(one) for one in arguments]))
        assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
        return found

    return run


@pytest.fixture
def client(embedded_server: EmbeddedServer) -> Iterator[Client]:
    with Client(embedded_server.address) as client:
        yield client


def new_name() -> str:
    return f"export-{next(_numbers)}"


def held(client: Client, name: str) -> dict[str, tuple[Any, Any, bytes]]:
    """Everything of every record, vectors as bytes; -0.0 and 0.0 are told apart."""
    return {
        record.id: (record.attributes, repr(record.payload), vector_bytes(record))
        for page in client.scan(name)
        for record in page
    }


def vector_bytes(record: Record) -> bytes:
    assert record.vector is not None
    return record.vector.tobytes()


def comparable(collection: Collection) -> tuple[Any, ...]:
    c = collection
    return (c.models, c.schema, c.shard_count, c.index, c.settings)


KINDS: dict[str, st.SearchStrategy[Any]] = {
    "keyword": st.text(st.characters(codec="utf-8"), max_size=8),
    "keyword_list": st.lists(st.text(st.characters(codec="utf-8"), max_size=4), max_size=3),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
    "bool": st.booleans(),
    "timestamp": st.datetimes(timezones=st.just(UTC)),
}
PAYLOADS = st.none() | st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def contents(draw: st.DrawFn) -> dict[str, Any]:
    """A collection: what it is made of, and its records."""
    names = st.sampled_from(["id", "vector", "payload", "attributes", "year", "_a", "B9"])
    schema = draw(st.dictionaries(names, st.sampled_from(sorted(KINDS)), max_size=4))
    ids = draw(
        st.lists(
            st.text(st.characters(codec="utf-8"), min_size=1, max_size=12), max_size=9, unique=True
        )
    )
    # Cosine cannot take a vector without a length.
    number = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)
    vector = st.lists(number, min_size=DIMENSION, max_size=DIMENSION).filter(any)
    return {
        "metric": draw(st.sampled_from(["cosine", "l2", "inner_product"])),
        "shards": draw(st.integers(1, 3)),
        "objective": draw(st.floats(0.5, 1.0)),
        "model": draw(st.sampled_from(["default", "a model/with: signs"])),
        "schema": schema,
        "ids": ids,
        "vectors": [draw(vector) for _ in ids],
        "attributes": {
            name: [draw(st.none() | KINDS[kind]) for _ in ids] for name, kind in schema.items()
        },
        "payloads": [draw(PAYLOADS) for _ in ids],
    }


@settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking asks a server for minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(made=contents(), format=st.sampled_from(["parquet", "jsonl"]))
def test_random_collections_come_back_equal(
    run: Run, client: Client, tmp_path: Path, made: dict[str, Any], format: str
) -> None:
    first, second = new_name(), new_name()
    original = client.create_collection(
        first,
        DIMENSION,
        metric=made["metric"],
        attributes=made["schema"],
        shard_count=made["shards"],
        model=made["model"],
        index={"m": 8, "ef_construction": 40},
        settings={"recall_objective": made["objective"], "storage": "fp16"},
    )
    if made["ids"]:
        client.upsert(
            first,
            made["ids"],
            np.array(made["vectors"], dtype=np.float32),
            attributes=made["attributes"],
            payloads=made["payloads"],
        )
    folder = tmp_path / first
    run("export", first, "--output", folder, "--format", format)
    run("import", folder, "-c", second, "--create")
    try:
        assert comparable(client.get_collection(second)) == comparable(original)
        expected = held(client, first)
        assert len(expected) == len(made["ids"])
        assert held(client, second) == expected
        # The whole again, into what is there: nothing changes.
        run("import", folder, "-c", second)
        assert held(client, second) == expected
    finally:
        client.drop_collection(first)
        client.drop_collection(second)
        shutil.rmtree(folder)


@pytest.fixture
def filled(client: Client) -> str:
    """A collection of 500 records on two shards."""
    name = new_name()
    client.create_collection(
        name, DIMENSION, attributes={"n": "int64", "at": "timestamp"}, shard_count=2
    )
    client.upsert(
        name,
        [f"r{row}" for row in range(500)],
        np.random.default_rng(1).standard_normal((500, DIMENSION)),
        attributes={
            "n": list(range(500)),
            "at": [datetime(2024, 1, 1, 0, 0, row % 60, row, tzinfo=UTC) for row in range(500)],
        },
        payloads=[{"text": f"number {row}"} if row % 3 else None for row in range(500)],
    )
    return name


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_an_interrupted_export_goes_on(
    run: Run,
    client: Client,
    filled: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
) -> None:
    folder = tmp_path / "out"
    ask = ("export", filled, "--output", folder, "--format", format)
    monkeypatch.setattr(exporting, "PART_BYTES", 1)
    monkeypatch.setattr(exporting, "PAGE_ROWS", 100)
    closing = exporting._close_part
    calls = count(1)

    def interrupted(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 4:
            raise KeyboardInterrupt
        return closing(*arguments, **named)

    monkeypatch.setattr(exporting, "_close_part", interrupted)
    said = run(*ask, code=ExitCode.INTERRUPTED)
    assert "The same command goes on" in said.stderr
    assert not folder.exists()
    assert len(list((tmp_path / "out.partial").glob("part-*"))) == 4
    monkeypatch.setattr(exporting, "_close_part", closing)
    other = "jsonl" if format == "parquet" else "parquet"
    said = run(*ask[:-1], other, code=ExitCode.FAILED_PRECONDITION)
    assert "--restart" in said.stderr
    report = json.loads(run(*ask, "-o", "json").stdout)
    assert report["rows"] == 500
    assert 100 <= report["resumed_rows"] < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert not list(folder.glob("*.tmp"))
    # What is there is not overwritten, unless somebody says so.
    assert "--force" in run(*ask, code=ExitCode.CONFLICT).stderr
    client.delete(filled, ["r1"])
    run(*ask, "--force")
    description = find_export(folder)
    assert description is not None
    assert description.rows == 499
    copy = new_name()
    run("import", folder, "-c", copy, "--create", "--skip-rows", 250)
    run("import", folder, "-c", copy, "--limit", 250)
    assert held(client, copy) == held(client, filled)


def test_damaged_and_unfit_exports_are_refused_before_anything_is_written(
    run: Run, client: Client, filled: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    run("export", filled, "--output", folder)
    other = new_name()
    client.create_collection(other, DIMENSION, metric="l2", attributes={"n": "float64"})
    said = run("import", folder, "-c", other, code=ExitCode.INVALID_ARGUMENT).stderr
    for word in ("metric l2", "attribute n is float64", "attribute at is not declared"):
        assert word in said
    said = run(
        *("import", folder, "-c", other, "--attributes", "n"), code=ExitCode.INVALID_ARGUMENT
    ).stderr
    assert "columns are known" in said
    (part,) = folder.glob("part-*")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    copy = new_name()
    said = run("import", folder, "-c", copy, "--create", code=ExitCode.DATA_CORRUPTION).stderr
    assert "SHA-256" in said
    assert "No record was written" in said
    part.write_bytes(content[:-1])
    run("import", folder, "-c", copy, code=ExitCode.DATA_CORRUPTION)
    (folder / "_export.json").write_text("{")
    run("import", folder, "-c", copy, code=ExitCode.INVALID_ARGUMENT)
    # A folder that is no export is never replaced.
    (tmp_path / "mine").mkdir()
    ask = ("export", filled, "--output", tmp_path / "mine", "--force")
    assert "no export" in run(*ask, code=ExitCode.FAILED_PRECONDITION).stderr


def test_what_scan_prints_can_be_imported(
    run: Run, client: Client, filled: str, tmp_path: Path
) -> None:
    file = tmp_path / "scan.jsonl"
    file.write_text(run("scan", filled, "--include", "all", "-o", "json").stdout)
    copy = new_name()
    run("import", file, "-c", copy, "--create")
    schema = {field.name: field.type for field in client.get_collection(copy).schema}
    assert schema == {"n": "int64", "at": "timestamp"}
    assert held(client, copy) == held(client, filled)


def test_pages_of_the_sdk_written_as_parquet_can_be_imported(
    run: Run, client: Client, filled: str, tmp_path: Path
) -> None:
    pages = list(client.scan(filled))
    file = tmp_path / "pages.parquet"
    tables = [
        pa.table(
            {
                "id": page.ids,
                "vector": list(page.vectors if page.vectors is not None else ()),
                "n": page.attributes["n"] if page.attributes is not None else None,
                "at": page.attributes["at"] if page.attributes is not None else None,
                "payload": page.payloads,
            }
        )
        for page in pages
    ]
    pq.write_table(pa.concat_tables(tables), file)
    copy = new_name()
    run("import", file, "-c", copy, "--create")
    assert held(client, copy) == held(client, filled)


def test_parts_are_read_by_other_tools(run: Run, filled: str, tmp_path: Path) -> None:
    run("export", filled, "--output", tmp_path / "out")
    table = pq.read_table(tmp_path / "out")
    assert table.column_names == ["id", "vector", "attributes", "payload"]
    assert len(table) == 500
    # One part alone is a file as any other.
    (part,) = (tmp_path / "out").glob("*.parquet")
    alone = new_name()
    run("import", part, "-c", alone, "--create")
    assert json.loads(run("count", alone, "-o", "json").stdout) == {"count": 500}


def test_an_import_brings_the_embedder_back(run: Run, client: Client, tmp_path: Path) -> None:
    name, other = new_name(), new_name()
    embedder = {
        "kind": "openai",
        "url": "http://127.0.0.1:9/v1",
        "remote_model": "m",
        "query_prefix": "query: ",
        "batch_texts": 7,
    }
    created = client.create_collection(
        name,
        DIMENSION,
        model="m",
        embedder=embedder,
        source="{title}",
        attributes={"title": "keyword"},
    )
    client.upsert(name, ["a"], [[1.0, 0.0, 0.0]], attributes={"title": ["A"]})
    run("export", name, "--output", tmp_path / "out")
    run("import", tmp_path / "out", "--collection", other, "--create")
    restored = client.get_collection(other)
    assert restored.text_models == created.text_models
    assert restored.text_models[0].embedder.batch_texts == 7
    run("collection", "update", other, "--embedder-option", "batch_texts=9")
    assert client.get_collection(other).text_models[0].embedder.batch_texts == 9
    run("collection", "update", other, "--embedder-option", "kind=onnx", code=4)
    # Nobody answers at that address, which the health of a server that others use would say.
    for one in (name, other):
        client.drop_collection(one)


@pytest.mark.parametrize("format", ["parquet", "jsonl"])
def test_vectors_of_all_models_come_back_and_the_same_model_serves(
    client: Client, run: Run, tmp_path: Path, format: str
) -> None:
    name, copy = new_name(), new_name()
    client.create_collection(name, 3, model="old/v1", metric="l2", attributes={"year": "int64"})
    client.add_model(name, "new", 2)
    old = [[1.0, 2.0, 3.0], None, [7.0, 8.0, 9.5], None]
    new = [None, [0.6, 0.8], [1.0, 0.0], [0.0, -1.0]]
    ids = ["a", "b", "c", "ß"]
    client.upsert(name, ids, {"old/v1": old, "new": new}, attributes={"year": [1, 2, None, 4]})
    target = tmp_path / "export"
    run("export", name, "--output", target, "--format", format)
    description = find_export(target)
    assert description is not None
    assert description.annheal_export == 2
    for _ in range(2):  # into a new collection, and into the one that is there then
        run("import", target, "-c", copy, "--create")
    found, original = client.get_collection(copy), client.get_collection(name)
    assert (found.models, found.serving) == (original.models, "old/v1")
    models = ["old/v1", "new"]
    for mine, theirs in zip(
        client.get(copy, ids, model=models), client.get(name, ids, model=models), strict=True
    ):
        assert (mine.id, mine.attributes) == (theirs.id, theirs.attributes)
        assert mine.vectors is not None
        assert theirs.vectors is not None
        for model in models:
            np.testing.assert_array_equal(mine.vectors[model], theirs.vectors[model])  # type: ignore[arg-type]
    other = new_name()
    client.create_collection(other, 3, model="old/v1", metric="l2", attributes={"year": "int64"})
    refused = run("import", target, "-c", other, code=ExitCode.INVALID_ARGUMENT)
    assert "it has no model new" in refused.stderr
