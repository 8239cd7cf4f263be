"""Files that hold vectors alone: .npy, .fvecs, .bvecs, and HDF5 as ann-benchmarks lays it out.

Ids are row numbers, unless a Parquet file beside them (`--meta`) holds ids and attributes in the
same order.
"""

from __future__ import annotations

import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.cli.sources.arrow_table import chunk_of, finite_float32
from annheal.cli.sources.chunk import CHUNK_BYTES_MAX, Chunk, Columns, Layout, Place
from annheal.cli.sources.parquet import ParquetRows, with_prefix
from annheal.cli.sources.plan import plan_columns
from annheal.errors import InvalidArgument
from annheal.model.records import Float32Matrix

_ANN_BENCHMARKS_METRICS = {
    "angular": "cosine",
    "cosine": "cosine",
    "euclidean": "l2",
    "dot": "inner_product",
}

# The header is a Python literal, so a damaged one raises what Python's parser does.
NPY_ERRORS = (
    ValueError,
    OSError,
    EOFError,
    SyntaxError,
    TypeError,
    KeyError,
    OverflowError,
    MemoryError,
    tokenize.TokenError,
)


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
        if meta is None and columns.are_chosen:
            raise InvalidArgument.of(
                "FILE", f"{path} holds vectors alone: columns can be chosen of a --meta file only"
            )
        self._path = path
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
            self._layout = self._meta.plan.layout(rows=rows, dimension=dimension, metric=metric)

    @property
    def layout(self) -> Layout:
        """What was found in the file."""
        return self._layout

    def chunks(self, *, rows_max: int, limit: int | None = None, skip: int = 0) -> Iterator[Chunk]:
        """Yield rows in file order behind the first `skip`, at most `limit` in all."""
        rows = self._layout.rows
        end = rows if limit is None else min(skip + limit, rows)
        if self._meta is None:
            step = max(1, min(rows_max, CHUNK_BYTES_MAX // (4 * self._layout.dimension)))
            for start in range(skip, end, step):
                stop = min(start + step, end)
                ids = [f"{self._prefix}{row}" for row in range(start, stop)]
                yield Chunk(ids, self._vectors(start, stop), Place(self._path, start))
            return
        for start, table in self._meta.read(rows_max=rows_max, first=skip, end=end):
            vectors = self._vectors(start, start + len(table))
            yield with_prefix(self._meta.chunk(table, vectors, first_row=start), self._prefix)

    def _vectors(self, start: int, stop: int) -> Float32Matrix:
        place = Place(self._path, start)
        try:
            values = np.asarray(self._matrix[start:stop])
        except OSError as error:
            raise InvalidArgument.of(
                "FILE", f"{self._path} cannot be read from row {start} on: {error}"
            ) from error
        return finite_float32(values, name="vector", place=place)


class _MetaTable:
    """Ids and attributes of vectors that lie in another file, row by row."""

    def __init__(self, path: Path, columns: Columns, *, rows: int) -> None:
        self._path = path
        self._table = ParquetRows(path, option="--meta")
        if self._table.rows != rows:
            raise InvalidArgument.of(
                "--meta", f"{path} has {self._table.rows} rows for {rows} vectors"
            )
        self.plan = plan_columns(self._table.facts(), columns, with_vectors=False)

    def read(self, *, rows_max: int, first: int, end: int) -> Iterator[tuple[int, pa.Table]]:
        """Yield the rows from `first` to `end` in parts, each with the number of its first row."""
        return self._table.read(self.plan, rows_max=rows_max, first=first, end=end)

    def chunk(self, table: pa.Table, vectors: Float32Matrix, *, first_row: int) -> Chunk:
        """Return rows that were read with their vectors."""
        return chunk_of(table, self.plan, vectors=vectors, place=Place(self._path, first_row))


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


def _open_npy(path: Path) -> Matrix:
    try:
        matrix: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except NPY_ERRORS as error:
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
    matrix = file[dataset]
    if not isinstance(matrix, h5py.Dataset) or matrix.dtype.kind not in "fiu":
        found = matrix.dtype if isinstance(matrix, h5py.Dataset) else "a group"
        raise InvalidArgument.of("--dataset", f"{dataset} of {path} holds {found}, no numbers")
    distance = file.attrs.get("distance")
    if isinstance(distance, bytes):
        distance = distance.decode()
    return matrix, _ANN_BENCHMARKS_METRICS.get(str(distance))
