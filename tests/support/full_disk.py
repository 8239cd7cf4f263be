"""A disk that a test fills and empties: a real small one, or faults where system calls are made.

`python -m tests.support.full_disk ARGUMENTS...` runs the command line as `python -m annheal.cli`
does, with faults: `ANNHEAL_TEST_FREE_BYTES` is SIZE:PATH, and the file at PATH says how many of
SIZE bytes are free (what the server gives up of its ballast comes on top). `os.statvfs` reports
them, and what the object store writes fails with ENOSPC when there are none. Mounting needs
privileges; this does not.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from annheal.cli.__main__ import main
from annheal.objectstore import durable
from annheal.runtime.host.disk import BALLAST_FILE

ENV_FREE: Final = "ANNHEAL_TEST_FREE_BYTES"
BLOCK_BYTES: Final = 4_096
MODULE: Final = "tests.support.full_disk"


class RealDisk:
    """A tmpfs mounted at `folder`; its space is taken by a file."""

    module = "annheal.cli"
    environment: dict[str, str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {}

    def fill(self, *, left_bytes: int = 0) -> None:
        """Leave so many bytes free."""
        with (self.folder / "filler").open("wb", buffering=0) as file:
            while True:
                found = os.statvfs(self.folder)
                taken = found.f_bavail * found.f_frsize - left_bytes
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, taken)
                    return
                except OSError as error:  # the server has taken some meanwhile
                    if error.errno != errno.ENOSPC:
                        raise

    def empty(self) -> None:
        """Give the space back."""
        (self.folder / "filler").unlink(missing_ok=True)


class FaultyDisk:
    """A folder of which `python -m tests.support.full_disk` believes what `fill` says."""

    module = MODULE

    def __init__(self, folder: Path, *, size_bytes: int) -> None:
        self.folder = folder
        self._size_bytes = size_bytes
        self._control = folder / "free-bytes"
        self.environment = {ENV_FREE: f"{size_bytes}:{self._control}"}
        self.empty()

    def fill(self, *, left_bytes: int = 0) -> None:
        """Leave so many bytes free."""
        self._control.write_text(str(left_bytes))

    def empty(self) -> None:
        """Give the space back."""
        self._control.write_text(str(self._size_bytes))


def may_mount() -> bool:
    """Return whether this process may mount a disk, tried in a namespace that ends at once."""
    if os.geteuid() or shutil.which("unshare") is None:
        return False
    mount = ["mount", "-t", "tmpfs", "tmpfs", tempfile.gettempdir()]
    return not subprocess.run(["unshare", "--mount", *mount], capture_output=True).returncode


@contextmanager
def real_disk(folder: Path, *, size_bytes: int) -> Iterator[RealDisk]:
    """Mount a disk of `size_bytes` at `folder`, which exists."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield RealDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def install_faults(control: Path, *, size_bytes: int) -> None:
    """Make this process believe in a disk of `size_bytes` with as much free as `control` says."""
    ballast = control.parent / "data" / BALLAST_FILE
    write, statvfs = os.write, os.statvfs
    held = ballast.stat().st_size if ballast.exists() else 0

    def free_bytes() -> int:
        nonlocal held
        present = ballast.stat().st_size if ballast.exists() else 0
        given_up, held = held - present, max(held, present)
        return int(control.read_text()) + max(0, given_up)

    def faulty_statvfs(path: Path) -> os.statvfs_result:
        real = list(statvfs(path))
        real[0] = real[1] = BLOCK_BYTES
        real[2], real[3] = size_bytes // BLOCK_BYTES, free_bytes() // BLOCK_BYTES
        real[4] = real[3]
        return os.statvfs_result(real)

    def faulty_write(descriptor: int, body: memoryview) -> int:
        if free_bytes() < len(body):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, body)

    os.statvfs = faulty_statvfs  # type: ignore[assignment]
    durable.os.write = faulty_write  # type: ignore[assignment]


if __name__ == "__main__":
    size, _, named = os.environ.pop(ENV_FREE).partition(":")
    install_faults(Path(named), size_bytes=int(size))
    main()
