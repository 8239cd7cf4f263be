"""The scratch folder of one worker: locked while the worker runs, removed at its end.

A compactor that starts also removes the folders of workers that died; nobody holds their locks.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from annheal.errors import FailedPrecondition
from annheal.runtime.clock import new_token
from annheal.runtime.host.folder_lock import Holder, read_holder, write_holder

LOCK_FILE = "worker.lock"
DISCARDED_PREFIX = ".discarded-"
LOCK_RETRY_S = 0.05
LOCK_TRIES_MAX = 40
"""Tries to take a lock before its holder counts as a worker. A process that removes abandoned
folders holds their locks too, for a moment."""

_log = logging.getLogger(__name__)


@contextmanager
def locked_folder(directory: Path) -> Iterator[None]:
    """Lock `directory` and empty it; remove it at the end of the block.

    Folders beside it whose workers died are removed too. Raises `FailedPrecondition` when another
    process has locked `directory`. Blocks while files are deleted: not for the event loop.
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
    """Delete the folders of `scratch_dir` whose lock file nobody has locked; return how many."""
    removed = 0
    for lock_path in sorted(scratch_dir.glob(f"*/{LOCK_FILE}")):
        lock = _try_lock(lock_path)
        if lock is None:
            continue
        try:
            _discard(lock_path.parent)
        finally:
            os.close(lock)
        _log.info("removed the files of the dead worker %s", lock_path.parent.name)
        removed += 1
    return removed


def _locked(directory: Path) -> int:
    """Create and lock `directory`; return the descriptor of its lock file."""
    path = directory / LOCK_FILE
    tries = 0
    while True:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            path.touch()
            lock = _try_lock(path)
        except FileNotFoundError:
            continue  # another process removed the folder of a dead worker between the two calls
        if lock is None:
            tries += 1
            if tries == LOCK_TRIES_MAX:
                raise FailedPrecondition(
                    f"another compactor uses {directory}: {_holder(path)}; give each a"
                    " worker_id of its own",
                    reason="WORKER_ID_TAKEN",
                )
            time.sleep(LOCK_RETRY_S)  # a file lock has no timed wait; at most LOCK_TRIES_MAX times
            continue
        try:
            locked_present_file = os.path.samestat(os.fstat(lock), os.stat(path))
        except FileNotFoundError:
            locked_present_file = False
        if locked_present_file:
            return lock
        os.close(lock)


def _holder(path: Path) -> Holder:
    """Return the process that the lock file names; an empty `Holder` if the file is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return Holder()
    try:
        return read_holder(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """Lock `path` and return its descriptor; None when it is locked already or does not exist."""
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
    """Delete a folder whose lock this process holds.

    It is renamed first, so that a new worker of the same name can use the name at once and keeps
    its files. If this process dies meanwhile, the lock is free and the next compactor that starts
    deletes the rest.
    """
    if not folder.name.startswith(DISCARDED_PREFIX):
        with suppress(OSError):
            folder = folder.rename(folder.with_name(f"{DISCARDED_PREFIX}{new_token()}"))
    shutil.rmtree(folder, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
