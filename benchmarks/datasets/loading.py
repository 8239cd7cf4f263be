"""Filling a collection and waiting for its index, and the FAISS index that it is compared with."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from annheal import AsyncClient
from annheal.client.admin_calls import OPEN_PHASES
from annheal.model.topology.manifest import Tier
from annheal.model.topology.task import TaskPhase
from benchmarks.harness.dataset import Dataset

COLLECTION = "bench"
FAISS_M = 16
FAISS_EF_CONSTRUCTION = 100
INDEX_TIMEOUT_S = 1_800.0
INDEX_POLL_S = 0.25
STILL_S = 5.0
"""Longer than the server waits for more writes before it compacts what it has."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Seconds from the first row sent until all were acknowledged, and until all were indexed."""

    acknowledged_s: float
    indexed_s: float


def build_faiss(dataset: Dataset) -> tuple[Any, float]:
    """Return FAISS's own HNSW index over the same rows, and the seconds of its build."""
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    started_s = time.perf_counter()
    index = faiss.IndexHNSWFlat(dataset.dimension, FAISS_M, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = FAISS_EF_CONSTRUCTION
    index.add(dataset.vectors)
    return index, time.perf_counter() - started_s


async def load(
    client: AsyncClient,
    dataset: Dataset,
    *,
    compact: bool,
    settings: Mapping[str, Any] | None = None,
) -> Loaded:
    """Fill a new collection and wait until graphs cover all of it; default settings, or `settings`.

    With `compact` the client asks for flush and compaction after the last row, as one does after a
    bulk load; without it the server decides when.
    """
    await client.create_collection(
        COLLECTION,
        dataset.dimension,
        metric="cosine",
        attributes=dataset.schema,
        settings=settings,
    )
    started_s = time.perf_counter()
    await client.upsert(
        COLLECTION,
        dataset.ids,
        dataset.vectors,
        attributes=dataset.attributes,
        payloads=dataset.payloads,
    )
    acknowledged_s = time.perf_counter() - started_s
    if compact:
        await client.flush(COLLECTION, timeout_s=INDEX_TIMEOUT_S)
        await client.compact(COLLECTION, timeout_s=INDEX_TIMEOUT_S)
    await _wait_indexed(client, dataset.rows, compact=compact)
    return Loaded(acknowledged_s, time.perf_counter() - started_s)


async def grow(client: AsyncClient, dataset: Dataset, *, start: int, stop: int) -> None:
    """Add the rows from `start` to `stop` to the collection, flush, and compact until nothing is
    left to do; the first rows create it, with default settings.

    Raises `RuntimeError` when a compaction failed and `TimeoutError` when they do not end.
    """
    if not start:
        await client.create_collection(
            COLLECTION, dataset.dimension, metric="cosine", attributes=dataset.schema
        )
    await client.upsert(
        COLLECTION,
        dataset.ids[start:stop],
        dataset.vectors[start:stop],
        attributes=dataset.attributes.slice(start, stop - start),
        payloads=None if dataset.payloads is None else dataset.payloads[start:stop],
        timeout_s=INDEX_TIMEOUT_S,
    )
    await client.flush(COLLECTION, timeout_s=INDEX_TIMEOUT_S)
    deadline_s = time.monotonic() + INDEX_TIMEOUT_S
    while tasks := await client.compact(COLLECTION, timeout_s=INDEX_TIMEOUT_S):
        failed = [task.error for task in tasks if task.phase is TaskPhase.FAILED]
        if failed:
            raise RuntimeError(f"a compaction failed: {failed[0]}")
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"compactions went on for {INDEX_TIMEOUT_S:g} s")


async def _wait_indexed(client: AsyncClient, rows: int, *, compact: bool) -> None:
    deadline_s = time.monotonic() + INDEX_TIMEOUT_S
    while True:
        segments = (await client.segments(COLLECTION)).segments
        covered = sum(s.rows - s.dead_rows for s in segments if s.index_kind == "hnsw")
        if covered == rows and all(s.index_kind == "hnsw" for s in segments):
            return
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{covered} of {rows} rows were indexed in {INDEX_TIMEOUT_S:g} s")
        if compact:
            await client.compact(COLLECTION, timeout_s=INDEX_TIMEOUT_S)
        await asyncio.sleep(INDEX_POLL_S)


async def wait_at_rest(client: AsyncClient) -> None:
    """Return when all rows are in segments, no compaction is under way, and so it stays."""
    deadline_s = time.monotonic() + INDEX_TIMEOUT_S
    before: object = None
    since_s = time.monotonic()
    while time.monotonic() - since_s < STILL_S:
        tasks = await client.tasks(COLLECTION)
        segments = (await client.segments(COLLECTION)).segments
        now = frozenset(segment.segment_id for segment in segments if segment.rows)
        growing = any(one.rows and one.tier == Tier.GROWING for one in segments)
        if now != before or growing or any(task.phase in OPEN_PHASES for task in tasks):
            before, since_s = now, time.monotonic()
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the server did not come to rest in {INDEX_TIMEOUT_S:g} s")
        await asyncio.sleep(INDEX_POLL_S)


def recall(found: list[list[str]], truth: np.ndarray[Any, Any], ids: list[str]) -> float:
    """Return the share of the true neighbours' rows (q, k) that are among the ids `found`."""
    hits = sum(
        len({ids[row] for row in best.tolist()} & set(names))
        for names, best in zip(found, truth, strict=True)
    )
    return hits / truth.size
