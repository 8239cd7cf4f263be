"""`part.json`: what a vector part says about itself (docs/formats/vector-part.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from annheal.errors import DataCorruption, FailedPrecondition
from annheal.model.collection import ModelSpec, VectorStorage
from annheal.model.topology.manifest import IndexKind
from annheal.segment.meta import INDEX_FILE, VECTORS_FILE, BuildInfo, FileEntry

PART_FORMAT_VERSION = 1
PART_META_FILE = "part.json"
PART_ROWS_FILE = "rows.npy"
"""The segment's row of each vector, int32; left out where all rows have one, in order."""


@dataclass(frozen=True, slots=True)
class PartMeta:
    """The content of `part.json`.

    `rows` vectors of the model belong to rows of the segment, which has `segment_rows`. `skipped`
    counts, by reason, the live rows of the segment that a backfill could not give a vector.
    `graph_rows` as in `SegmentMeta`.
    """

    format_version: int
    segment_id: str
    part_id: str
    model: ModelSpec
    rows: int
    segment_rows: int
    index_kind: IndexKind
    build: BuildInfo
    created_at_s: float
    files: tuple[FileEntry, ...]
    graph_rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)


def encode_part_meta(meta: PartMeta) -> bytes:
    """Return `part.json`; equal values give equal bytes."""
    return msgspec.json.format(msgspec.json.encode(meta, order="deterministic"), indent=1) + b"\n"


# Made here, by one thread: see `annheal.segment.meta`.
_DECODER = msgspec.json.Decoder(PartMeta)


def decode_part_meta(body: bytes, *, segment_id: str, part_id: str) -> PartMeta:
    """Return the content of a `part.json` whose checksum was verified.

    Raises `FailedPrecondition` when a newer format wrote it, `DataCorruption` when it is no
    `part.json` of this part.
    """
    facts = {"segment": segment_id, "part": part_id, "file": PART_META_FILE}
    try:
        loose: Any = msgspec.json.decode(body)
        version = loose["format_version"]
        if isinstance(version, int) and version > PART_FORMAT_VERSION:
            raise FailedPrecondition(
                f"vector part {part_id} of segment {segment_id} has format {version}; this version"
                f" of Annheal reads formats up to {PART_FORMAT_VERSION}: upgrade this process",
                reason="SEGMENT_FORMAT_TOO_NEW",
                metadata=facts,
            )
        meta = _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataCorruption(
            f"{PART_META_FILE} of vector part {part_id} cannot be read: {error}", metadata=facts
        ) from error
    fits = (
        (meta.segment_id, meta.part_id) == (segment_id, part_id)
        and 1 <= meta.rows <= meta.segment_rows
        and 0 <= meta.graph_rows < meta.rows
        and _has_its_files(meta)
    )
    if not fits:
        raise DataCorruption(
            f"{PART_META_FILE} of vector part {part_id} of segment {segment_id} describes another"
            " part, or no possible one",
            metadata=facts,
        )
    return meta


def _has_its_files(meta: PartMeta) -> bool:
    names = {file.name for file in meta.files}
    wanted = {INDEX_FILE}
    if meta.build.storage is not VectorStorage.FLOAT32:
        wanted.add(VECTORS_FILE)
    if meta.rows < meta.segment_rows:
        wanted.add(PART_ROWS_FILE)
    return wanted <= names <= wanted | {PART_ROWS_FILE}
