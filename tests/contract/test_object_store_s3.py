"""What the S3 object store promises beyond the contract: lost answers, uploads in parts."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from annheal.errors import (
    AlreadyExists,
    FailedPrecondition,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.objectstore.factory import open_object_store
from annheal.objectstore.s3 import S3ObjectStore, S3Settings
from tests.contract.object_store_contract import (
    BIG_BYTES,
    keys_of,
    start_python,
)
from tests.support.s3_server import S3Server


class CuttingProxy:
    """Passes TCP connections on to a server, and can lose the answers to the next PUTs."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.answers_to_lose = 0
        self.lost = 0

    async def __aenter__(self) -> CuttingProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    @property
    def endpoint(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        lose = False

        async def requests() -> None:
            nonlocal lose
            while chunk := await reader.read(1 << 16):
                if chunk.startswith(b"PUT ") and self.answers_to_lose > 0:
                    self.answers_to_lose -= 1
                    lose = True
                server_writer.write(chunk)
                await server_writer.drain()

        async def answers() -> None:
            while chunk := await server_reader.read(1 << 16):
                if lose:
                    # The server has answered, so the effect is there; the client sees a cut.
                    self.lost += 1
                    return
                writer.write(chunk)
                await writer.drain()

        sides = [asyncio.create_task(requests()), asyncio.create_task(answers())]
        try:
            await asyncio.wait(sides, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for side in sides:
                side.cancel()
            await asyncio.gather(*sides, return_exceptions=True)
            for end in (writer, server_writer):
                end.close()
            self._tasks.discard(task)


def s3_settings(server: S3Server, endpoint: str | None = None) -> S3Settings:
    return S3Settings(
        bucket="annheal",
        prefix=f"extra/{uuid.uuid4().hex}",
        endpoint=endpoint or server.endpoint,
        region="us-east-1",
        allow_http=True,
    )


@pytest.fixture
async def s3(s3_server: S3Server) -> AsyncIterator[S3ObjectStore]:
    store = S3ObjectStore(s3_settings(s3_server))
    yield store
    await store.close()


@pytest.mark.s3
async def test_lost_answer_of_a_put_is_settled_by_reading_back(s3_server: S3Server) -> None:
    port = int(s3_server.endpoint.rpartition(":")[2])
    async with CuttingProxy(port) as proxy:
        store = S3ObjectStore(s3_settings(s3_server, proxy.endpoint))
        proxy.answers_to_lose = 1
        await store.put_if_absent("mine", b"mine")
        assert proxy.lost == 1
        assert await store.get("mine") == b"mine"
        proxy.answers_to_lose = 1
        with pytest.raises(AlreadyExists):
            await store.put_if_absent("mine", b"other")
        assert proxy.lost == 2
        assert await store.get("mine") == b"mine"
        await store.close()


@pytest.mark.s3
async def test_big_file_leaves_no_upload_behind(s3: S3ObjectStore, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(BIG_BYTES))
    await s3.put_file_if_absent("big", source)
    assert await s3.remove_stale_uploads(older_than_s=0, now_s=4e9) == 0
    assert await keys_of(s3) == ["big"]


@pytest.mark.s3
async def test_stale_uploads_are_removed_and_never_listed(s3_server: S3Server) -> None:
    settings = s3_settings(s3_server)
    store = S3ObjectStore(settings)
    # What a process leaves that dies between the upload and the copy.
    inside = S3ObjectStore(
        S3Settings(
            bucket=settings.bucket,
            prefix=f"{settings.prefix}/+staging",
            endpoint=settings.endpoint,
            region=settings.region,
            allow_http=True,
        )
    )
    await inside.put_if_absent("dead", b"half")
    await store.put_if_absent("object", b"body")
    assert await keys_of(store) == ["object"]
    [stat] = [stat async for stat in inside.list("")]
    # An upload that may still be alive stays.
    assert await store.remove_stale_uploads(older_than_s=60, now_s=stat.modified_s + 59) == 0
    assert await store.remove_stale_uploads(older_than_s=60, now_s=stat.modified_s + 61) == 1
    assert await keys_of(inside) == []
    assert await store.get("object") == b"body"
    await inside.close()
    await store.close()


@pytest.mark.s3
async def test_fetch_leaves_no_partial_file_when_the_object_is_missing(
    s3: S3ObjectStore, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        await s3.fetch("missing", tmp_path / "copy")
    assert os.listdir(tmp_path) == []


@pytest.mark.s3
async def test_wrong_credentials_are_a_failed_precondition(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    store = S3ObjectStore(s3_settings(s3_server))
    with pytest.raises(FailedPrecondition):
        await store.put_if_absent("object", b"body")
    with pytest.raises(FailedPrecondition):
        await store.get("object")
    await store.close()


@pytest.mark.s3
async def test_server_killed_and_restarted_keeps_what_was_acknowledged() -> None:
    with S3Server() as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        store = open_object_store(server.url())
        keys = [f"kept/{number:04d}" for number in range(50)]
        for key in keys:
            await store.put_if_absent(key, key.encode())
        server.kill()
        with pytest.raises(UnknownOutcome):
            await store.put_if_absent("later", b"body")
        with pytest.raises(Unavailable):
            await store.get(keys[0])
        await asyncio.to_thread(server.restart)
        assert await keys_of(store, "kept/") == keys
        assert [await store.get(key) for key in keys] == [key.encode() for key in keys]
        await store.put_if_absent("later", b"body")
        await store.close()


ENDING_PROCESS = """
import asyncio, sys
from annheal.objectstore.factory import open_object_store

async def main():
    store = open_object_store(sys.argv[1])
    for number in range(20):
        try:
            await store.put_if_absent("same", f"{number}".encode() * 50_000)
        except Exception as error:
            assert number > 0, error

asyncio.run(main())
"""


@pytest.mark.s3
async def test_process_may_end_without_closing(s3_server: S3Server) -> None:
    """A spot check: obstore's asynchronous calls made 11 of 200 such processes abort (ADR 4)."""
    for _ in range(5):
        url = s3_server.url(prefix=uuid.uuid4().hex)
        with start_python(ENDING_PROCESS, url) as process:
            assert await asyncio.to_thread(process.wait, 60) == 0
