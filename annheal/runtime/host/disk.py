"""Room on a disk: what must stay free so that a full disk can be emptied, and a file that keeps it.

A server that has no byte left cannot log a delete, mark a collection as dropped, or renew a lease,
so nothing could ever be freed. Two things keep it able to: new rows are refused while less than a
reserve is free (`DiskWatch`), and where somebody else fills the disk a file of the data directory
is given up (`Ballast`). See docs/adr/0025.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from annheal.errors import ResourceExhausted
from annheal.model.measures.part_health import PartHealth, PartKind
from annheal.runtime.clock import Clock, wall_s
from annheal.runtime.metrics import Family

RESERVE_BYTES: Final = 256 << 20
"""Kept free by default."""
RESERVE_SHARE_MAX: Final = 0.25
"""Of the disk: a small disk has a smaller reserve."""
BALLAST_BYTES_MAX: Final = 16 << 20
"""Enough for the metadata store's own log, which grows to 4 MiB, and for deletes and drops."""
LOOK_INTERVAL_S: Final = 1.0
RETRY_AFTER_S: Final = 5.0
BALLAST_FILE: Final = "ballast"
NEW_ROWS: Final = "new rows"
NEW_TASKS: Final = "new tasks"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Room:
    """How much of the disk at `path` is free, and how much has to be."""

    path: Path
    free_bytes: int
    reserve_bytes: int
    refused: str = NEW_ROWS

    @property
    def low(self) -> bool:
        """Whether `refused`, new rows or new tasks, are refused."""
        return self.free_bytes < self.reserve_bytes

    def __str__(self) -> str:
        return (
            f"the disk of {self.path} has {_mebibytes(self.free_bytes)} of free space,"
            f" {self.refused} need {_mebibytes(self.reserve_bytes)} (disk_reserve_bytes)"
        )


def room_at(path: Path, *, reserve_bytes: int, refused: str = NEW_ROWS) -> Room:
    """Return the room on the disk of `path`; the reserve is at most a share of the disk."""
    found = os.statvfs(path)
    free_bytes = found.f_bavail * found.f_frsize
    share_bytes = int(RESERVE_SHARE_MAX * found.f_blocks * found.f_frsize)
    return Room(path, free_bytes, min(reserve_bytes, share_bytes), refused)


class DiskWatch:
    """The disks that a process writes to; looked at whenever somebody asks (a microsecond each).

    Args:
        paths: folders that exist; of those on one disk the first stands for it.
        reserve_bytes: what must be free for new rows or tasks; 0: nothing.
        process: the name under which this process reports.
        refused: what the process refuses below the reserve, for messages.
        wall_clock: seconds since the epoch.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        reserve_bytes: int,
        process: str,
        refused: str = NEW_ROWS,
        wall_clock: Clock = wall_s,
    ) -> None:
        self._wall_clock = wall_clock
        self._refused = refused
        by_disk = {path.stat().st_dev: path for path in reversed(paths)}
        self._paths = tuple(reversed(by_disk.values()))
        self._reserve_bytes = reserve_bytes
        self._process = process
        self._low_since_s: dict[Path, float] = {}

    def low(self) -> Room | None:
        """Return a disk that has too little room, if there is one."""
        return next((room for room in self._look() if room.low), None)

    def check_room(self) -> None:
        """Raise `ResourceExhausted` that names a disk without room for new rows."""
        room = self.low()
        if room is not None:
            raise ResourceExhausted(
                f"{room}. Searches, deletes and drops go on: free space, enlarge the disk, or drop"
                " a collection and run `annheal gc`",
                reason="DISK_RESERVE",
                metadata={"path": str(room.path)},
                retry_after_s=RETRY_AFTER_S,
            )

    def health(self) -> tuple[PartHealth, ...]:
        """Return the disks as parts that the process depends on."""
        return tuple(
            PartHealth(
                PartKind.DISK,
                self._process,
                str(room.path),
                failing_since_s=self._low_since_s.get(room.path, 0.0),
                error=str(room) if room.low else "",
            )
            for room in self._look()
        )

    def families(self) -> list[Family]:
        """Return free space and reserve as metrics."""
        free = Family("annheal_disk_free_bytes", "Free space on a disk of the process.", ("path",))
        below = f"Below it {self._refused} are refused."
        reserve = Family("annheal_disk_reserve_bytes", below, ("path",))
        for room in self._look():
            free.add(room.free_bytes, str(room.path))
            reserve.add(room.reserve_bytes, str(room.path))
        return [free, reserve]

    def _look(self) -> list[Room]:
        rooms = [
            room_at(path, reserve_bytes=self._reserve_bytes, refused=self._refused)
            for path in self._paths
        ]
        for room in rooms:
            if not room.low:
                if self._low_since_s.pop(room.path, None) is not None:
                    _log.info(
                        "the disk of %s has room again: %s are accepted", room.path, self._refused
                    )
            elif room.path not in self._low_since_s:
                self._low_since_s[room.path] = self._wall_clock()
                _log.warning("%s; they are refused until then", room)
        return rooms


class Ballast:
    """A file that holds space until the server itself needs it to go on.

    It is given up when the disk is nearly full and comes back when there is room beyond the
    reserve. Blocks for as long as the system takes to allocate or to free it.
    """

    def __init__(self, folder: Path, *, reserve_bytes: int) -> None:
        self._folder = folder
        self._path = folder / BALLAST_FILE
        self._reserve_bytes = reserve_bytes

    @property
    def size_bytes(self) -> int:
        """How much it holds at present."""
        return self._path.stat().st_size if self._path.exists() else 0

    def balance(self) -> None:
        """Give the space up or take it back, as the disk has it."""
        room = room_at(self._folder, reserve_bytes=self._reserve_bytes)
        wanted = min(BALLAST_BYTES_MAX, room.reserve_bytes // 2)
        held = self.size_bytes
        if held and room.free_bytes < wanted // 2:
            self._path.unlink()
            _log.warning(
                "the disk of %s is full: %s were given up so that deletes and drops go on",
                self._folder,
                _mebibytes(held),
            )
        elif not held and wanted and room.free_bytes >= room.reserve_bytes + wanted:
            self._take(wanted)

    async def run(self) -> None:
        """Balance again and again, until cancelled."""
        while True:
            await asyncio.to_thread(self.balance)
            await asyncio.sleep(LOOK_INTERVAL_S)

    def _take(self, size_bytes: int) -> None:
        temporary = self._path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
            temporary.replace(self._path)
        except OSError as error:
            _log.warning("no space could be put aside in %s: %s", self._folder, error)
            temporary.unlink(missing_ok=True)


def _mebibytes(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):,.1f} MiB"
