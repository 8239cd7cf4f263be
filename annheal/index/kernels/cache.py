"""Where machine code lies on disk: one folder a user, version, processor and state of the sources.

A kernel is complete once its list of checksums is there, which is written last. numba is not
imported here, so that asking costs nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from annheal.index.kernels.catalog import SOURCES, Kernel

ENV_CACHE: Final = "ANNHEAL_KERNEL_CACHE"
SHIPPED: Final = Path("share", "annheal", "kernels")
"""Below `sys.prefix`: machine code that came with the installation, such as a container's image."""

_PACKAGE: Final = Path(__file__).parents[2]
_GENERATOR: Final = ("annheal.index.kernels.machine_code", "annheal.index.kernels.signatures")
_IMPORT: Final = re.compile(r"^from (annheal\.index[\w.]*) import", re.MULTILINE)
_CPU_LINES: Final = re.compile(r"^(?:model name|flags|Features|CPU part)\s*:.*$", re.MULTILINE)
_HARMLESS: Final = frozenset({"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"})
"""Settings of numba that do not change the code it makes."""


@dataclass(frozen=True, slots=True)
class KernelCache:
    """The folder of machine code that fits this program on this machine.

    `private` says why it is a temporary folder of this process, whose owner removes it; empty for a
    folder that other processes of this user share.
    """

    directory: Path
    private: str = ""

    def folder(self, kernel: Kernel) -> Path:
        """Return where the files of `kernel` lie."""
        return self.directory / kernel.value

    def has(self, kernel: Kernel) -> bool:
        """Return whether `kernel` was compiled and its files are what was written."""
        try:
            expected = self._list(kernel).read_text(encoding="utf-8")
            return bool(expected) and expected == self._checksums(kernel)
        except OSError:
            return False

    def missing(self) -> list[Kernel]:
        """Return the kernels that have to be compiled, in the order of `Kernel`."""
        return [kernel for kernel in Kernel if not self.has(kernel)]

    def complete(self, kernel: Kernel) -> None:
        """Note that the files of `kernel` are complete."""
        made = self._list(kernel).with_suffix(f".{os.getpid()}")
        made.write_text(self._checksums(kernel), encoding="utf-8")
        made.replace(self._list(kernel))

    def forget(self, kernel: Kernel) -> None:
        """Have `kernel` compiled again."""
        self._list(kernel).unlink(missing_ok=True)

    def _list(self, kernel: Kernel) -> Path:
        return self.directory / f"{kernel.value}.sha256"

    def _checksums(self, kernel: Kernel) -> str:
        files = sorted(self.folder(kernel).glob("*.nb[ci]"))
        return "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files
        )


def open_cache(chosen: Path | None = None) -> KernelCache:
    """Return where machine code is looked for, and written if it is not there.

    What came with the installation is used where it is complete for this machine. Else it is
    `chosen`, `ANNHEAL_KERNEL_CACHE`, or the user's cache directory: the first of these that is
    given. Code is run, so a folder is refused that others own or may write to. Where
    it is refused or cannot be written, a temporary folder of this process takes its place.
    """
    key = cache_key()
    shipped = KernelCache(Path(sys.prefix) / SHIPPED / key)
    if _is_trusted(shipped.directory) and not shipped.missing():
        return shipped
    parent = chosen or _users_cache()
    if parent is None:
        return _private("there is no home directory to keep them in")
    directory = parent / key
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        cache = KernelCache(directory)
        if _is_trusted(directory) and not cache.missing():
            return cache  # read-only, and nothing has to be written
        return _private(f"{directory} cannot be written: {error.strerror or error}")
    if not _is_trusted(directory):
        return _private(f"{directory} belongs to another user, or others may write to it")
    return KernelCache(directory)


def cache_key() -> str:
    """Return the name of the folder for this version, Python, processor and state of the sources.

    Two checkouts with the same sources share one, whatever their paths and times.
    """
    digest = hashlib.sha256()
    for path in _source_files():
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    for text in (_processor(), metadata.version("llvmlite"), *_numba_settings()):
        digest.update(text.encode() + b"\0")
    return "-".join(
        (
            _own_version(),
            f"numba{metadata.version('numba')}",
            sys.implementation.cache_tag,
            platform.machine(),
            digest.hexdigest()[:16],
        )
    )


@contextlib.contextmanager
def built_alone(cache: KernelCache) -> Iterator[None]:
    """Wait until no other process of this machine compiles into `cache`, and keep others out."""
    with (cache.directory / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _users_cache() -> Path | None:
    if chosen := os.environ.get(ENV_CACHE):
        return Path(chosen)
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "annheal" / "kernels"
    if home := os.environ.get("HOME"):
        return Path(home) / ".cache" / "annheal" / "kernels"
    return None


def _private(why: str) -> KernelCache:
    return KernelCache(Path(tempfile.mkdtemp(prefix="annheal-kernels-")), private=why)


def _is_trusted(directory: Path) -> bool:
    """Return whether only this user, or root, may write to a folder that exists."""
    try:
        found = directory.stat()
    except OSError:
        return False
    writable_by_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid in (0, os.geteuid()) and not writable_by_others


def _source_files() -> list[Path]:
    """Return the files of kernels, and of what they import of this package."""
    waiting = [*(source.module for source in SOURCES.values()), *_GENERATOR]
    found: set[Path] = set()
    while waiting:
        path = _file_of(waiting.pop())
        if path is None or path in found:
            continue
        found.add(path)
        waiting.extend(_IMPORT.findall(path.read_text(encoding="utf-8")))
    return sorted(found)


def _file_of(module: str) -> Path | None:
    """Return the file of a module; None for a package, whose `__init__` holds no kernels."""
    path = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path if path.is_file() else None


def _processor() -> str:
    """Return what machine code may depend on: the model and the instructions of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    return "\n".join(sorted(set(_CPU_LINES.findall(lines))))


def _numba_settings() -> Sequence[str]:
    return [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("NUMBA_") and name not in _HARMLESS
    ]


def _own_version() -> str:
    try:
        return metadata.version("annheal")
    except metadata.PackageNotFoundError:  # run from the sources alone
        return "0"
