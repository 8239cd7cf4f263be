"""The bytes of a shard's recall memory. docs/formats/recall.md specifies them."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import msgspec
import numpy as np
import xxhash

from annheal.errors import DataCorruption, InvalidArgument
from annheal.filters import format_expression, parse_expression
from annheal.model.filter import Filter
from annheal.model.measures.recall import (
    BandCoverage,
    SegmentRecall,
    SelectivityBand,
    ShardBandRecall,
    Shortfall,
)
from annheal.model.measures.recall_tail import TailObjective
from annheal.model.records import Float32Matrix

QUERIES_MAX = 256
"""Logged queries of one memory: the standard error of a recall of 0.95 is then about 0.01."""
VECTORS_BYTES_MAX = 4 << 20
MEASUREMENTS_MAX = 2_000
"""Measurements of one memory, and states of the controller; those of the lowest recall are kept."""
FILTER_TEXT_BYTES_MAX = 4_096
"""A longer filter is not stored; its query is stored without it."""

_MAGIC = b"ANRM"
_VERSION = 1
# magic, version, two bytes of zero, dimension, queries, bytes of the facts.
_HEADER = struct.Struct("<4sHHIII")
_CHECKSUM_BYTES = 16


@dataclass(frozen=True, slots=True)
class EfMemory:
    """The controller's state of one segment in one band; see `shard_node.recall.ef_control`."""

    segment_id: str
    band: SelectivityBand
    scale: float
    floor: float = 0.0
    floor_runs: int = 0
    rebuild: bool = False
    stuck: bool = False
    shortfall: Shortfall | None = None


@dataclass(frozen=True, slots=True)
class LoggedQuery:
    """A sampled live query without its vector. It contains what a user sent.

    `objective` and `ef` are those that the user set, None where the collection's settings hold.
    """

    k: int
    band: SelectivityBand
    sampled_at_s: float
    filter: Filter | None = None
    objective: float | None = None
    ef: int | None = None


@dataclass(frozen=True, slots=True)
class RecallMemory:
    """The recall memory of a shard, written at `written_at_s` (seconds since the epoch).

    `vectors` (n, d) float32 are those of `queries`, of the model named `model`. `objective`, `k`
    and `tail` are those that the states and measurements are about; 0 in a memory of 0.1, which has
    none. `coverage` has the audits of its estimates so far.
    """

    model: str
    written_at_s: float
    objective: float = 0.0
    k: int = 0
    ef: tuple[EfMemory, ...] = ()
    segments: tuple[SegmentRecall, ...] = ()
    bands: tuple[ShardBandRecall, ...] = ()
    queries: tuple[LoggedQuery, ...] = ()
    vectors: Float32Matrix = field(default_factory=lambda: np.empty((0, 0), dtype=np.float32))
    tail: TailObjective | None = None
    coverage: tuple[BandCoverage, ...] = ()


@dataclass(frozen=True, slots=True)
class _Query:
    k: int
    band: SelectivityBand
    sampled_at_s: float
    filter: str = ""
    objective: float | None = None
    ef: int | None = None


@dataclass(frozen=True, slots=True)
class _Facts:
    """The memory without the vectors, as it is stored in MessagePack."""

    model: str
    written_at_s: float
    objective: float = 0.0
    k: int = 0
    ef: tuple[EfMemory, ...] = ()
    segments: tuple[SegmentRecall, ...] = ()
    bands: tuple[ShardBandRecall, ...] = ()
    queries: tuple[_Query, ...] = ()
    tail: TailObjective | None = None
    coverage: tuple[BandCoverage, ...] = ()


# Created once: msgspec must not inspect a dataclass in several threads at the same time.
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Facts)


def queries_max(dimension: int) -> int:
    """Return how many queries of `dimension` floats a memory may have, at least one."""
    return max(1, min(QUERIES_MAX, VECTORS_BYTES_MAX // (4 * dimension)))


def encode_memory(memory: RecallMemory) -> bytes:
    """Return the bytes of the object. The caller keeps the limits above."""
    count, dimension = memory.vectors.shape
    facts = _ENCODER.encode(
        _Facts(
            memory.model,
            memory.written_at_s,
            memory.objective,
            memory.k,
            memory.ef,
            memory.segments,
            memory.bands,
            tuple(
                _Query(
                    one.k,
                    one.band,
                    one.sampled_at_s,
                    _filter_text(one.filter),
                    one.objective,
                    one.ef,
                )
                for one in memory.queries
            ),
            memory.tail,
            memory.coverage,
        )
    )
    head = _HEADER.pack(_MAGIC, _VERSION, 0, dimension, count, len(facts))
    vectors = np.ascontiguousarray(memory.vectors, dtype="<f4").tobytes()
    body = head + facts + vectors
    return body + xxhash.xxh3_128_digest(body)


def decode_memory(stored: bytes, *, key: str) -> RecallMemory:
    """Return the memory in the object `key`; raises `DataCorruption` when it is not one."""
    body, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
    if len(body) < _HEADER.size or xxhash.xxh3_128_digest(body) != checksum:
        raise _damaged(key, "its checksum does not match")
    magic, version, _, dimension, count, facts_bytes = _HEADER.unpack_from(body)
    if magic != _MAGIC or version != _VERSION:
        raise _damaged(key, f"it is of version {version}, this software reads {_VERSION}")
    start = _HEADER.size + facts_bytes
    if len(body) != start + 4 * dimension * count:
        raise _damaged(key, "its length is wrong")
    try:
        facts = _DECODER.decode(body[_HEADER.size : start])
        queries = tuple(
            LoggedQuery(
                one.k,
                one.band,
                one.sampled_at_s,
                _filter_of(one.filter),
                one.objective,
                one.ef,
            )
            for one in facts.queries
        )
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidArgument) as error:
        raise _damaged(key, str(error)) from error
    if len(queries) != count:
        raise _damaged(key, "it has more queries than vectors, or fewer")
    vectors = np.frombuffer(body, dtype="<f4", offset=start).reshape(count, dimension)
    return RecallMemory(
        facts.model,
        facts.written_at_s,
        facts.objective,
        facts.k,
        facts.ef,
        facts.segments,
        facts.bands,
        queries,
        vectors.astype(np.float32),
        facts.tail,
        facts.coverage,
    )


def _filter_text(filter: Filter | None) -> str:
    text = "" if filter is None else format_expression(filter)
    return text if len(text.encode()) <= FILTER_TEXT_BYTES_MAX else ""


def _filter_of(text: str) -> Filter | None:
    return parse_expression(text) if text else None


def _damaged(key: str, why: str) -> DataCorruption:
    return DataCorruption(f"{key} holds no recall memory: {why}", metadata={"key": key})
