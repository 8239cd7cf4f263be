"""Files that hold vectors alone: .npy, .fvecs, .bvecs, and HDF5 as ann-benchmarks lays it out.

Ids are row numbers, unless a Parquet file beside them (`--meta`) holds ids and attributes in the
same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from annheal.cli.sources.chunk import Chunk, Columns, Layout
from annheal.cli.sources.columns import SAMPLE_ROWS, TablePlan
from annheal.errors import InvalidArgument
from annheal.model.records import Float32Matrix

_ANN_BENCHMARKS_METRICS = {
    "angular": "cosine",
    "cosine": "cosine",
    "euclidean": "l2",
    "dot": "inner_product",
}


class Matrix(Protocol):
    """Vectors that can be read by row range."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and dimension."""
        ...

    def __getitem__(self, rows: slice, /) -> npt.NDArray[Any]: ...


class MatrixSource:
    """One file of vectors; implements `ImportSource`."""

    def __init__(self, path: Path, columns: Columns, *, meta: Path | None = None) -> None:
        self._prefix = columns.id_prefix
        self._matrix, metric = open_matrix(path, dataset=columns.dataset)
        shape = self._matrix.shape
        if len(shape) != 2 or 0 in shape:
            raise InvalidArgument.of("FILE", f"{path} has shape {shape}, not (rows, dimension)")
        rows, dimension = shape
        self._meta = None
        self._layout = Layout(rows, dimension, metric=metric)
        if meta is not None:
            self._meta = _MetaTable(meta, columns, rows=rows)
            plan = self._meta.plan
            self._layout = Layout(rows, dimension, plan.attributes, plan.payload, metric)

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        return self._layout

    def chunks(self, *, rows_max: int, limit: int | None = None) -> Iterator[Chunk]:
        """Yield rows in file order."""
        end = self._matrix.shape[0] if limit is None else min(limit, self._matrix.shape[0])
        for start in range(0, end, rows_max):
            stop = min(start + rows_max, end)
            vectors = as_float32(self._matrix[start:stop])
            if self._meta is not None:
                yield self._meta.chunk(start, stop, vectors)
            else:
                yield Chunk([f"{self._prefix}{row}" for row in range(start, stop)], vectors)


class _MetaTable:
    """Ids and attributes of vectors that lie in another file, row by row."""

    def __init__(self, path: Path, columns: Columns, *, rows: int) -> None:
        try:
            table = pq.read_table(path, memory_map=True)
        except (pa.ArrowInvalid, OSError) as error:
            raise InvalidArgument.of(
                "--meta", f"{path} cannot be read as Parquet: {error}"
            ) from error
        if len(table) != rows:
            raise InvalidArgument.of("--meta", f"{path} has {len(table)} rows for {rows} vectors")
        self.plan = TablePlan(table.slice(0, SAMPLE_ROWS), columns, with_vectors=False)
        self._table = table.select(self.plan.needed)

    def chunk(self, start: int, stop: int, vectors: Float32Matrix) -> Chunk:
        rows = self._table.slice(start, stop - start)
        return self.plan.chunk(rows, first_row=start, vectors=vectors)


def open_matrix(path: Path, *, dataset: str = "train") -> tuple[Matrix, str | None]:
    """Return the vectors of `path`, not read yet, and the metric where the file names one."""
    match path.suffix.lower():
        case ".npy":
            return _open_npy(path), None
        case ".fvecs":
            return _open_vecs(path, element=np.dtype("<f4")), None
        case ".bvecs":
            return _open_vecs(path, element=np.dtype("u1")), None
        case ".hdf5" | ".h5":
            return _open_hdf5(path, dataset)
    raise InvalidArgument.of("FILE", f"{path.name} is no .npy, .fvecs, .bvecs, .hdf5 or .h5 file")


def as_float32(rows: npt.NDArray[Any]) -> Float32Matrix:
    """Return `rows` as C-contiguous float32, whatever numbers they are."""
    return np.ascontiguousarray(rows, dtype=np.float32)


def _open_npy(path: Path) -> Matrix:
    try:
        matrix: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise InvalidArgument.of("FILE", f"{path} cannot be read as .npy: {error}") from error
    if matrix.dtype.kind not in "fiu":
        raise InvalidArgument.of("FILE", f"{path} holds {matrix.dtype}, no numbers")
    return matrix


def _open_vecs(path: Path, *, element: np.dtype[Any]) -> Matrix:
    """Map a .fvecs or .bvecs file (Jégou et al., TEXMEX): int32 dimension, then the elements."""
    try:
        content = np.memmap(path, dtype=np.uint8, mode="r")
    except (ValueError, OSError) as error:
        raise InvalidArgument.of("FILE", f"{path} cannot be read: {error}") from error
    dimension = int(content[:4].view("<i4")[0]) if len(content) >= 4 else 0
    row_bytes = 4 + dimension * element.itemsize
    if dimension <= 0 or len(content) % row_bytes:
        raise InvalidArgument.of(
            "FILE", f"{path} is damaged: {len(content)} bytes are no rows of dimension {dimension}"
        )
    rows = content.reshape(-1, row_bytes)
    dimensions = rows[:, :4].copy().view("<i4")[:, 0]
    wrong = np.flatnonzero(dimensions != dimension)
    if len(wrong):
        row = int(wrong[0])
        raise InvalidArgument.of(
            "FILE", f"{path}: row {row} has dimension {dimensions[row]}, row 0 has {dimension}"
        )
    record = np.dtype([("dimension", "<i4"), ("values", element, (dimension,))])
    values: npt.NDArray[Any] = content.view(record)["values"]
    return values


def _open_hdf5(path: Path, dataset: str) -> tuple[Matrix, str | None]:
    try:
        import h5py
    except ImportError as error:
        raise InvalidArgument.of(
            "FILE", "HDF5 needs another package: pip install 'annheal[hdf5]'"
        ) from error
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InvalidArgument.of("FILE", f"{path} cannot be read as HDF5: {error}") from error
    if dataset not in file:
        raise InvalidArgument.of(
            "--dataset", f"{path} has no {dataset}; there are {', '.join(sorted(file))}"
        )
    matrix: Matrix = file[dataset]
    distance = file.attrs.get("distance")
    if isinstance(distance, bytes):
        distance = distance.decode()
    return matrix, _ANN_BENCHMARKS_METRICS.get(str(distance))
