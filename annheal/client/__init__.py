"""The Python SDK. docs/python-sdk.md shows how to use it."""

from __future__ import annotations

from annheal.client.admin_calls import SegmentList
from annheal.client.async_client import AsyncClient
from annheal.client.collection_calls import CollectionInfo
from annheal.client.connection import DEFAULT_ADDRESS
from annheal.client.embedder import Embedder
from annheal.client.results import Hit, Record, Records, SearchBatch, SearchResult, WriteResult
from annheal.client.sync_client import Client

__all__ = [
    "DEFAULT_ADDRESS",
    "AsyncClient",
    "Client",
    "CollectionInfo",
    "Embedder",
    "Hit",
    "Record",
    "Records",
    "SearchBatch",
    "SearchResult",
    "SegmentList",
    "WriteResult",
]
