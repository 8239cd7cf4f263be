"""Segments: immutable rows on disk with their index, and the delete vectors beside them."""

from __future__ import annotations

from annheal.segment.checksum import checksum_of
from annheal.segment.deletes import DeleteVector, decode_delete_vector, encode_delete_vector
from annheal.segment.files import (
    SegmentFiles,
    SegmentStore,
    fetch_segment,
    load_delete_vector,
    local_segment,
    segment_directory,
    upload_segment,
)
from annheal.segment.meta import BuildInfo, GraphHistory, GraphKind, RecallPoint, SegmentMeta
from annheal.segment.rows import SegmentRows
from annheal.segment.segment import Segment
from annheal.segment.write import write_segment

__all__ = [
    "BuildInfo",
    "DeleteVector",
    "GraphHistory",
    "GraphKind",
    "RecallPoint",
    "Segment",
    "SegmentFiles",
    "SegmentMeta",
    "SegmentRows",
    "SegmentStore",
    "checksum_of",
    "decode_delete_vector",
    "encode_delete_vector",
    "fetch_segment",
    "load_delete_vector",
    "local_segment",
    "segment_directory",
    "upload_segment",
    "write_segment",
]
