"""A server under churn: writes and queries at once, then a look at it when it has come to rest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from annheal import AsyncClient
from annheal.errors import AnnhealError
from benchmarks.datasets.loading import COLLECTION, load, wait_at_rest
from benchmarks.datasets.population import Change, Population, Truth
from benchmarks.harness.dataset import Dataset
from benchmarks.harness.report import Row
from benchmarks.systems.servers import Server, serve

HEALING_OFF = {"compaction_automatic": "false"}
PROMPT_COLLECTION = {"collection_interval_s": "1", "collection_grace_s": "2"}
PROMPT_MERGES = {"segment_idle_s": 3.0}
"""The month is over in minutes: what nothing names must not lie about for an hour, and a shard
counts as idle after seconds."""

BATCH_QUERIES = 100
WRITE_ROWS = 250
QUERY_PAUSE_S = 0.02
POLL_S = 0.1
COLLECTED_TIMEOUT_S = 30.0
IDLE_TIMEOUT_S = 60.0
IDLE_LOOK_S = 0.5
IDLE_SHARE = 0.1
"""Part of a core that a server may use and count as idle."""
LATENCY_QUERIES_MAX = 500
LATENCY_SECONDS_MAX = 15.0
"""Another round over the queries begins only before so long."""
MEGABYTE = 1e6


@dataclass(slots=True)
class Foreground:
    """What callers saw while rows were written and compacted."""

    queries: int = 0
    writes: int = 0
    ghosts: int = 0
    failures: list[str] = field(default_factory=list)
    took_ms: list[float] = field(default_factory=list)


class ChurnedServer:
    """One server whose collection changes all the time; `name` is that of the report."""

    def __init__(self, name: str, server: Server, client: AsyncClient, *, k: int) -> None:
        self.name = name
        self.foreground = Foreground()
        self._server = server
        self._client = client
        self._k = k
        self._gone: dict[str, int] = {}

    async def load(self, dataset: Dataset) -> None:
        """Fill a new collection and wait until graphs cover it."""
        await load(self._client, dataset, compact=True, settings=PROMPT_MERGES)

    async def apply(self, change: Change, whole: Dataset, *, seconds: float) -> None:
        """Delete and upsert in small batches spread over `seconds`, while queries are asked."""
        self.foreground = Foreground()
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask(whole.queries, stop))
            await self._write(change, whole, seconds=seconds)
            await wait_at_rest(self._client)
            stop.set()

    async def _write(self, change: Change, whole: Dataset, *, seconds: float) -> None:
        steps: list[Callable[[], Awaitable[None]]] = []
        longest = max(len(change.deleted_ids), len(change.upserted_ids))
        for start in range(0, longest, WRITE_ROWS):
            part = slice(start, start + WRITE_ROWS)
            steps.append(lambda part=part: self._delete(change.deleted_ids[part]))  # type: ignore[misc,arg-type]
            steps.append(lambda part=part: self._upsert(change, whole, part))  # type: ignore[misc]
        began_s = time.monotonic()
        for number, step in enumerate(steps):
            await asyncio.sleep(began_s + seconds * number / len(steps) - time.monotonic())
            try:
                await step()
            except AnnhealError as error:
                self.foreground.failures.append(f"write: {error.message}")
            self.foreground.writes += 1

    async def _delete(self, ids: list[str]) -> None:
        if ids:
            await self._client.delete(COLLECTION, ids)
            for id in ids:
                self._gone[id] = len(self._gone)

    async def _upsert(self, change: Change, whole: Dataset, part: slice) -> None:
        ids, rows = change.upserted_ids[part], change.upserted_rows[part]
        if ids:
            await self._client.upsert(
                COLLECTION,
                ids,
                whole.vectors[rows],
                attributes=whole.attributes.take(rows),
                payloads=whole.payloads and [whole.payloads[row] for row in rows.tolist()],
            )

    async def _ask(self, queries: npt.NDArray[np.float32], stop: asyncio.Event) -> None:
        """Ask until stopped. A hit that was deleted before its query was asked is a ghost."""
        seen = self.foreground
        while not stop.is_set():
            gone = len(self._gone)
            started_s = time.perf_counter()
            try:
                query = queries[seen.queries % len(queries)]
                found = await self._client.search(COLLECTION, query, k=self._k)
            except AnnhealError as error:
                seen.failures.append(f"query: {error.message}")
            else:
                seen.took_ms.append((time.perf_counter() - started_s) * 1e3)
                seen.ghosts += sum(self._gone.get(id, gone) < gone for id in found.ids)
                seen.ghosts += len(found.ids) - len(set(found.ids))
            seen.queries += 1
            await asyncio.sleep(QUERY_PAUSE_S)

    async def measure(
        self,
        population: Population,
        truth: Truth,
        queries: npt.NDArray[np.float32],
        *,
        rounds: int,
        reference: ChurnedServer | None = None,
    ) -> Row:
        """Return what one row of the report says of the server at rest.

        With a `reference` every query is asked of both in turns, so that what else the machine
        does meets both, and `p99_ratio` is this server's p99 by that of the reference.
        """
        await self._wait_idle()
        ids: list[list[str]] = []
        scores: list[npt.NDArray[np.float32]] = []
        visited = 0
        for start in range(0, len(queries), BATCH_QUERIES):
            part = queries[start : start + BATCH_QUERIES]
            answer = await self._client.search_batch(COLLECTION, part, k=self._k, explain=True)
            ids += answer.ids
            scores += answer.scores
            visited += sum(one.visited for one in answer.explain)
        judged = population.judge(queries, ids, scores, truth)
        in_turns = [self] if reference is None else [self, reference]
        times = await _time_in_turns(in_turns, queries[:LATENCY_QUERIES_MAX], rounds=rounds)
        p99_ms = np.quantile(times, 0.99, axis=1)
        segments = (await self._client.segments(COLLECTION)).segments
        await self._wait_collected({segment.segment_id for segment in segments})
        return {
            "live_rows": sum(segment.rows - segment.dead_rows for segment in segments),
            "dead_rows": sum(segment.dead_rows for segment in segments),
            "recall": judged.recall,
            "p50_ms": float(np.quantile(times[0], 0.5)),
            "p99_ms": float(p99_ms[0]),
            "p99_ratio": None if reference is None else float(p99_ms[0] / p99_ms[1]),
            "visited": visited / len(queries),
            "ghosts": judged.ghosts,
            "memory_mb": self._server.memory_resident_bytes() / MEGABYTE,
            "disk_mb": self._server.disk_bytes() / MEGABYTE,
            "segments": len(segments),
        }

    def single_caller(self) -> AsyncClient:
        """Return a client whose queries are not gathered into batches."""
        return AsyncClient(self._server.address, batch_searches=False)

    async def time_query(self, client: AsyncClient, query: npt.NDArray[np.float32]) -> float:
        """Return the milliseconds of one query."""
        started_s = time.perf_counter()
        await client.search(COLLECTION, query, k=self._k)
        return (time.perf_counter() - started_s) * 1e3

    async def _wait_idle(self) -> None:
        """Return when the server does next to nothing, or after a while.

        A new server compiles its kernels when it is first searched, and recall is measured in the
        background.
        """
        deadline_s = time.monotonic() + IDLE_TIMEOUT_S
        while time.monotonic() < deadline_s:
            before_s = self._server.cpu_s()
            await asyncio.sleep(IDLE_LOOK_S)
            if self._server.cpu_s() - before_s < IDLE_SHARE * IDLE_LOOK_S:
                return

    async def _wait_collected(self, named: set[str]) -> None:
        """Return when the object store holds the named segments only, or after a while."""
        deadline_s = time.monotonic() + COLLECTED_TIMEOUT_S
        while time.monotonic() < deadline_s:
            folders = self._server.folder.glob("data/objects/segments/*/*/*")
            if {folder.name for folder in folders if any(folder.iterdir())} <= named:
                return
            await asyncio.sleep(POLL_S)


async def _time_in_turns(
    servers: Sequence[ChurnedServer], queries: npt.NDArray[np.float32], *, rounds: int
) -> npt.NDArray[np.float32]:
    """Return the medians over `rounds` of the milliseconds of every query, (servers, queries)."""
    took_ms: list[list[list[float]]] = []
    began_s = time.monotonic()
    async with AsyncExitStack() as stack:
        callers = [
            (server, await stack.enter_async_context(server.single_caller())) for server in servers
        ]
        while len(took_ms) < rounds and time.monotonic() - began_s < LATENCY_SECONDS_MAX:
            took_ms.append(
                [
                    [await server.time_query(client, query) for server, client in callers]
                    for query in queries
                ]
            )
    return np.median(np.array(took_ms, dtype=np.float32), axis=0).T


@asynccontextmanager
async def churned_server(
    name: str, *, healing: bool, k: int, settings: dict[str, Any] | None = None
) -> AsyncIterator[ChurnedServer]:
    """Run an embedded server for the length of the block."""
    chosen = {**PROMPT_COLLECTION, **({} if healing else HEALING_OFF), **(settings or {})}
    async with serve("embedded", settings=chosen) as server, AsyncClient(server.address) as client:
        yield ChurnedServer(name, server, client, k=k)
