"""Where machine code is kept, and who may be trusted with it. Nothing is compiled here."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from annheal.index.kernels import cache as module
from annheal.index.kernels.cache import SHIPPED, KernelCache, cache_key, open_cache
from annheal.index.kernels.catalog import Kernel


def completed(cache: KernelCache, *kernels: Kernel) -> KernelCache:
    for kernel in kernels:
        cache.folder(kernel).mkdir(parents=True)
        (cache.folder(kernel) / "code.nbc").write_bytes(kernel.value.encode())
        cache.mark_complete(kernel)
    return cache


def test_a_kernel_is_there_once_its_list_was_written_and_fits_its_files(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.folder(Kernel.WALK).mkdir()
    (cache.folder(Kernel.WALK) / "code.nbc").write_bytes(b"half")
    assert not cache.has(Kernel.WALK)  # its process was killed
    cache.mark_complete(Kernel.WALK)
    assert cache.has(Kernel.WALK)
    assert Kernel.WALK not in cache.missing()
    (cache.folder(Kernel.WALK) / "code.nbc").write_bytes(b"torn")
    assert not cache.has(Kernel.WALK)
    cache.discard(Kernel.WALK)
    assert cache.missing() == list(Kernel)


def test_a_list_of_no_files_is_no_kernel(tmp_path: Path) -> None:
    cache = KernelCache(tmp_path)
    cache.mark_complete(Kernel.WALK)
    assert not cache.has(Kernel.WALK)


def test_the_folder_is_the_one_chosen_then_the_environments_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("ANNHEAL_KERNEL_CACHE", raising=False)
    key = cache_key()
    parents = [tmp_path / "home" / ".cache" / "annheal" / "kernels"]
    assert open_cache().directory == parents[0] / key
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert open_cache().directory == tmp_path / "xdg" / "annheal" / "kernels" / key
    monkeypatch.setenv("ANNHEAL_KERNEL_CACHE", str(tmp_path / "environment"))
    assert open_cache().directory == tmp_path / "environment" / key
    assert open_cache(tmp_path / "chosen").directory == tmp_path / "chosen" / key
    assert stat.S_IMODE((tmp_path / "chosen" / key).stat().st_mode) == 0o700


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    first = open_cache(tmp_path)
    first.directory.chmod(0o777)
    refused = open_cache(tmp_path)
    try:
        assert refused.directory != first.directory
        assert "others may write" in refused.private_because
        assert stat.S_IMODE(refused.directory.stat().st_mode) == 0o700
    finally:
        shutil.rmtree(refused.directory)


def test_a_folder_that_cannot_be_written_gives_way_to_a_private_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    cache = open_cache(tmp_path / "file")
    try:
        assert "cannot be written" in cache.private_because
        assert cache.directory.is_dir()
    finally:
        shutil.rmtree(cache.directory)


def test_code_that_came_with_the_installation_is_used_where_it_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setenv("ANNHEAL_KERNEL_CACHE", str(tmp_path / "users"))
    shipped = completed(KernelCache(tmp_path / "prefix" / SHIPPED / cache_key()), *Kernel)
    assert open_cache().directory == shipped.directory
    shipped.discard(Kernel.WALK)
    assert open_cache().directory == tmp_path / "users" / cache_key()


def test_the_key_changes_with_what_machine_code_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [cache_key()]
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")  # changes no code
    assert cache_key() == keys[0]
    monkeypatch.setenv("NUMBA_ENABLE_AVX", "0")
    keys.append(cache_key())
    monkeypatch.setattr(module, "_processor", lambda: "another")
    keys.append(cache_key())
    copy = tmp_path / "annheal"
    shutil.copytree(module._PACKAGE / "index", copy / "index")
    monkeypatch.setattr(module, "_PACKAGE", copy)
    assert cache_key() == keys[-1]  # another path
    (copy / "index" / "live.py").write_text("no kernel imports this")
    assert cache_key() == keys[-1]
    imported = copy / "index" / "distances.py"
    imported.write_text(imported.read_text() + "\n# changed\n")
    keys.append(cache_key())
    assert len(set(keys)) == len(keys)


def test_the_key_covers_every_module_that_kernels_import() -> None:
    names = {os.fspath(path.relative_to(module._PACKAGE)) for path in module._source_files()}
    assert {"index/distances.py", "index/codes/byte_products.py"} <= names
    assert {"index/walk/walk_kernel.py", "index/kernels/machine_code.py"} <= names
    assert "index/vector_index.py" not in names
