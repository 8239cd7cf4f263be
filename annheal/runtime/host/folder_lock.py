"""A folder belongs to one process at a time; who comes second is told who holds it.

The kernel's lock (`flock`) decides, and is given back when the process ends, however it ends. The
file's text only describes the holder for people: its process id, its role, and when it started.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from annheal.errors import FailedPrecondition

LOCK_FILE: Final = "lock"
HOLDER_BYTES_MAX: Final = 1_024
_UNKNOWN: Final = "?"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a folder, as it described itself; `?` where that cannot be read."""

    pid: str = _UNKNOWN
    role: str = _UNKNOWN
    started: str = _UNKNOWN

    def __str__(self) -> str:
        known = [text for text in (self.role, self._since()) if text != _UNKNOWN]
        return f"process {self.pid}" + (f" ({', '.join(known)})" if known else "")

    def _since(self) -> str:
        return _UNKNOWN if self.started == _UNKNOWN else f"since {self.started}"


@contextmanager
def folder_lock(folder: Path, *, role: str, fix: str) -> Iterator[None]:
    """Make `folder` and hold it for as long as the context lasts.

    Args:
        folder: the folder; missing parents are made.
        role: what this process is, for the message that another one gets.
        fix: what to do about a folder that somebody else holds, as the end of a sentence.

    Raises `FailedPrecondition` with reason DATA_DIR_LOCKED that names the holder, or with
    DATA_DIR_UNUSABLE when the folder cannot be made or locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unusable(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise held_by_another(folder, read_holder(descriptor), fix=fix) from None
        except OSError as error:
            raise _unusable(folder, error) from error
        write_holder(descriptor, role=role)
        yield
    finally:
        os.close(descriptor)


def held_by_another(folder: Path, holder: Holder, *, fix: str) -> FailedPrecondition:
    """Return the error that names the holder of `folder`."""
    return FailedPrecondition(
        f"the folder {folder} is in use by {holder}: {fix}",
        reason="DATA_DIR_LOCKED",
        metadata=asdict(holder),
    )


def write_holder(descriptor: int, *, role: str) -> None:
    """Describe this process in the file that it has locked.

    The text is written over the old one and cut afterwards: on a full disk that needs no new
    block. Where even that fails the lock is held all the same, without a description.
    """
    started = datetime.now(tz=UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    text = json.dumps(asdict(Holder(str(os.getpid()), role, started))).encode() + b"\n"
    try:
        os.pwrite(descriptor, text, 0)
        os.ftruncate(descriptor, len(text))
    except OSError as error:
        _log.warning("the lock is held, but its file does not say by whom: %s", error)


def read_holder(descriptor: int) -> Holder:
    """Return who described itself in the file; a bare process id is what 0.1 wrote."""
    text = os.pread(descriptor, HOLDER_BYTES_MAX, 0).decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except ValueError:
        return Holder()
    if isinstance(found, int):
        return Holder(str(found))
    if not isinstance(found, dict):
        return Holder()
    return Holder(*(str(found.get(name, _UNKNOWN)) for name in ("pid", "role", "started")))


def _unusable(folder: Path, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(
        f"the folder {folder} cannot be used: {error.strerror}", reason="DATA_DIR_UNUSABLE"
    )
