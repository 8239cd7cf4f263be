"""Searches while a collection changes its model: every record answered, by one of two models."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from annheal import Client
from annheal.client.results import SearchResult
from annheal.errors import FailedPrecondition
from annheal.model.topology.migration.state import Migration
from tests.support.cluster import EmbeddedServer

ROWS, DIMENSION, NEW_DIMENSION = 1_200, 24, 16
WAIT_S = 60.0
RNG = np.random.default_rng(12)


def unit(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    found = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found.astype(np.float32)


# The two models are related: the new one is a projection of the old one with noise of its own.
PROJECTION = np.linalg.qr(RNG.standard_normal((DIMENSION, NEW_DIMENSION)))[0]
OLD = unit(RNG.standard_normal((ROWS, DIMENSION)))
NEW = unit(OLD @ PROJECTION + 0.05 * RNG.standard_normal((ROWS, NEW_DIMENSION)))
QUERIES_OLD = unit(RNG.standard_normal((60, DIMENSION)))
QUERIES_NEW = unit(QUERIES_OLD @ PROJECTION)
IDS = [f"r{row}" for row in range(ROWS)]
MIGRATED = 700


@pytest.fixture
def client(embedded_server: EmbeddedServer) -> Iterator[Client]:
    with Client(embedded_server.address) as client:
        yield client


def migrating(
    client: Client, name: str, *, shard_count: int = 1, rows: int = ROWS, migrated: int = MIGRATED
) -> None:
    """Create a collection of which the first `migrated` records have a vector of the new model."""
    client.create_collection(
        name, DIMENSION, model="old", metric="cosine", shard_count=shard_count,
        attributes={"half": "keyword"},
    )  # fmt: skip
    halves = ["even" if row % 2 == 0 else "odd" for row in range(rows)]
    client.upsert(name, IDS[:rows], OLD[:rows], attributes={"half": halves})
    client.add_model(name, "new", NEW_DIMENSION, metric="cosine")
    client.update(name, IDS[:migrated], vectors=NEW[:migrated], model="new")
    client.start_migration(name, "new", who="test")
    wait_for(
        client,
        name,
        lambda one: one.coverage is not None and one.coverage.rows_lacking == rows - migrated,
    )


def wait_for(client: Client, name: str, condition: Callable[[Migration], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition(found := client.migration(name).migration):
        assert time.monotonic() < deadline_s, found
        time.sleep(0.1)  # until the condition holds, by the deadline above


@pytest.fixture(scope="module")
def half_migrated(embedded_server: EmbeddedServer) -> Iterator[str]:
    name = "dual-half"
    with Client(embedded_server.address) as client:
        migrating(client, name, shard_count=2)
        yield name
        client.drop_collection(name)


def check(result: SearchResult, ids: set[str]) -> None:
    """Each record of `ids` was found once, by the model that is due to it."""
    assert sorted(result.ids) == sorted(ids)
    assert result.joined is not None
    assert (result.joined.model, result.joined.fallback) == ("new", "old")
    for hit in result:
        assert hit.model == ("new" if int(hit.id[1:]) < MIGRATED else "old"), hit.id


def test_every_record_is_answered_by_one_of_the_models(client: Client, half_migrated: str) -> None:
    check(client.search(half_migrated, vector=QUERIES_NEW[0], model="new", k=ROWS), set(IDS))
    even = {record_id for record_id in IDS if int(record_id[1:]) % 2 == 0}
    check(
        client.search(
            half_migrated, vector=QUERIES_NEW[1], model="new", k=ROWS, filter='half = "even"'
        ),
        even,
    )
    client.delete(half_migrated, IDS[:50:5] + IDS[-50::5])
    left = set(IDS) - set(IDS[:50:5] + IDS[-50::5])
    check(client.search(half_migrated, vector=QUERIES_NEW[2], model="new", k=ROWS), left)
    client.upsert(half_migrated, IDS[:50:5], vectors={"old": OLD[:50:5], "new": NEW[:50:5]})
    client.upsert(half_migrated, IDS[-50::5], OLD[-50::5], model="old")
    check(client.search(half_migrated, vector=QUERIES_NEW[3], model="new", k=ROWS), set(IDS))


@pytest.mark.parametrize("migrated", [1, 20])
def test_a_few_pairs_are_enough_to_answer_over_all_records(client: Client, migrated: int) -> None:
    """Too few to measure anything by: lists are joined by ranks, and no record is left out."""
    name = f"dual-few-{migrated}"
    migrating(client, name, rows=25, migrated=migrated)
    found = client.search(name, vector=QUERIES_NEW[0], model="new", k=25)
    assert sorted(found.ids) == sorted(IDS[:25])
    assert found.joined is not None
    assert found.joined.joined_by == "ranks"
    assert sum(hit.model == "new" for hit in found) == migrated
    client.drop_collection(name)


def test_a_query_of_one_model_is_refused_while_nothing_has_both(client: Client) -> None:
    """An answer without the records of the other model would be wrong in silence."""
    name = "dual-none"
    client.create_collection(name, DIMENSION, model="old", metric="cosine")
    client.upsert(name, IDS[:20], OLD[:20])
    client.add_model(name, "new", NEW_DIMENSION, metric="cosine")
    client.start_migration(name, "new", who="test")
    with pytest.raises(FailedPrecondition, match="wait for the backfill"):
        client.search(name, vector=QUERIES_NEW[0], model="new", k=5)
    assert len(client.search(name, vector=QUERIES_OLD[0], k=5)) == 5
    client.abort_migration(name, who="test")
    client.drop_collection(name)


def test_the_old_model_answers_for_all_alone_before_the_commit(
    client: Client, half_migrated: str
) -> None:
    found = client.search(half_migrated, vector=QUERIES_OLD[0], k=10)
    assert found.joined is None
    assert [hit.model for hit in found] == [None] * 10
    truth = np.argsort(-(OLD @ QUERIES_OLD[0]))[:10]
    assert set(found.ids) == {IDS[row] for row in truth}


def test_the_joined_list_is_close_to_the_truth_of_the_new_model(
    client: Client, half_migrated: str
) -> None:
    """Half of the records have no new vector, so what they would score is an estimate."""
    k = 10
    truth = np.argsort(-(NEW @ QUERIES_NEW.T), axis=0)[:k].T
    batch = client.search_batch(half_migrated, QUERIES_NEW, model="new", k=k)
    found = np.mean(
        [
            len(set(result.ids) & {IDS[row] for row in rows}) / k
            for result, rows in zip(batch, truth, strict=True)
        ]
    )
    assert batch.joined is not None
    assert batch.joined.joined_by not in ("", "ranks")
    new_only = np.mean([np.mean(rows < MIGRATED) for rows in truth])
    assert found > new_only + 0.15, (found, new_only, batch.joined.joined_by)


def test_answers_have_the_vectors_and_columns_that_were_asked_for(
    client: Client, half_migrated: str
) -> None:
    query = QUERIES_NEW[5]
    plain = client.search(half_migrated, vector=query, model="new", k=30)
    assert plain.vectors is None
    rich = client.search(half_migrated, vector=query, model="new", k=30, include="all")
    assert rich.attributes is not None
    for hit in rich:
        row = int(hit.id[1:])
        assert hit.attributes == {"half": "even" if row % 2 == 0 else "odd"}
        if row < MIGRATED:
            assert hit.vector is not None
            np.testing.assert_allclose(hit.vector, NEW[row], atol=1e-5)
        else:
            assert hit.vector is None


def test_after_a_commit_old_and_new_queries_are_answered_over_all_records(client: Client) -> None:
    name = "dual-committed"
    migrating(client, name)
    client.update_migration(name, {"lacking_share_max": 1.0}, who="test")
    wait_for(client, name, lambda one: one.report is not None)
    client.commit_migration(name, who="test", why="half is enough here", force=True)
    assert client.get_collection(name).serving == "new"
    check(client.search(name, vector=QUERIES_NEW[0], k=ROWS), set(IDS))
    old = client.search(name, vector=QUERIES_OLD[0], model="old", k=ROWS)
    assert (sorted(old.ids), old.joined) == (sorted(IDS), None)
    # A record that only the new model knows is found by a query of the old one, too.
    client.upsert(name, ["fresh"], unit(QUERIES_OLD[:1] @ PROJECTION), model="new")
    deadline_s = time.monotonic() + WAIT_S
    while True:
        found = client.search(name, vector=QUERIES_OLD[0], model="old", k=10)
        if "fresh" in found.ids:
            break
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert found.joined is not None
    client.rollback_migration(name, who="test")
    assert client.get_collection(name).serving == "old"
    client.drop_collection(name)
