"""Finding rows by id: the sorted 64-bit hashes of the ids and the row of each."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

ROW_MISSING = -1


@dataclass(frozen=True, slots=True)
class IdLookup:
    """`hashes` (n,) uint64 ascending; `order` (n,) int32: the row of each, by (hash, id).

    Different ids may share a hash, so what the hashes find is compared with the real ids.
    """

    hashes: npt.NDArray[np.uint64]
    order: npt.NDArray[np.int32]

    @classmethod
    def build(cls, ids: pa.StringArray, *, hashes: npt.NDArray[np.uint64]) -> IdLookup:
        """Return the lookup of `ids`; `hashes` (n,) as `shards.routing.hash_ids` gives them."""
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        ordered = hashes[order]
        for start, end in _runs(ordered):
            rows = order[start:end]
            order[start:end] = sorted(rows.tolist(), key=lambda row: ids[row].as_py().encode())
        return cls(ordered, order)

    def find(
        self, wanted: Sequence[str], *, hashes: npt.NDArray[np.uint64], ids: pa.StringArray
    ) -> npt.NDArray[np.int64]:
        """Return the row of each wanted id, (m,) int64, -1 where there is none.

        `hashes` (m,) belong to `wanted`; `ids` are those that the lookup was built from.
        """
        found = np.full(len(wanted), ROW_MISSING, dtype=np.int64)
        count = len(self.hashes)
        positions = np.searchsorted(self.hashes, hashes)
        clipped = np.minimum(positions, count - 1)
        open_questions = np.flatnonzero(self.hashes[clipped] == hashes)
        if not len(open_questions):
            return found
        wanted_ids = pa.array(wanted, type=pa.string())
        # A second round only happens for ids that share their hash with another id.
        while len(open_questions):
            rows = self.order[positions[open_questions]].astype(np.int64)
            real = ids.take(pa.array(rows, type=pa.int64()))
            same = pc.equal(real, wanted_ids.take(pa.array(open_questions, type=pa.int64())))
            hit = same.to_numpy(zero_copy_only=False)
            found[open_questions[hit]] = rows[hit]
            open_questions = open_questions[~hit]
            positions[open_questions] += 1
            open_questions = open_questions[positions[open_questions] < count]
            more = self.hashes[positions[open_questions]] == hashes[open_questions]
            open_questions = open_questions[more]
        return found

    def position_after(self, last_hash: int, last_id: str, *, ids: pa.StringArray) -> int:
        """Return the first position in `order` whose (hash, id) is greater than the given one.

        A `last_hash` below zero gives 0: the start of a scan.
        """
        if last_hash < 0:
            return 0
        position = int(np.searchsorted(self.hashes, np.uint64(last_hash), side="left"))
        last = last_id.encode()
        while (
            position < len(self.hashes)
            and int(self.hashes[position]) == last_hash
            and ids[int(self.order[position])].as_py().encode() <= last
        ):
            position += 1
        return position


def save_lookup(lookup: IdLookup, *, hashes_path: Path, order_path: Path) -> None:
    """Write both arrays as NumPy files of version 1.0."""
    np.save(hashes_path, lookup.hashes, allow_pickle=False)
    np.save(order_path, lookup.order, allow_pickle=False)


def open_lookup(hashes_path: Path, order_path: Path, *, rows: int) -> IdLookup:
    """Map both arrays. Raises `ValueError` when they are not of `rows` rows."""
    hashes = _mapped(hashes_path, np.uint64, rows=rows)
    order = _mapped(order_path, np.int32, rows=rows)
    for array, dtype in ((hashes, np.uint64), (order, np.int32)):
        if array.dtype != dtype or array.shape != (rows,):
            raise ValueError(f"{array.dtype} {array.shape} instead of {dtype.__name__} ({rows},)")
    # Plain arrays: every slice of a np.memmap costs a Python call.
    return IdLookup(np.asarray(hashes), np.asarray(order))


def _mapped(path: Path, dtype: type[np.generic], *, rows: int) -> npt.NDArray[Any]:
    """Map a NumPy file, as `np.load` does, without parsing the header that is expected.

    NumPy reads a header with Python's own parser, which fails now and then when several threads of
    Python 3.11 use it at the same time ("AST constructor recursion depth mismatch").
    """
    expected = _header(dtype, rows)
    with path.open("rb") as file:
        if file.read(len(expected)) != expected or not rows:
            found: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return found
    return np.memmap(path, dtype=dtype, mode="r", offset=len(expected), shape=(rows,))


def _header(dtype: type[np.generic], rows: int) -> bytes:
    header = io.BytesIO()
    described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()


def _runs(ordered: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """Return [start, end) of every run of equal values."""
    same = np.flatnonzero(ordered[1:] == ordered[:-1])
    runs: list[tuple[int, int]] = []
    for start in same.tolist():
        if runs and runs[-1][1] == start + 1:
            runs[-1] = (runs[-1][0], start + 2)
        else:
            runs.append((start, start + 2))
    return runs
