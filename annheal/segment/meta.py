"""`segment.json`: what a segment says about itself, as docs/formats/segment.md specifies it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import msgspec

from annheal.errors import DataCorruption, FailedPrecondition
from annheal.model.collection import IndexSettings, ModelSpec, Schema, VectorStorage
from annheal.model.topology.manifest import IndexKind, Tier

FORMAT_VERSION = 5
"""The version of segments in which rows lack a vector of the segment's model."""
FORMAT_VERSION_COPIES = 4
"""The version of segments with copies (`SegmentMeta.graph_rows`)."""
FORMAT_VERSION_LOSSY = 3
FORMAT_VERSION_FLOAT32 = 2
"""Without lacking rows, copies or lossy storage, older readers can open a segment."""

META_FILE = "segment.json"
INDEX_FILE = "index.faiss"
ROWS_FILE = "rows.arrow"
HASHES_FILE = "hashes.npy"
ORDER_FILE = "order.npy"
FIELDS_FILE = "fields.arrow"
VECTORS_FILE = "vectors.faiss"
LACKING_FILE = "lacking.npy"
"""The rows without a vector of the segment's model, int32, ascending."""
DATA_FILES = (INDEX_FILE, ROWS_FILE, FIELDS_FILE, HASHES_FILE, ORDER_FILE)
"""Every file beside `segment.json` where storage is float32."""
DATA_FILES_LOSSY = (*DATA_FILES, VECTORS_FILE)
_DATA_FILES_OF_FORMAT = {
    1: (INDEX_FILE, ROWS_FILE, HASHES_FILE, ORDER_FILE),
    2: DATA_FILES,
    FORMAT_VERSION_LOSSY: DATA_FILES_LOSSY,
}


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the segment: its size and the xxh3-128 hex digest of its bytes."""

    name: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True, slots=True)
class RecallPoint:
    """Mean recall@`k` of the graph, searched with beam width `ef`, against exact comparison.

    `error` is the standard error of that mean over the probes (hits of one query are correlated,
    so it is taken over queries, not over hits); 0 when it was not measured.

    `band` is the share of rows that matched a filter, such as "0.05"; "" without a filter. `far`:
    the matching rows were those far from the query, otherwise random ones. `selector`: the plain
    walk with the filter applied to the rows it kept, otherwise the walk that compares matching
    rows only. `visited` and `checked` are means over the probes of the rows compared and tested
    against the filter; 0 when they were not measured. `reach` is the ratio of
    `annheal.index.Reach`, with rank `k`, at which walks whose width adapts to the query have the
    same recall; 0 where they were not measured or compare more rows.
    """

    k: int
    ef: int
    recall: float
    error: float = 0.0
    band: str = ""
    far: bool = False
    selector: bool = False
    visited: float = 0.0
    checked: float = 0.0
    reach: float = 0.0


class GraphKind(StrEnum):
    """How a graph was built. UNKNOWN: there is none, or it was built in one piece by older code."""

    UNKNOWN = ""
    FULL = "full"
    INCREMENTAL = "incremental"


@dataclass(frozen=True, slots=True)
class GraphHistory:
    """The history of a graph since its last rebuild.

    Attributes:
        kind: how the graph was made.
        merges: incremental merges since the rebuild; 0 in the rebuilt segment itself.
        changed_rows: rows removed or added since the recall under filters was measured.
        reference_rows: rows of the rebuilt segment; 0 in that segment itself.
        reference: the recall curve of its held-out rows, without filters. Later graphs are compared
            with it, so that small losses do not add up. Empty in the rebuilt segment itself if it
            is the same as the recall curve.
    """

    kind: GraphKind = GraphKind.UNKNOWN
    merges: int = 0
    changed_rows: int = 0
    reference_rows: int = 0
    reference: tuple[RecallPoint, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """How a segment came to be.

    `generation` is 0 for a flushed segment and one more than the highest of its `sources` for a
    merged one. `settings` is None for a flat index. `recall_curve` is empty where nothing was
    measured, as for a flat index, whose answers are exact. `reason` is the compaction's, as
    `annheal.model.topology.task.TaskReason` says it; empty for a flushed segment and in older ones.
    `storage` is that of the vectors which the graph is walked with.
    """

    settings: IndexSettings | None = None
    generation: int = 0
    sources: tuple[str, ...] = ()
    recall_curve: tuple[RecallPoint, ...] = ()
    reason: str = ""
    graph: GraphHistory = GraphHistory()
    storage: VectorStorage = VectorStorage.FLOAT32


@dataclass(frozen=True, slots=True)
class SegmentMeta:
    """The content of `segment.json`.

    `graph_rows`: rows before the copies, 0 where the segment has none.
    """

    format_version: int
    segment_id: str
    tier: Tier
    rows: int
    model: ModelSpec
    schema: Schema
    index_kind: IndexKind
    build: BuildInfo
    min_sequence: int
    max_sequence: int
    created_at_s: float
    files: tuple[FileEntry, ...]
    graph_rows: int = 0


def data_files(format_version: int, storage: VectorStorage) -> tuple[str, ...]:
    """Return the names of the files beside `segment.json`."""
    stored = DATA_FILES if storage is VectorStorage.FLOAT32 else DATA_FILES_LOSSY
    if format_version == FORMAT_VERSION:
        return (*stored, LACKING_FILE)
    return _DATA_FILES_OF_FORMAT.get(format_version, stored)


def encode_meta(meta: SegmentMeta) -> bytes:
    """Return `segment.json`; equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(meta, order="deterministic"), indent=1) + b"\n"


# Made here and not when first used: msgspec 0.22 crashes when threads describe a dataclass to it
# at the same time for the first time, and segments are read by several threads.
_DECODER = msgspec.json.Decoder(SegmentMeta)


def decode_meta(body: bytes, *, segment_id: str) -> SegmentMeta:
    """Return the content of a `segment.json` whose checksum was verified.

    Raises `FailedPrecondition` when a newer format wrote it, `DataCorruption` when it is no
    `segment.json` of the segment.
    """
    facts = {"segment": segment_id, "file": META_FILE}
    try:
        loose: Any = msgspec.json.decode(body)
        version = loose["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise FailedPrecondition(
                f"segment {segment_id} has format {version}; this version of Annheal reads"
                f" formats up to {FORMAT_VERSION}: upgrade this process",
                reason="SEGMENT_FORMAT_TOO_NEW",
                metadata=facts,
            )
        meta = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataCorruption(
            f"{META_FILE} of segment {segment_id} cannot be read: {error}", metadata=facts
        ) from error
    bounded = 0 <= meta.graph_rows < max(1, meta.rows)
    if meta.segment_id != segment_id or meta.rows < 1 or not bounded or meta.format_version < 1:
        raise DataCorruption(
            f"{META_FILE} of segment {segment_id} describes segment {meta.segment_id!r},"
            f" {meta.rows} rows, {meta.graph_rows} of them in the graph, format"
            f" {meta.format_version}",
            metadata=facts,
        )
    expected = data_files(meta.format_version, meta.build.storage)
    if sorted(file.name for file in meta.files) != sorted(expected):
        raise DataCorruption(
            f"{META_FILE} of segment {segment_id} names other files than format"
            f" {meta.format_version} has",
            metadata=facts,
        )
    return meta
