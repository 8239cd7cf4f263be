"""Files that `annheal import` reads."""

from __future__ import annotations

from pathlib import Path

from annheal.errors import InvalidArgument
from cli.sources.chunk import Chunk, Columns, ImportSource, Layout
from cli.sources.jsonl import JsonlSource
from cli.sources.matrix import MatrixSource
from cli.sources.parquet import ParquetSource

__all__ = ["Chunk", "Columns", "ImportSource", "Layout", "open_source"]

_MATRIX_SUFFIXES = (".npy", ".fvecs", ".bvecs", ".hdf5", ".h5")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_PARQUET_SUFFIXES = (".parquet", ".pq")


def open_source(path: Path, columns: Columns, *, meta: Path | None = None) -> ImportSource:
    """Open `path` by its suffix; `meta` is a Parquet file with the ids of a file of vectors.

    Raises `InvalidArgument` when the file cannot be read, or its columns not be told apart.
    """
    if not path.is_file():
        raise InvalidArgument.of("FILE", f"{path} does not exist or is no file")
    suffix = path.suffix.lower()
    if suffix in _MATRIX_SUFFIXES:
        return MatrixSource(path, columns, meta=meta)
    if meta is not None:
        raise InvalidArgument.of("--meta", "belongs to files that hold vectors alone")
    if suffix in _PARQUET_SUFFIXES:
        return ParquetSource(path, columns)
    if suffix in _JSONL_SUFFIXES:
        return JsonlSource(path, columns)
    known = (*_PARQUET_SUFFIXES, *_JSONL_SUFFIXES, *_MATRIX_SUFFIXES)
    raise InvalidArgument.of("FILE", f"{path.name}: the suffix must be one of {', '.join(known)}")
