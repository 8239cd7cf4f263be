"""`annheal kernels`, on a cache that another process of this user has filled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from annheal.cli.exit_codes import ExitCode
from annheal.index.kernels.cache import open_cache
from annheal.index.kernels.catalog import Kernel

pytestmark = pytest.mark.timeout(300)


def annheal(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "annheal.cli", "kernels", *arguments],
        cwd=Path(__file__).parents[2],
        env={name: value for name, value in os.environ.items() if name != "ANNHEAL_KERNEL_CACHE"},
        capture_output=True,
        text=True,
        timeout=290,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def reported(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(annheal(*arguments, "-o", "json"))
    return found


def test_status_says_what_is_compiled_and_where(tmp_path: Path) -> None:
    shared = reported("status")
    assert Path(shared["directory"]) == open_cache().directory
    assert all(kernel["ready"] for kernel in shared["kernels"])
    empty = reported("status", "--cache", str(tmp_path))
    assert {kernel["kernel"] for kernel in empty["kernels"]} == set(Kernel)
    assert not any(kernel["ready"] for kernel in empty["kernels"])
    assert "walk" in annheal("status", "--cache", str(tmp_path))


def test_build_compiles_what_is_missing_and_nothing_else(tmp_path: Path) -> None:
    shared, cache = open_cache(), open_cache(tmp_path)
    for kernel in set(Kernel) - {Kernel.MARK_REACHED}:
        cache.folder(kernel).mkdir()
        for path in shared.folder(kernel).iterdir():
            (cache.folder(kernel) / path.name).write_bytes(path.read_bytes())
        cache.mark_complete(kernel)
    assert cache.missing() == [Kernel.MARK_REACHED]
    built = reported("build", "--cache", str(tmp_path))
    assert not cache.missing()
    taken = {kernel["kernel"]: kernel["compile_s"] for kernel in built["kernels"]}
    assert taken.pop(Kernel.MARK_REACHED) > 0
    assert set(taken.values()) == {None}
    again = reported("build", "--cache", str(tmp_path))
    assert {kernel["compile_s"] for kernel in again["kernels"]} == {None}


def test_build_refuses_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    text = annheal("build", "--cache", str(tmp_path / "file"), code=ExitCode.FAILED_PRECONDITION)
    assert "nowhere to keep kernels" in text
    assert "--cache DIRECTORY" in text
