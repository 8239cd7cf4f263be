"""Files and directories that survive loss of power: the blocking half of the local store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import threading
from collections import OrderedDict
from pathlib import Path

from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from annheal.runtime.clock import new_token

COPY_CHUNK_BYTES = 8 << 20
OPEN_DIRECTORIES_MAX = 128
SESSION_ATTEMPTS_MAX = 16
DISK_FULL_RETRY_AFTER_S = 5.0

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_NO_COPY_FILE_RANGE = frozenset({errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP})


def storage_error(error: OSError, action: str) -> AnnhealError:
    """Return what a failed system call means to the caller, when nothing was changed."""
    if error.errno in _FULL:
        return ResourceExhausted(
            f"no space left while {action}: {error}. Free space or enlarge the volume; nothing "
            f"was lost",
            reason="STORAGE_FULL",
            retry_after_s=DISK_FULL_RETRY_AFTER_S,
        )
    if error.errno in _FORBIDDEN:
        return FailedPrecondition(f"not allowed while {action}: {error}")
    return Unavailable(f"storage failed while {action}: {error}")


def file_size(path: Path) -> int:
    """Return the size in bytes of the file to upload; raises `InvalidArgument` without one."""
    if not path.is_file():
        raise InvalidArgument.of("path", f"{path} is no file")
    return path.stat().st_size


def write_all(descriptor: int, body: memoryview) -> None:
    """Write the whole `body`, a flat view of bytes."""
    while body:
        body = body[os.write(descriptor, body) :]


def copy_all(source: int, target: int) -> None:
    """Copy from `source`'s position to its end; in the kernel, or as a reflink, where it can."""
    try:
        while os.copy_file_range(source, target, COPY_CHUNK_BYTES):
            pass
        return
    except OSError as error:
        if error.errno not in _NO_COPY_FILE_RANGE:
            raise
    # Both positions stand where the kernel's copy stopped.
    while chunk := os.read(source, COPY_CHUNK_BYTES):
        write_all(target, memoryview(chunk))


def sync_directory(path: Path) -> None:
    """Make the entries of the directory durable."""
    descriptor = open_directory(path)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_directory(path: Path) -> int:
    """Return a descriptor of the directory, which the caller closes."""
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def make_root(root: Path) -> None:
    """Make the directory and its missing parents, durably."""
    missing = [path for path in (root, *root.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        sync_directory(path.parent)


class DurableDirectories:
    """Opens directories below `root` whose path from the root is known to be on the medium.

    Making that sure costs one fsync for each parent. It is paid once, as long as the directory
    is held open here: a directory that was not removed keeps its parents from being removed, so
    their entries stay. All methods are thread-safe.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._open: OrderedDict[str, int] = OrderedDict()

    def open(self, relative: str) -> int:
        """Return a descriptor, which the caller closes; missing directories are made.

        Raises `FileNotFoundError` when somebody removed a directory meanwhile (try again) and
        `NotADirectoryError` when a file stands in the way.
        """
        with self._lock:
            held = self._open.get(relative)
            if held is not None:
                self._open.move_to_end(relative)
                return os.dup(held)
        descriptor = self._make(relative)
        with self._lock:
            if relative not in self._open:
                self._open[relative] = os.dup(descriptor)
            if len(self._open) > OPEN_DIRECTORIES_MAX:
                os.close(self._open.popitem(last=False)[1])
        return descriptor

    def forget(self, relative: str) -> None:
        """Stop holding a directory, because it was or will be removed."""
        with self._lock:
            held = self._open.pop(relative, None)
            if held is not None:
                os.close(held)

    def close(self) -> None:
        """Stop holding all directories."""
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def _make(self, relative: str) -> int:
        parts = relative.split("/") if relative else []
        chain = [self._root]
        for part in parts:
            chain.append(chain[-1] / part)
            with contextlib.suppress(FileExistsError):  # a file in the way shows below
                os.mkdir(chain[-1])
        leaf = open_directory(chain[-1])
        try:
            # The entries are synced after the leaf is open: if the leaf is alive at the end, the
            # entries that were synced are the ones that lead to it.
            for parent in chain[:-1]:
                sync_directory(parent)
            if os.fstat(leaf).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "removed meanwhile", str(chain[-1]))
        except BaseException:
            os.close(leaf)
            raise
        return leaf


class TemporaryFolder:
    """A folder for files that are not yet objects; its owner's death makes it garbage.

    Each open store has a folder of its own and holds a lock on it. The kernel drops the lock
    with the process, so the next store that opens can tell the remains of a dead one from the
    work of a living one, whatever the clocks say.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        parent.mkdir(exist_ok=True)
        self._remove_stale()
        self.path, self._lock = self._create()

    def new_path(self) -> Path:
        """Return the path of a file that does not exist yet."""
        return self.path / new_token()

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)

    def _create(self) -> tuple[Path, int]:
        for _ in range(SESSION_ATTEMPTS_MAX):
            path = self._parent / new_token()
            path.mkdir()
            # Another store that opens now may take the folder, not locked yet, for garbage.
            lock = _try_lock(path)
            if lock is not None:
                return path, lock
        raise Unavailable(f"could not make a folder in {self._parent}")

    def _remove_stale(self) -> None:
        for path in self._parent.iterdir():
            lock = _try_lock(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)


def _try_lock(path: Path) -> int | None:
    """Lock the directory and return its descriptor; None when it is gone or somebody's."""
    try:
        descriptor = open_directory(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink > 0:
            return descriptor
    except BlockingIOError:
        pass  # its owner lives
    os.close(descriptor)
    return None
