"""Opening the files of an id lookup."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annheal.segment.lookup import IdLookup, open_lookup, save_lookup


def saved(directory: Path, rows: int) -> tuple[Path, Path]:
    hashes, order = directory / "hashes.npy", directory / "order.npy"
    lookup = IdLookup(np.arange(rows, dtype=np.uint64) * 3, np.arange(rows, dtype=np.int32)[::-1])
    save_lookup(lookup, hashes_path=hashes, order_path=order)
    return hashes, order


@pytest.mark.parametrize("rows", [0, 1, 9, 10, 100_000])
def test_what_was_saved_is_mapped(tmp_path: Path, rows: int) -> None:
    hashes, order = saved(tmp_path, rows)
    opened = open_lookup(hashes, order, rows=rows)
    assert np.array_equal(opened.hashes, np.load(hashes))
    assert np.array_equal(opened.order, np.load(order))


def test_no_header_is_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's parser, which NumPy uses for it, is not safe among threads of Python 3.11."""
    hashes, order = saved(tmp_path, 100)
    monkeypatch.delattr(np, "load")
    assert open_lookup(hashes, order, rows=100).order[0] == 99


def test_files_of_another_length_are_refused(tmp_path: Path) -> None:
    hashes, order = saved(tmp_path, 100)
    with pytest.raises(ValueError, match="instead of uint64"):
        open_lookup(hashes, order, rows=101)
    hashes.write_bytes(hashes.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"mmap length|file size"):
        open_lookup(hashes, order, rows=100)
