"""The recall memory of a shard: measurements, the controller's states and logged queries."""

from __future__ import annotations

from annheal.recall.memory import (
    MEASUREMENTS_MAX,
    QUERIES_MAX,
    VECTORS_BYTES_MAX,
    EfMemory,
    LoggedQuery,
    RecallMemory,
    decode_memory,
    encode_memory,
    queries_max,
)
from annheal.recall.store import load_memory, store_memory

__all__ = [
    "MEASUREMENTS_MAX",
    "QUERIES_MAX",
    "VECTORS_BYTES_MAX",
    "EfMemory",
    "LoggedQuery",
    "RecallMemory",
    "decode_memory",
    "encode_memory",
    "load_memory",
    "queries_max",
    "store_memory",
]
