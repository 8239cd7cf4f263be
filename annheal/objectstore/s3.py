"""The object store in a bucket of an S3-compatible service, over `obstore`.

obstore's synchronous calls run in threads of our own: with its asynchronous ones a process that
ends right after a call may abort (measured: 11 of 200 processes; with synchronous ones 0 of 200).
A store must not
be used across `fork`; start processes by spawn.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from annheal.errors import (
    AlreadyExists,
    AnnhealError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.objectstore.durable import file_size, storage_error, write_all
from annheal.objectstore.keys import Selection, check_key, check_prefix
from annheal.objectstore.listing import Level, walk
from annheal.objectstore.protocol import ObjectStat
from annheal.runtime.clock import jitter, new_token
from annheal.runtime.offload import Offload

if TYPE_CHECKING:  # names that obstore has for type checkers only
    from obstore.store import ClientConfig, S3Config

REQUESTS_MAX = 16
CONNECT_TIMEOUT_S = 3.0
REQUEST_TIMEOUT_S = 30.0
READ_RETRIES_MAX = 3
READ_RETRY_TIMEOUT_S = 10.0
PUT_ATTEMPTS_MAX = 4
PUT_RETRY_DELAY_S = 0.1
MULTIPART_PART_BYTES = 8 << 20
MULTIPART_PARTS_IN_FLIGHT_MAX = 4
FETCH_RANGE_BYTES = 8 << 20
FETCH_RANGES_IN_FLIGHT_MAX = 4
# What S3 takes in one copied part, and so the most that can be put.
OBJECT_BYTES_MAX = 5 << 30
ERROR_CHARACTERS_MAX = 300

# "+" is no character of keys, so no object can ever be named like these uploads.
STAGING = "+staging"

_DENIED = (PermissionDeniedError, UnauthenticatedError)

_log = logging.getLogger(__name__)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class S3Settings:
    """Where the bucket is. Credentials come from the standard `AWS_*` environment.

    `prefix` is put before every key. `endpoint` None means AWS. `allow_http` must be set for an
    `http://` endpoint. Files above `multipart_above_bytes` are uploaded in parts.
    """

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None
    allow_http: bool = False
    virtual_hosted: bool = False
    multipart_above_bytes: int = 16 << 20


class S3ObjectStore:
    """Objects of one bucket; implements `ObjectStore`.

    The service must honour `If-None-Match: *` on PutObject and on CompleteMultipartUpload, as
    AWS S3 and SeaweedFS do. A file above `multipart_above_bytes` is uploaded in parts to a
    staging key, then copied by the service to its own key under that condition, because obstore
    offers no conditional multipart upload. `remove_stale_uploads` removes the staging objects of
    processes that died meanwhile.
    """

    def __init__(self, settings: S3Settings) -> None:
        self._settings = settings
        where = f" at {settings.endpoint}" if settings.endpoint else ""
        self._name = f"object store s3://{settings.bucket}{where}"
        self._read_store = _open_store(settings, retries_max=READ_RETRIES_MAX)
        # Creating is repeated here, not inside obstore: each repetition needs a look at what
        # the attempt before may have done.
        self._create_store = _open_store(settings, retries_max=0)
        self._offload = Offload(threads=REQUESTS_MAX, name="objectstore-s3")

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`; see `ObjectStore`. `body` must not change meanwhile."""
        check_key(key)
        view = memoryview(body).cast("B")
        await self._create(key, partial(self._put, key, view), lambda: self._holds(key, view))

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from the file at `path`, at most 5 GiB; see `ObjectStore`."""
        check_key(key)
        size_bytes = await self._offload.run(partial(file_size, path))
        if size_bytes > OBJECT_BYTES_MAX:
            raise InvalidArgument.of(
                "path", f"{path} has {size_bytes} bytes, at most {OBJECT_BYTES_MAX} are allowed"
            )
        if size_bytes <= self._settings.multipart_above_bytes:
            await self.put_if_absent(key, await self._offload.run(path.read_bytes))
            return
        staged = f"{STAGING}/{new_token()}"
        try:
            await self._request(partial(self._upload, staged, path), f"uploading object {key}")
            await self._create(
                key, partial(self._copy, staged, key), lambda: self._same_file(key, path)
            )
        finally:
            await self._discard(staged)

    async def get(self, key: str) -> bytes:
        """Return the whole object; raises `NotFound`."""
        check_key(key)

        def read() -> bytes:
            return obstore.get(self._read_store, key).bytes().to_bytes()

        return await self._request(read, f"reading object {key}")

    async def fetch(self, key: str, destination: Path) -> Path:
        """Download to `destination`, in ranges, durably; see `ObjectStore`."""
        check_key(key)
        size_bytes = await self._request(partial(self._size, key), f"reading object {key}")
        partial_file = destination.with_name(f".{destination.name}.{new_token()}")
        try:
            await self._offload.run(partial(_make_sized, partial_file, size_bytes))
            await self._download(key, partial_file, size_bytes)
            await self._offload.run(partial(_finish, partial_file, destination))
        except OSError as error:
            raise storage_error(error, f"fetching object {key}") from error
        finally:
            await self._offload.run(partial(partial_file.unlink, missing_ok=True))
        return destination

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield objects in key order; those put or deleted meanwhile may or may not be shown."""
        # Not one flat listing: SeaweedFS returns that in the order of bare directory names, and
        # with `after` it then leaves keys out.
        selection = Selection(prefix=check_prefix(prefix), after=after)
        async for stat in walk(self._read_level, selection):
            yield stat

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; a missing key is no error."""
        for key in keys:
            check_key(key)
        if keys:
            await self._request(
                partial(obstore.delete, self._read_store, tuple(keys)), "deleting objects"
            )

    async def remove_stale_uploads(self, *, older_than_s: float, now_s: float) -> int:
        """Remove staging objects last written before `now_s - older_than_s`; return how many.

        `older_than_s` must exceed the longest upload, and the clocks' difference.
        """
        listed = partial(obstore.list_with_delimiter, self._read_store, STAGING)
        result = await self._request(listed, "listing uploads")
        stale = [
            meta["path"]
            for meta in result["objects"]
            if meta["path"].startswith(f"{STAGING}/")  # not the directory's own marker
            and meta["last_modified"].timestamp() < now_s - older_than_s
        ]
        if stale:
            delete = partial(obstore.delete, self._read_store, stale)
            await self._request(delete, "deleting stale uploads")
        return len(stale)

    async def close(self) -> None:
        """Wait for requests that have begun, which have time limits of their own."""
        await self._offload.close()

    async def _create(
        self, key: str, attempt: Callable[[], None], is_ours: Callable[[], bool]
    ) -> None:
        """Run `attempt` until the outcome is known; `is_ours` compares what is stored.

        "Exists" may be the echo of our own attempt whose answer was lost, and any error may come
        after the effect: only reading back settles it. "Exists" without an object is AWS's 409
        for a race that nobody has won yet.
        """
        ambiguous: Exception | None = None
        action = f"creating object {key}"
        for delay_s in _put_delays():
            await asyncio.sleep(delay_s)
            try:
                await self._offload.run(attempt)
                return
            except AlreadyExistsError:
                pass
            except FileNotFoundError as error:
                raise FailedPrecondition(self._describe(error, action)) from error
            except _DENIED as error:
                if ambiguous is None:
                    raise FailedPrecondition(self._describe(error, action)) from error
            except BaseError as error:
                ambiguous = error
            try:
                if await self._request(is_ours, f"reading back object {key}"):
                    return
                raise AlreadyExists(f"object {key} exists")
            except NotFound:
                continue  # an attempt on its way may still land: the next one meets it
            except Unavailable as error:
                ambiguous = error
        if ambiguous is None:
            raise Unavailable(f"{self._name}: writers of object {key} keep colliding")
        raise UnknownOutcome(self._describe(ambiguous, action)) from ambiguous

    def _put(self, key: str, body: memoryview) -> None:
        obstore.put(self._create_store, key, body, mode="create", use_multipart=False)

    def _upload(self, key: str, path: Path) -> None:
        obstore.put(
            self._read_store,
            key,
            path,
            use_multipart=True,
            chunk_size=MULTIPART_PART_BYTES,
            max_concurrency=MULTIPART_PARTS_IN_FLIGHT_MAX,
        )

    def _copy(self, source: str, target: str) -> None:
        obstore.copy(self._create_store, source, target, overwrite=False)

    async def _discard(self, staged: str) -> None:
        try:
            delete = partial(obstore.delete, self._read_store, staged)
            await self._request(delete, "deleting an upload")
        except (AnnhealError, BaseError) as error:
            _log.warning("upload %s stays until stale uploads are removed: %s", staged, error)

    def _size(self, key: str) -> int:
        return obstore.head(self._read_store, key)["size"]

    def _range(self, key: str, start: int, end: int) -> bytes:
        # A range past the end is shortened without an error.
        part = obstore.get_range(self._read_store, key, start=start, end=end).to_bytes()
        if len(part) != end - start:
            raise Unavailable(f"object {key} changed its size while it was read")
        return part

    def _holds(self, key: str, body: memoryview) -> bool:
        return self._size(key) == len(body) and all(
            self._range(key, start, end) == body[start:end] for start, end in _ranges(len(body))
        )

    def _same_file(self, key: str, path: Path) -> bool:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            return self._size(key) == size_bytes and all(
                self._range(key, start, end) == file.read(end - start)
                for start, end in _ranges(size_bytes)
            )

    async def _download(self, key: str, path: Path, size_bytes: int) -> None:
        waiting = _ranges(size_bytes)

        def download(start: int, end: int) -> None:
            part = self._range(key, start, end)
            # Opened for each range: after a cancelled fetch the file is gone, and a thread that
            # still runs must not write to a descriptor that means another file by now.
            try:
                descriptor = os.open(path, os.O_WRONLY)
            except FileNotFoundError as error:
                raise Unavailable(f"download {path} was removed") from error
            try:
                os.lseek(descriptor, start, os.SEEK_SET)
                write_all(descriptor, memoryview(part))
            finally:
                os.close(descriptor)

        async def work() -> None:
            for start, end in waiting:
                await self._request(partial(download, start, end), f"reading object {key}")

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(FETCH_RANGES_IN_FLIGHT_MAX):
                    group.create_task(work())
        except* (AnnhealError, OSError) as errors:
            raise errors.exceptions[0] from None

    async def _read_level(self, directory: str, selection: Selection) -> Level:
        listed = partial(obstore.list_with_delimiter, self._read_store, directory or None)
        result = await self._request(listed, f"listing {directory}/")
        # A directory's own marker ("a/b/", of a console or an emptied SeaweedFS directory) is
        # listed as if it were the object "a/b".
        stem = f"{directory}/" if directory else ""
        return Level(
            objects=[
                ObjectStat(
                    key=meta["path"],
                    size_bytes=meta["size"],
                    modified_s=meta["last_modified"].timestamp(),
                )
                for meta in result["objects"]
                if meta["path"].startswith(stem) and selection.takes(meta["path"])
            ],
            directories=[name for name in result["common_prefixes"] if name != STAGING],
        )

    async def _request(self, call: Callable[[], Result], action: str) -> Result:
        """Run `call` in a thread; raises the errors that reads and deletes may raise."""
        try:
            return await self._offload.run(call)
        except FileNotFoundError as error:
            raise NotFound(self._describe(error, action)) from error
        except _DENIED as error:
            raise FailedPrecondition(self._describe(error, action)) from error
        except BaseError as error:
            raise Unavailable(self._describe(error, action)) from error

    def _describe(self, error: Exception, action: str) -> str:
        return f"{self._name}: {_describe(error, action)}"


def _open_store(settings: S3Settings, *, retries_max: int) -> S3Store:
    client: ClientConfig = {
        "allow_http": settings.allow_http,
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_S),
    }
    config: S3Config = {}
    if settings.endpoint is not None:
        config["endpoint"] = settings.endpoint
    if settings.region is not None:
        config["region"] = settings.region
    try:
        return S3Store(
            settings.bucket,
            prefix=settings.prefix or None,
            virtual_hosted_style_request=settings.virtual_hosted,
            copy_if_not_exists="multipart",
            client_options=client,
            retry_config={
                "max_retries": retries_max,
                "retry_timeout": timedelta(seconds=READ_RETRY_TIMEOUT_S),
            },
            config=config,
        )
    except (BaseError, ValueError) as error:
        raise InvalidArgument(_describe(error, f"opening bucket {settings.bucket}")) from error


def _put_delays() -> Iterator[float]:
    """Yield the pause before each attempt: none, then doubling ones with jitter."""
    yield 0.0
    for attempt in range(PUT_ATTEMPTS_MAX - 1):
        yield PUT_RETRY_DELAY_S * 2**attempt * (0.5 + jitter())


def _ranges(size_bytes: int) -> Iterator[tuple[int, int]]:
    for start in range(0, size_bytes, FETCH_RANGE_BYTES):
        yield start, min(start + FETCH_RANGE_BYTES, size_bytes)


def _make_sized(path: Path, size_bytes: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        if size_bytes:
            os.posix_fallocate(file.fileno(), 0, size_bytes)


def _finish(path: Path, destination: Path) -> None:
    """Give the download its name. Flushed first, so that the name always means a whole file."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)
    path.chmod(0o444)
    path.rename(destination)


def _describe(error: Exception, action: str) -> str:
    """Return one line: obstore appends a long dump of its internals to its messages."""
    first_line = str(error).partition("\n")[0]
    return f"failed while {action}: {first_line[:ERROR_CHARACTERS_MAX]}"
