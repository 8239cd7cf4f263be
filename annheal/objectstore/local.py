"""The object store in a local directory.

A put writes a temporary file on the same file system, flushes it, links it to its final name and
flushes the directory. `link` fails when the name exists, which makes it put-if-absent, and no
reader ever sees half an object.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

from annheal.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    Unavailable,
    UnknownOutcome,
)
from annheal.objectstore.durable import (
    COPY_CHUNK_BYTES,
    DurableDirectories,
    TemporaryFolder,
    copy_all,
    file_size,
    make_root,
    storage_error,
    write_all,
)
from annheal.objectstore.keys import Selection, check_key, check_prefix, is_key_part
from annheal.objectstore.listing import Level, walk
from annheal.objectstore.protocol import ObjectStat
from annheal.runtime.offload import Offload

STRANGE_REMEMBERED_MAX = 1_000
"""Strangers' files that are named in the log."""
IO_THREADS = 8
# How often a put makes its directory again when deletes keep removing it.
PUBLISH_ATTEMPTS_MAX = 100

# "+" is no character of keys, so no object can ever be named like this folder.
_TEMPORARY = "+tmp"
_OBJECT_MODE = 0o444
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)

_log = logging.getLogger(__name__)


class LocalObjectStore:
    """Objects as read-only files below `root`; implements `ObjectStore`.

    Several processes may use one root. The directory must be on one file system that has hard
    links. A key must not lie inside another (`a` and `a/b`): the second put raises
    `InvalidArgument`. Raises `ResourceExhausted` when the disk is full; nothing is lost then.

    Deletes are not flushed: after loss of power a deleted object may be back, and whoever
    collects garbage meets and deletes it again.
    """

    def __init__(self, root: Path) -> None:
        """Open the store and remove what dead processes left half-written. Blocks shortly."""
        self._root = root.absolute()
        self._strange: set[str] = set()
        try:
            make_root(self._root)
            self._temporary = TemporaryFolder(self._root / _TEMPORARY)
        except OSError as error:
            raise storage_error(error, f"opening the object store {self._root}") from error
        self._directories = DurableDirectories(self._root)
        self._offload = Offload(threads=IO_THREADS, name="objectstore-local")

    async def put_if_absent(self, key: str, body: bytes | memoryview) -> None:
        """Create `key` with `body`; see `ObjectStore`. `body` must not change meanwhile."""
        check_key(key)
        view = memoryview(body).cast("B")
        await self._offload.run(
            partial(self._create, key, partial(write_all, body=view), partial(_holds, body=view))
        )

    async def put_file_if_absent(self, key: str, path: Path) -> None:
        """Create `key` from a copy of the file at `path`; see `ObjectStore`.

        A copy, not a hard link: through a link the caller, who may still have the file open for
        writing, could change an object. The kernel copies, and shares blocks where the file
        system can (XFS, Btrfs).
        """
        check_key(key)
        await self._offload.run(partial(file_size, path))

        def fill(target: int) -> None:
            with path.open("rb", buffering=0) as source:
                copy_all(source.fileno(), target)

        await self._offload.run(partial(self._create, key, fill, partial(_same_file, other=path)))

    async def get(self, key: str) -> bytes:
        """Return the whole object; raises `NotFound`."""
        check_key(key)
        return await self._offload.run(partial(self._read, key))

    async def fetch(self, key: str, destination: Path) -> Path:
        """Return the object's own read-only file; `destination` is left alone."""
        check_key(key)
        path = self._path(key)
        if not await self._offload.run(path.is_file):
            raise NotFound(f"object {key} does not exist")
        return path

    async def list(self, prefix: str, *, after: str = "") -> AsyncIterator[ObjectStat]:
        """Yield objects in key order; those put or deleted meanwhile may or may not be shown."""
        selection = Selection(prefix=check_prefix(prefix), after=after)
        async for stat in walk(self._read_level, selection):
            yield stat

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects, and directories that become empty; a missing key is no error."""
        for key in keys:
            check_key(key)
        await self._offload.run(partial(self._delete, list(keys)))

    async def close(self) -> None:
        """Wait for calls that have begun and remove the temporary folder."""
        await self._offload.close()
        self._directories.close()
        self._temporary.close()

    def _path(self, key: str) -> Path:
        return self._root / key

    def _create(self, key: str, fill: Callable[[int], None], same: Callable[[Path], bool]) -> None:
        temporary = self._temporary.new_path()
        try:
            try:
                _write_durably(temporary, fill)
            except OSError as error:
                raise storage_error(error, f"writing object {key}") from error
            self._publish(key, temporary, same)
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(self, key: str, temporary: Path, same: Callable[[Path], bool]) -> None:
        """Give the finished file its name, durably. A racing delete may take the directory."""
        for _ in range(PUBLISH_ATTEMPTS_MAX):
            try:
                if self._link(key, temporary, same):
                    return
            except NotADirectoryError as error:
                raise InvalidArgument.of("key", f"{key} lies inside another object") from error
            except OSError as error:
                raise storage_error(error, f"naming object {key}") from error
        raise Unavailable(f"object {key}: its directory was removed again and again")

    def _link(self, key: str, temporary: Path, same: Callable[[Path], bool]) -> bool:
        """Link and flush; False when the directory or the other object vanished meanwhile."""
        parent, _, name = key.rpartition("/")
        try:
            directory = self._directories.open(parent)
        except FileNotFoundError:
            return False
        try:
            try:
                os.link(temporary, name, dst_dir_fd=directory)
            except FileNotFoundError:
                self._directories.forget(parent)
                return False
            except FileExistsError:
                try:
                    if not same(self._path(key)):
                        raise AlreadyExists(f"object {key} exists") from None
                except FileNotFoundError:
                    return False
                except IsADirectoryError as error:
                    raise InvalidArgument.of("key", f"other objects lie inside {key}") from error
            _sync_entry(directory, key)
            return True
        finally:
            os.close(directory)

    def _read(self, key: str) -> bytes:
        try:
            return self._path(key).read_bytes()
        except _MISSING:
            raise NotFound(f"object {key} does not exist") from None
        except OSError as error:
            raise storage_error(error, f"reading object {key}") from error

    async def _read_level(self, directory: str, selection: Selection) -> Level:
        return await self._offload.run(partial(self._scan, directory, selection))

    def _scan(self, directory: str, selection: Selection) -> Level:
        objects: list[ObjectStat] = []
        directories: list[str] = []
        stem = f"{directory}/" if directory else ""
        try:
            with os.scandir(self._path(directory)) as entries:
                for entry in entries:
                    key = stem + entry.name
                    if not is_key_part(entry.name):  # the temporary folder, or a stranger's file
                        self._note_strange(entry)
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(key)
                    elif selection.takes(key):
                        objects.extend(_stat(entry, key))
        except _MISSING:
            pass  # removed since its parent was read
        except OSError as error:
            raise storage_error(error, f"listing {directory or self._root}") from error
        return Level(objects, directories)

    def _note_strange(self, entry: os.DirEntry[str]) -> None:
        """Name a file that cannot be an object once in the log: somebody may want it away."""
        if entry.path in self._strange or len(self._strange) >= STRANGE_REMEMBERED_MAX:
            return
        if entry.is_file(follow_symlinks=False):
            self._strange.add(entry.path)
            _log.warning("%r is no object of Annheal's; it is passed over, remove it", entry.path)

    def _delete(self, keys: Sequence[str]) -> None:
        try:
            for key in keys:
                try:
                    os.unlink(self._path(key))
                except _MISSING:
                    continue
                self._remove_empty(key)
        except OSError as error:
            raise storage_error(error, "deleting objects") from error

    def _remove_empty(self, key: str) -> None:
        parent = key.rpartition("/")[0]
        while parent:
            try:
                os.rmdir(self._path(parent))
            except OSError:
                return  # not empty, or gone: an empty directory left behind does no harm
            self._directories.forget(parent)
            parent = parent.rpartition("/")[0]


def _write_durably(path: Path, fill: Callable[[int], None]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    descriptor = os.open(path, flags, _OBJECT_MODE)
    try:
        fill(descriptor)
        os.fdatasync(descriptor)
    finally:
        os.close(descriptor)


def _sync_entry(directory: int, key: str) -> None:
    try:
        os.fsync(directory)
    except OSError as error:
        # The object is visible but may not survive loss of power: neither done nor undone.
        raise UnknownOutcome(f"object {key} was named but not flushed: {error}") from error


def _stat(entry: os.DirEntry[str], key: str) -> Sequence[ObjectStat]:
    try:
        stat = entry.stat(follow_symlinks=False)
    except FileNotFoundError:
        return ()  # deleted since the directory was read
    return (ObjectStat(key=key, size_bytes=stat.st_size, modified_s=stat.st_mtime),)


def _holds(path: Path, *, body: memoryview) -> bool:
    """Tell whether the file holds exactly `body`."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size != len(body):
            return False
        return file.read() == body


def _same_file(path: Path, *, other: Path) -> bool:
    """Tell whether two files hold the same bytes."""
    with path.open("rb") as left, other.open("rb") as right:
        if os.fstat(left.fileno()).st_size != os.fstat(right.fileno()).st_size:
            return False
        while chunk := left.read(COPY_CHUNK_BYTES):
            if chunk != right.read(COPY_CHUNK_BYTES):
                return False
        return True
