"""Files that `annheal import` reads."""

from __future__ import annotations

from pathlib import Path

from annheal.cli.sources.chunk import Chunk, Columns, ImportSource, Layout, Place, Progress
from annheal.cli.sources.jsonl import JsonlSource
from annheal.cli.sources.matrix import MatrixSource
from annheal.cli.sources.parquet import ParquetSource
from annheal.errors import InvalidArgument

__all__ = ["Chunk", "Columns", "ImportSource", "Layout", "Place", "check_file", "open_source"]

_MATRIX_SUFFIXES = (".npy", ".fvecs", ".bvecs", ".hdf5", ".h5")
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_PARQUET_SUFFIXES = (".parquet", ".pq")


def open_source(
    path: Path, columns: Columns, *, meta: Path | None = None, progress: Progress | None = None
) -> ImportSource:
    """Open `path` by its suffix; `meta` is a Parquet file with the ids of a file of vectors.

    `progress` is told of bytes read where the whole file must be read to know its columns.

    Raises `InvalidArgument` when the file cannot be read, or its columns not be told apart.
    """
    check_file(path)
    suffix = path.suffix.lower()
    if suffix in _MATRIX_SUFFIXES:
        return MatrixSource(path, columns, meta=meta)
    if meta is not None:
        raise InvalidArgument.of("--meta", "belongs to files that hold vectors alone")
    if suffix in _PARQUET_SUFFIXES:
        return ParquetSource(path, columns)
    return JsonlSource(path, columns, progress=progress)


def check_file(path: Path) -> None:
    """Raise `InvalidArgument` unless `path` is a file with a suffix that is known."""
    if not path.is_file():
        raise InvalidArgument.of("FILE", f"{path} does not exist or is no file")
    known = (*_PARQUET_SUFFIXES, *_JSONL_SUFFIXES, *_MATRIX_SUFFIXES)
    if path.suffix.lower() not in known:
        raise InvalidArgument.of(
            "FILE", f"{path.name}: the suffix must be one of {', '.join(known)}"
        )
