"""One process a folder: the second one is told who holds it, and touches nothing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from annheal.errors import FailedPrecondition
from annheal.runtime.host import folder_lock as module
from annheal.runtime.host.folder_lock import LOCK_FILE, Holder, folder_lock, read_holder
from tests.support.processes import REPOSITORY

HOLD = """
import sys
from pathlib import Path
from annheal.runtime.host.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), role="shard node a", fix="stop it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process_holds(folder: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_error_names_process_role_start_and_fix(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    with another_process_holds(folder) as other:
        with (
            pytest.raises(FailedPrecondition) as caught,
            folder_lock(folder, role="shard node b", fix="give it a --data-dir of its own"),
        ):
            pass
        error = caught.value
        assert error.reason == "DATA_DIR_LOCKED"
        assert error.metadata["pid"] == str(other.pid)
        assert f"process {other.pid} (shard node a, since 2" in error.message
        assert error.message.endswith("give it a --data-dir of its own")
        assert str(folder) in error.message


def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    with another_process_holds(tmp_path) as other:
        other.kill()
        other.wait()
        with folder_lock(tmp_path, role="shard node b", fix=""):
            assert (tmp_path / LOCK_FILE).read_text().startswith(f'{{"pid": "{os.getpid()}"')
    with folder_lock(tmp_path, role="again", fix=""):
        pass


@pytest.mark.parametrize(
    ("text", "holder"),
    [
        (b"4711\n", Holder("4711")),
        (b"", Holder()),
        (b"\xff\x00", Holder()),
        (b"[1]", Holder()),
        (b'{"pid": "7", "role": "x"}', Holder("7", "x")),
    ],
)
def test_any_text_in_the_file_is_understood(tmp_path: Path, text: bytes, holder: Holder) -> None:
    (tmp_path / LOCK_FILE).write_bytes(text)
    descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDONLY)
    try:
        assert read_holder(descriptor) == holder
    finally:
        os.close(descriptor)


def test_a_full_disk_does_not_keep_the_lock_from_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "pwrite", full)
    with (
        folder_lock(tmp_path, role="first", fix=""),
        pytest.raises(FailedPrecondition, match="in use by process"),
        folder_lock(tmp_path, role="second", fix=""),
    ):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(FailedPrecondition, match="file/data cannot be used"),
        folder_lock(tmp_path / "file" / "data", role="x", fix=""),
    ):
        pass
