"""The contract over every object store, the factory and the wrappers."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from annheal.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.objectstore.factory import open_object_store
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.protocol import ObjectStat, ObjectStore
from annheal.objectstore.wrappers import (
    CountingObjectStore,
    Fault,
    FaultKind,
    FaultyObjectStore,
    NoFaults,
    Operation,
    RandomFaults,
    ScriptedFaults,
)
from tests.contract.object_store_contract import (
    ObjectStoreContract,
    keys_of,
)
from tests.support.s3_server import S3Server

Result = TypeVar("Result")

# ------------------------------------------------------------------------------ the contract


class TestLocalObjectStore(ObjectStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = LocalObjectStore(tmp_path / "objects")
        yield store
        await store.close()


@pytest.mark.s3
class TestS3ObjectStore(ObjectStoreContract):
    @pytest.fixture
    async def store(self, s3_server: S3Server) -> AsyncIterator[ObjectStore]:
        store = open_object_store(s3_server.url(prefix=f"contract/{uuid.uuid4().hex}"))
        yield store
        await store.close()


class TestFaultyObjectStoreWithoutFaults(ObjectStoreContract):
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        store = FaultyObjectStore(LocalObjectStore(tmp_path / "objects"), NoFaults())
        yield CountingObjectStore(store)
        await store.close()


class TestFaultyObjectStoreWithFaults(ObjectStoreContract):
    """A caller that repeats retryable errors sees the contract hold."""

    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[ObjectStore]:
        plan = RandomFaults(
            random.Random(7), unavailable_rate=0.15, lost_answer_rate=0.15, latency_s_max=0.001
        )
        store = FaultyObjectStore(LocalObjectStore(tmp_path / "objects"), plan)
        yield RepeatingObjectStore(store)
        await store.close()


class RepeatingObjectStore:
    """Repeats each call until it gives an answer that is not retryable."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        await self._repeat(lambda: self._inner.put_if_absent(key, body))

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        await self._repeat(lambda: self._inner.put_file_if_absent(key, path))

    async def get(self, key: str) -> bytes:
        return await self._repeat(lambda: self._inner.get(key))

    async def fetch(self, key: str, destination: Path) -> Path:
        return await self._repeat(lambda: self._inner.fetch(key, destination))

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        while True:
            try:
                async for stat in self._inner.list(prefix, after=after):
                    yield stat
                    after = stat.key
                return
            except Unavailable:
                continue

    async def delete(self, keys: Sequence[str]) -> None:
        await self._repeat(lambda: self._inner.delete(keys))

    async def close(self) -> None:
        await self._inner.close()

    async def _repeat(self, call: Callable[[], Awaitable[Result]]) -> Result:
        for _ in range(50):
            try:
                return await call()
            except (Unavailable, UnknownOutcome):
                continue
        raise AssertionError("50 faults in a row")


# ------------------------------------------------------------------------------ factory


async def test_urls_of_directories(tmp_path: Path) -> None:
    for url in (
        str(tmp_path / "a b"),
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a%20b",
    ):
        store = open_object_store(url)
        assert isinstance(store, LocalObjectStore)
        await store.put_if_absent("object", b"body")
        await store.close()
    assert (tmp_path / "a b" / "object").read_bytes() == b"body"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "file://",
        "file://host/path",
        "file:///path?x=1",
        "gs://bucket",
        "http://127.0.0.1/bucket",
        "s3://",
        "s3:///prefix",
        "s3://key:secret@bucket",
        "s3://bucket/a//b",
        "s3://bucket/..",
        "s3://bucket?unknown=1",
        "s3://bucket?region=",
        "s3://bucket?region=a&region=b",
        "s3://bucket?allow_http=yes",
        "s3://bucket?endpoint=http%3A%2F%2F127.0.0.1%3A1",
        "s3://bucket?endpoint=ftp%3A%2F%2F127.0.0.1&allow_http=true",
        "s3://bucket?endpoint=https%3A%2F%2Fkey%3Asecret%40host",
    ],
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        open_object_store(url)
    assert "key:secret" not in str(caught.value)


# ------------------------------------------------------------------------------ wrappers


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalObjectStore]:
    store = LocalObjectStore(tmp_path / "objects")
    yield store
    await store.close()


async def test_scripted_faults_happen_in_order(local: LocalObjectStore) -> None:
    script = [Fault(FaultKind.UNAVAILABLE), Fault(FaultKind.LOST_ANSWER)]
    store = FaultyObjectStore(local, ScriptedFaults(script, operations=[Operation.PUT]))
    with pytest.raises(Unavailable):
        await store.put_if_absent("object", b"body")
    assert await keys_of(store) == []
    with pytest.raises(UnknownOutcome):
        await store.put_if_absent("object", b"body")
    assert await store.get("object") == b"body"
    await store.put_if_absent("object", b"body")


async def test_random_faults_reach_every_operation(local: LocalObjectStore, tmp_path: Path) -> None:
    await local.put_if_absent("object", b"body")
    source = tmp_path / "source"
    source.write_bytes(b"body")
    store = FaultyObjectStore(local, RandomFaults(random.Random(1), lost_answer_rate=1.0))
    for put in (store.put_if_absent("new", b"x"), store.put_file_if_absent("file", source)):
        with pytest.raises(UnknownOutcome):
            await put
    calls: list[Awaitable[object]] = [
        store.get("object"),
        store.fetch("object", tmp_path / "copy"),
        keys_of(store),
        store.delete(["object"]),
    ]
    for call in calls:
        with pytest.raises(Unavailable):
            await call
    assert await keys_of(local) == ["file", "new"]


async def test_counts_calls_failures_and_bytes(local: LocalObjectStore, tmp_path: Path) -> None:
    store = CountingObjectStore(local)
    await store.put_if_absent("object", b"12345")
    with pytest.raises(AlreadyExists):
        await store.put_if_absent("object", b"1")
    await store.get("object")
    await store.fetch("object", tmp_path / "copy")
    await keys_of(store)
    await store.delete(["object"])
    with pytest.raises(NotFound):
        await store.get("object")
    counted = {
        operation: (count.calls, count.failures, count.size_bytes)
        for operation, count in store.counts.items()
    }
    assert counted == {
        Operation.PUT: (2, 1, 5),
        Operation.PUT_FILE: (0, 0, 0),
        Operation.GET: (2, 1, 5),
        Operation.FETCH: (1, 0, 5),
        Operation.LIST: (1, 0, 0),
        Operation.DELETE: (1, 0, 0),
    }
