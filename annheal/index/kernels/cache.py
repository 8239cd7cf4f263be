"""Folders of machine code: one for each user, version, processor and state of the sources.

A kernel is complete once its file of checksums exists, which is written last. This module does not
import numba, which takes half a second.
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
"""Below `sys.prefix`: machine code that was installed, for example in a container image."""

_PACKAGE: Final = Path(__file__).parents[2]
_GENERATOR: Final = ("annheal.index.kernels.machine_code", "annheal.index.kernels.signatures")
_IMPORT: Final = re.compile(r"^from (annheal\.index[\w.]*) import", re.MULTILINE)
_CPU_LINES: Final = re.compile(r"^(?:model name|flags|Features|CPU part)\s*:.*$", re.MULTILINE)
_WITHOUT_EFFECT: Final = frozenset({"NUMBA_CACHE_DIR", "NUMBA_NUM_THREADS"})
"""Settings of numba that do not change machine code."""


@dataclass(frozen=True, slots=True)
class KernelCache:
    """The folder of machine code for this program on this machine.

    `private_because` is empty for a folder that other processes share. Otherwise it is the reason
    why the folder is a temporary one of this process; who opened the cache removes it.
    """

    directory: Path
    private_because: str = ""

    def folder(self, kernel: Kernel) -> Path:
        """Return the folder of the files of `kernel`."""
        return self.directory / kernel.value

    def has(self, kernel: Kernel) -> bool:
        """Return whether `kernel` is complete and its files have their checksums."""
        try:
            expected = self._checksum_file(kernel).read_text(encoding="utf-8")
            return bool(expected) and expected == self._checksums(kernel)
        except OSError:
            return False

    def missing(self) -> list[Kernel]:
        """Return the kernels that must be compiled, in the order of `Kernel`."""
        return [kernel for kernel in Kernel if not self.has(kernel)]

    def mark_complete(self, kernel: Kernel) -> None:
        """Write the checksums of the files of `kernel`, all of which exist."""
        written = self._checksum_file(kernel).with_suffix(f".{os.getpid()}")
        written.write_text(self._checksums(kernel), encoding="utf-8")
        written.replace(self._checksum_file(kernel))

    def discard(self, kernel: Kernel) -> None:
        """Remove the checksums of `kernel`, so that it is compiled again."""
        self._checksum_file(kernel).unlink(missing_ok=True)

    def _checksum_file(self, kernel: Kernel) -> Path:
        return self.directory / f"{kernel.value}.sha256"

    def _checksums(self, kernel: Kernel) -> str:
        files = sorted(self.folder(kernel).glob("*.nb[ci]"))
        return "".join(
            f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files
        )


def open_cache(parent: Path | None = None) -> KernelCache:
    """Return the folder from which machine code is loaded, and into which it is compiled.

    That of the installation is used if it is complete for this machine. Otherwise the folder is in
    `parent`, in `ANNHEAL_KERNEL_CACHE` or in the user's cache directory, the first of these that is
    given. Machine code is executed, so a folder that other users own or may write to is refused. If
    the folder is refused or cannot be written, a temporary folder of this process is returned.
    """
    key = cache_key()
    shipped = KernelCache(Path(sys.prefix) / SHIPPED / key)
    if _is_trusted(shipped.directory) and not shipped.missing():
        return shipped
    parent = parent or _user_cache_directory()
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
            return cache  # read-only, but complete
        return _private(f"{directory} cannot be written: {error.strerror or error}")
    if not _is_trusted(directory):
        return _private(f"{directory} belongs to another user, or others may write to it")
    return KernelCache(directory)


def cache_key() -> str:
    """Return the name of the folder for this version, Python, processor and state of the sources.

    Two checkouts with equal sources share it; paths and times of files do not matter.
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
def compile_lock(cache: KernelCache) -> Iterator[None]:
    """Hold the lock of `cache`: one process of this machine compiles into it at a time."""
    with (cache.directory / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _user_cache_directory() -> Path | None:
    if chosen := os.environ.get(ENV_CACHE):
        return Path(chosen)
    if home := os.environ.get("XDG_CACHE_HOME"):
        return Path(home) / "annheal" / "kernels"
    if home := os.environ.get("HOME"):
        return Path(home) / ".cache" / "annheal" / "kernels"
    return None


def _private(because: str) -> KernelCache:
    return KernelCache(Path(tempfile.mkdtemp(prefix="annheal-kernels-")), private_because=because)


def _is_trusted(directory: Path) -> bool:
    """Return whether a folder exists that no other user but root may write to."""
    try:
        found = directory.stat()
    except OSError:
        return False
    writable_by_others = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return found.st_uid in (0, os.geteuid()) and not writable_by_others


def _source_files() -> list[Path]:
    """Return the files of the kernels, and those that they import from this package."""
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
    """Return the file of a module; None for a package, whose `__init__` has no kernels."""
    path = _PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    return path if path.is_file() else None


def _processor() -> str:
    """Return the model of the processor and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    return "\n".join(sorted(set(_CPU_LINES.findall(lines))))


def _numba_settings() -> Sequence[str]:
    return [
        f"{name}={value}"
        for name, value in sorted(os.environ.items())
        if name.startswith("NUMBA_") and name not in _WITHOUT_EFFECT
    ]


def _own_version() -> str:
    try:
        return metadata.version("annheal")
    except metadata.PackageNotFoundError:  # run from the sources alone
        return "0"
