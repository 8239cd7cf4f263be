"""A data directory belongs to one process at a time."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from annheal.errors import FailedPrecondition

LOCK_FILE: Final = "lock"
ADDRESS_FILE: Final = "address"


@contextmanager
def locked(data_dir: Path) -> Iterator[None]:
    """Make `data_dir` and hold its lock; the kernel gives it back when the process ends.

    Raises `FailedPrecondition` that names the process that holds it.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(data_dir / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FailedPrecondition(
            f"the data directory {data_dir} cannot be used: {error.strerror}",
            reason="DATA_DIR_UNUSABLE",
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "?"
            raise FailedPrecondition(
                f"the data directory {data_dir} is in use by process {holder}: stop it, or give"
                " another --data-dir",
                reason="DATA_DIR_LOCKED",
                metadata={"pid": holder},
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def published_address(data_dir: Path, address: str) -> Iterator[None]:
    """Keep `address` in a file of the data directory, for scripts: whole, or not there."""
    path = data_dir / ADDRESS_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{address}\n")
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
