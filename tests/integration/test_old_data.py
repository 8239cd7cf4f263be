"""A data directory that an earlier version left, killed: everything in it is there, and heals."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from annheal import Client
from tests.golden.write_data_directory import (
    COLLECTIONS,
    DELETED,
    LATE,
    REPLACED,
    ROWS,
    SCHEMA,
    attributes_of,
    payload_of,
    record_id,
    vectors_of,
)
from tests.support.cluster import EmbeddedServer
from tests.support.processes import ProcessGroup

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "data-directory.tar.xz"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(GOLDEN) as packed:
        packed.extractall(folder, filter="data")
    with ProcessGroup() as group:
        server = EmbeddedServer(group, name="old", data_dir=folder).start()
        with Client(server.address) as client:
            yield client


def versions() -> dict[int, int]:
    """Return which version of every row was written last, of those that live."""
    written = {row: 0 for row in (*range(ROWS), *LATE)} | {row: 1 for row in REPLACED}
    return {row: version for row, version in written.items() if row not in DELETED}


def stored(client: Client, collection: str) -> dict[str, tuple[bytes, dict[str, Any], Any]]:
    found: dict[str, tuple[bytes, dict[str, Any], Any]] = {}
    for page in client.scan(collection, include="all"):
        for record in page:
            assert record.id not in found
            assert record.vector is not None
            vector = np.asarray(record.vector, dtype=np.float32).tobytes()
            found[record.id] = (vector, dict(record.attributes or {}), record.payload)
    return found


def expected() -> dict[str, tuple[bytes, dict[str, Any], Any]]:
    found = {}
    for row, version in versions().items():
        vector = vectors_of([row], version=version)[0]
        attributes = attributes_of(row, version=version)
        payload = payload_of(row, version=version)
        found[record_id(row)] = (vector.tobytes(), attributes, payload)
    return found


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_every_record_is_as_it_was_written_before_and_after_a_compaction(
    client: Client, collection: str
) -> None:
    assert_all_there(client, collection)
    assert {task.phase.value for task in client.compact(collection, full=True)} == {"published"}
    assert_all_there(client, collection)


def assert_all_there(client: Client, collection: str) -> None:
    found, should = stored(client, collection), expected()
    assert found.keys() == should.keys()
    for name, (vector, attributes, payload) in should.items():
        assert found[name][1:] == (attributes, payload)
        assert_same_direction(found[name][0], vector)


def assert_same_direction(found: bytes, written: bytes) -> None:
    """Cosine collections keep unit vectors; others keep what was written, bit by bit."""
    a, b = (np.frombuffer(one, dtype=np.float32) for one in (found, written))
    if found != written:
        np.testing.assert_allclose(a / np.linalg.norm(a), b / np.linalg.norm(b), atol=1e-6)


@pytest.mark.parametrize("collection", COLLECTIONS)
def test_searches_find_rows_of_segments_and_of_the_log(client: Client, collection: str) -> None:
    described = client.get_collection(collection)
    assert {field.name: field.type.value for field in described.schema} == SCHEMA
    for row in (1, REPLACED[3], LATE[0]):
        version = versions()[row]
        query = vectors_of([row], version=version)[0]
        if COLLECTIONS[collection]["metric"] != "inner_product":
            assert client.search(collection, vector=query, k=1)[0].id == record_id(row)
        hits = client.search(
            collection, vector=query, k=3, filter=f"number = {row * 10**12 + version}"
        )
        assert [hit.id for hit in hits] == ([] if row % 7 == 3 else [record_id(row)])


def test_settings_are_kept(client: Client) -> None:
    settings = client.get_collection("bytes").settings
    assert (settings.recall_objective, settings.storage.value) == (0.9, "int8")
