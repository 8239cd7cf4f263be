"""The folder of one worker: locked while it lives, removed by whoever finds it without a lock."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from annheal.errors import FailedPrecondition
from annheal.runtime.folder_lock import Holder, read_holder, write_holder

LOCK_FILE = "worker.lock"
DISCARDED_PREFIX = ".discarded-"
LOOK_S = 0.05
LOOKS_MAX = 40
"""Looks at a lock before it counts as a worker's. Whoever removes abandoned folders holds it too,
for a moment."""

_log = logging.getLogger(__name__)


@contextmanager
def locked_folder(directory: Path) -> Iterator[None]:
    """Hold `directory`, empty at first; it is removed at the end.

    Folders beside it whose workers died are removed too. Raises `FailedPrecondition` while another
    process holds `directory`. Blocks for as long as files are deleted.
    """
    lock = _locked(directory)
    write_holder(lock, role=f"compactor {directory.name}")
    try:
        for child in directory.iterdir():
            if child.name != LOCK_FILE:
                _remove(child)
        remove_abandoned(directory.parent)
        yield
    finally:
        _discard(directory)
        os.close(lock)


def remove_abandoned(scratch_dir: Path) -> int:
    """Delete the folders of workers that died; return how many. Other folders are left alone."""
    removed = 0
    for lock_path in sorted(scratch_dir.glob(f"*/{LOCK_FILE}")):
        lock = _try_lock(lock_path)
        if lock is None:
            continue
        try:
            _discard(lock_path.parent)
        finally:
            os.close(lock)
        _log.info("files of the dead worker %s were removed", lock_path.parent.name)
        removed += 1
    return removed


def _locked(directory: Path) -> int:
    path = directory / LOCK_FILE
    looks = 0
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            path.touch()
            lock = _try_lock(path)
        except FileNotFoundError:
            continue  # somebody removed the folder of a dead worker just now
        if lock is None:
            looks += 1
            if looks == LOOKS_MAX:
                raise FailedPrecondition(
                    f"another compactor works in {directory}: {_holder(path)}; give each a"
                    " worker_id of its own",
                    reason="WORKER_ID_TAKEN",
                )
            time.sleep(LOOK_S)
            continue
        try:
            same = os.path.samestat(os.fstat(lock), os.stat(path))
        except FileNotFoundError:
            same = False
        if same:
            return lock
        os.close(lock)


def _holder(path: Path) -> Holder:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Holder()
    try:
        return read_holder(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock of `path`, None when another process does."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _discard(folder: Path) -> None:
    """Delete a folder whose lock is held.

    Under another name: files of a worker that takes this one meanwhile are not met, nor does it
    wait. Should the process die, whoever finds the lock without an owner goes on.
    """
    if not folder.name.startswith(DISCARDED_PREFIX):
        with suppress(OSError):
            folder = folder.rename(folder.with_name(f"{DISCARDED_PREFIX}{uuid.uuid4().hex}"))
    shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
