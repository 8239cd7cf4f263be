"""Writing a vector part as local files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from annheal.errors import InvariantViolation
from annheal.index import VectorIndex
from annheal.model.collection import ModelSpec, VectorStorage
from annheal.model.topology.manifest import VectorPartEntry
from annheal.segment.checksum import checksum_of
from annheal.segment.meta import INDEX_FILE, VECTORS_FILE, BuildInfo
from annheal.segment.parts.meta import (
    PART_FORMAT_VERSION,
    PART_META_FILE,
    PART_ROWS_FILE,
    PartMeta,
    encode_part_meta,
)
from annheal.segment.write import file_entry

_FLAT = BuildInfo()
_NONE_SKIPPED: Mapping[str, int] = {}


def write_part(
    directory: Path,
    *,
    segment_id: str,
    part_id: str,
    model: ModelSpec,
    index: VectorIndex,
    rows: npt.NDArray[np.int64],
    segment_rows: int,
    created_at_s: float,
    build: BuildInfo = _FLAT,
    skipped: Mapping[str, int] = _NONE_SKIPPED,
    yield_point: Callable[[], None] = lambda: None,
) -> VectorPartEntry:
    """Write the files of a vector part into `directory` (made if missing) and return its entry.

    Vector i of `index` belongs to row `rows[i]` of the segment, which has `segment_rows`; at least
    one. `skipped`: live rows without a vector, by reason. Blocks: run it in a worker thread.
    `yield_point` is called before each file is written and ends the work by raising.
    """
    _check(index, rows, model=model, segment_rows=segment_rows)
    directory.mkdir(parents=True, exist_ok=True)
    yield_point()
    index.write(directory / INDEX_FILE)
    names = [INDEX_FILE]
    if index.storage is not VectorStorage.FLOAT32:
        yield_point()
        index.write_raw(directory / VECTORS_FILE)
        names.append(VECTORS_FILE)
    if not np.array_equal(rows, np.arange(segment_rows)):
        yield_point()
        np.save(directory / PART_ROWS_FILE, rows.astype(np.int32))
        names.append(PART_ROWS_FILE)
    yield_point()
    meta = PartMeta(
        format_version=PART_FORMAT_VERSION,
        segment_id=segment_id,
        part_id=part_id,
        model=model,
        rows=len(rows),
        segment_rows=segment_rows,
        index_kind=index.kind,
        build=replace(build, storage=index.storage),
        created_at_s=created_at_s,
        files=tuple(file_entry(directory / name) for name in names),
        graph_rows=0 if index.graph_size == index.rows else index.graph_size,
        skipped=dict(skipped),
    )
    body = encode_part_meta(meta)
    (directory / PART_META_FILE).write_bytes(body)
    return VectorPartEntry(
        part_id=part_id,
        model=model.name,
        index_kind=index.kind,
        rows=meta.rows,
        size_bytes=sum(file.size_bytes for file in meta.files) + len(body),
        meta_checksum=checksum_of(body),
        created_at_s=created_at_s,
        skipped=sum(skipped.values()),
    )


def _check(
    index: VectorIndex, rows: npt.NDArray[np.int64], *, model: ModelSpec, segment_rows: int
) -> None:
    """Refuse what does not belong together: a bug of the caller."""
    fits = (
        1 <= index.rows == len(rows) <= segment_rows
        and index.dimension == model.dimension
        and index.metric is model.metric
        and int(rows.min()) >= 0
        and int(rows.max()) < segment_rows
        and len(np.unique(rows)) == len(rows)
    )
    if not fits:
        raise InvariantViolation(
            f"a vector part of {index.rows} x {index.dimension} does not fit {len(rows)} of"
            f" {segment_rows} rows and model {model.name!r} of dimension {model.dimension}"
        )
