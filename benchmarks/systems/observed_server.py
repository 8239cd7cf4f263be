"""One embedded server with one planted collection: it is asked phase by phase, and all is noted."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from annheal import AsyncClient
from annheal.errors import AnnhealError
from annheal.model.topology.task import TaskPhase
from benchmarks.datasets.conditions import Ask, Before, Burst, Condition, Phase
from benchmarks.datasets.loading import COLLECTION, INDEX_TIMEOUT_S
from benchmarks.datasets.planted import Planted
from benchmarks.harness.callers import run_at_rate
from benchmarks.harness.exact_truth import Given, Question, RecordHistory
from benchmarks.harness.recall_windows import Published
from benchmarks.systems.broken_graphs import break_graphs
from benchmarks.systems.servers import Server, serve

POLL_S = 1.0
USUAL_S = 10.0
"""Seconds of unmeasured searches whose CPU time is the usual one."""
PARTS = 1_000
"""Every record has a random number below this, for filters of any selectivity."""
WRITE_EVERY_S = 1.0

Say = Callable[[str], None]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer: what kind of query it was for, when it came, in seconds since the epoch, and
    whether it said that it is below the objective."""

    ask: Ask
    answered_s: float
    given: Given
    below_objective: bool = False


@dataclass(frozen=True, slots=True)
class Passed:
    """A phase that is over, from the change before its first query on, in seconds since the epoch.

    `cost_ratio` is the CPU time of the server for each search of the phase, all that it does beside
    included, by that of plain searches at the same rate before it, which are not sampled or
    measured. `late_ms` is the 95th percentile of the time from when a query was due until it was
    answered.
    """

    phase: Phase
    change_s: float
    end_s: float
    cost_ratio: float
    late_ms: float


@dataclass(slots=True)
class Observed:
    """What was seen of one condition."""

    history: RecordHistory
    questions: list[Question] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    published: list[Published] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    matching: dict[Ask, float] = field(default_factory=dict)
    """Share of the rows that match the filter of each kind of query, as it was in the end."""


class ObservedServer:
    """Drives one condition; `rate` is queries a second, `seconds` the length of a phase."""

    def __init__(
        self,
        server: Server,
        condition: Condition,
        planted: Planted,
        *,
        rate: float,
        seconds: float,
        random: np.random.Generator,
        say: Say,
    ) -> None:
        parts = random.integers(0, PARTS, len(planted.vectors))
        self.observed = Observed(RecordHistory(planted.vectors, parts))
        self._server = server
        self._condition = condition
        self._planted = planted
        self._rate = rate
        self._seconds = seconds
        self._random = random
        self._say = say
        self._parts = parts
        self._client = AsyncClient(server.address)
        self._away = asyncio.Lock()
        self._question_of: dict[tuple[Ask, int], int] = {}
        self._records = len(planted.vectors)
        self._sent = self._acknowledged = 0

    async def run(self) -> Observed:
        """Load the rows and go through the phases."""
        try:
            await self._load()
            usual_cpu_s = await self._usual_cpu_s()
            looking = asyncio.create_task(self._look())
            try:
                for phase in self._condition.phases:
                    await self._pass(phase, usual_cpu_s)
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
        finally:
            await self._client.close()
        for ask in self._asks():
            self.observed.matching[ask] = self.observed.history.matching_share(part_max(ask))
        return self.observed

    def _asks(self) -> list[Ask]:
        return list(dict.fromkeys(ask for one in self._condition.phases for ask in one.asks))

    async def _load(self) -> None:
        """Fill a new collection and compact until nothing is left to do."""
        planted, client = self._planted, self._client
        await client.create_collection(
            COLLECTION,
            planted.vectors.shape[1],
            metric=planted.metric,
            attributes={"part": "int64"},
            shard_count=self._condition.shards,
            settings=dict(self._condition.settings) or None,
        )
        await self._upsert(np.arange(self._records), planted.vectors, self._parts)
        await client.flush(COLLECTION, timeout_s=INDEX_TIMEOUT_S)
        while tasks := await client.compact(COLLECTION, timeout_s=INDEX_TIMEOUT_S):
            failed = [task.error for task in tasks if task.phase is TaskPhase.FAILED]
            if failed:
                raise RuntimeError(f"a compaction failed: {failed[0]}")

    async def _upsert(
        self, records: Int64s, vectors: npt.NDArray[np.float32], parts: Int64s
    ) -> None:
        await self._client.upsert(
            COLLECTION,
            [record_id(number) for number in records.tolist()],
            vectors,
            attributes={"part": parts},
            timeout_s=INDEX_TIMEOUT_S,
        )

    async def _pass(self, phase: Phase, usual_cpu_s: float) -> None:
        change_s = await self._prepare(phase.before)
        rate = self._rate * phase.rate
        seconds = phase.length * self._seconds
        if phase.queries is not None:
            seconds = phase.queries / rate
        until, took_ms = asyncio.Event(), list[float]()
        before_s, answered = self._server.cpu_s(), len(self.observed.answered)

        async def ask_one(number: int) -> None:
            await self._ask(self._drawn(phase, number / (rate * seconds)))

        async with asyncio.TaskGroup() as group:
            group.create_task(run_at_rate(ask_one, rate=rate, until=until, took_ms=took_ms))
            if phase.burst is not None:
                group.create_task(self._ask_bursts(phase.asks[-1], phase.burst, until))
            if phase.hot_rows_s:
                group.create_task(self._write_cluster(phase.hot_rows_s, until))
            await asyncio.sleep(seconds)
            until.set()
        end_s = time.time()
        searches = max(1, len(self.observed.answered) - answered)
        ratio = (self._server.cpu_s() - before_s) / searches / usual_cpu_s
        late_ms = float(np.percentile(took_ms, 95)) if took_ms else 0.0
        self.observed.passed.append(Passed(phase, change_s, end_s, ratio, late_ms))
        self._say(f"  {self._condition.name}: phase {phase.name!r} has passed")

    async def _prepare(self, before: Before) -> float:
        """Do what comes before a phase; returns when it was done."""
        if before.deleted:
            live = self.observed.history.live()
            gone = self._random.permutation(live)[: round(len(live) * before.deleted)]
            self.observed.history.delete(gone)
            self._sent += 1
            ids = [record_id(number) for number in gone.tolist()]
            await self._client.delete(COLLECTION, ids, timeout_s=INDEX_TIMEOUT_S)
            self._acknowledged += 1
        if before.objective is not None:
            await self._client.update_collection(
                COLLECTION, settings={"recall_objective": before.objective}
            )
        if before.restart or before.lost:
            async with self._away:
                await self._restart(lost=before.lost)
        return time.time()

    async def _restart(self, *, lost: float) -> None:
        await self._client.close()
        await asyncio.to_thread(self._server.stop)
        if lost:
            await break_graphs(self._server.folder / "data", lost_share=lost)
        await self._server.start_again()
        self._client = AsyncClient(self._server.address)

    def _drawn(self, phase: Phase, passed: float) -> Ask:
        """Return the kind of the next query, when the share `passed` of the phase has passed."""
        shares = np.array([one.share for one in phase.asks])
        if phase.shares_end:
            shares = shares + min(1.0, passed) * (np.array(phase.shares_end) - shares)
        return phase.asks[int(self._random.choice(len(shares), p=shares / shares.sum()))]

    async def _ask(self, ask: Ask) -> None:
        pool = self._planted.pools[ask.pool]
        number = int(self._random.integers(min(len(pool), ask.distinct or len(pool))))
        acknowledged = self._acknowledged
        try:
            found = await self._client.search(
                COLLECTION,
                pool[number],
                k=ask.k,
                filter=expression(ask),
                ef=ask.ef,
                recall_objective=ask.objective,
            )
        except AnnhealError as error:
            self.observed.failures.append(error.message)
            return
        records = np.array([record_number(one) for one in found.ids], dtype=np.int32)
        given = Given(self._question(ask, number), records, acknowledged, self._sent)
        self.observed.answered.append(Answered(ask, time.time(), given, found.below_objective))

    def _question(self, ask: Ask, number: int) -> int:
        known = self._question_of.get((ask, number))
        if known is None:
            known = self._question_of[ask, number] = len(self.observed.questions)
            vector = self._planted.pools[ask.pool][number]
            self.observed.questions.append(Question(vector, ask.k, part_max(ask)))
        return known

    async def _ask_bursts(self, ask: Ask, burst: Burst, until: asyncio.Event) -> None:
        while not await _is_set_within(until, burst.every_s):
            await asyncio.gather(*(self._ask(ask) for _ in range(burst.queries)))

    async def _write_cluster(self, rows_s: int, until: asyncio.Event) -> None:
        rows = max(1, round(rows_s * WRITE_EVERY_S))
        while not await _is_set_within(until, WRITE_EVERY_S):
            records = np.arange(self._records, self._records + rows)
            self._records += rows
            vectors = self._planted.clustered(rows, random=self._random)
            parts = self._random.integers(0, PARTS, rows)
            self.observed.history.upsert(records, vectors, parts)
            self._sent += 1
            await self._upsert(records, vectors, parts)
            self._acknowledged += 1

    async def _look(self) -> None:
        """Note what is published, every second."""
        while True:
            async with self._away:
                try:
                    summary = await self._client.recall(COLLECTION)
                except AnnhealError as error:
                    self.observed.failures.append(f"recall: {error.message}")
                else:
                    self.observed.published.append(Published(time.time(), summary))
            await asyncio.sleep(POLL_S)

    async def _usual_cpu_s(self) -> float:
        """Return the server's CPU seconds for a plain search, at the rate of the first phase.

        Explained searches are neither sampled nor measured.
        """
        first = self._condition.phases[0]
        ask, rate = Ask(k=first.asks[0].k), self._rate * first.rate
        seconds = min(USUAL_S, self._seconds)
        pool = self._planted.pools[ask.pool]
        until, answered = asyncio.Event(), list[float]()

        async def ask_one(number: int) -> None:
            await self._client.search(COLLECTION, pool[number % len(pool)], k=ask.k, explain=True)

        before_s = self._server.cpu_s()
        async with asyncio.TaskGroup() as group:
            group.create_task(run_at_rate(ask_one, rate=rate, until=until, took_ms=answered))
            await asyncio.sleep(seconds)
            until.set()
        ticks_s = 1.0 / os.sysconf("SC_CLK_TCK")
        return max(ticks_s, self._server.cpu_s() - before_s) / max(1, len(answered))


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    """Return as soon as `event` is set, or False after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def record_id(number: int) -> str:
    """Return the id of a record."""
    return f"r{number:07d}"


def record_number(id: str) -> int:
    """Return the number of a record."""
    return int(id[1:])


def part_max(ask: Ask) -> int | None:
    """Return the number that the parts of the matching records are below; None: no filter."""
    return None if ask.matching is None else max(1, round(ask.matching * PARTS))


def expression(ask: Ask) -> str | None:
    """Return the filter as clients write it."""
    return None if ask.matching is None else f"part < {part_max(ask)}"


@asynccontextmanager
async def observed_server(
    condition: Condition,
    planted: Planted,
    *,
    rate: float,
    seconds: float,
    seed: Sequence[int],
    say: Say,
    interval_s: float | None = None,
) -> AsyncIterator[ObservedServer]:
    """Run an embedded server with default settings for the length of the block.

    Recall is measured every `interval_s`; None: as by default.
    """
    settings = None if interval_s is None else {"recall_interval_s": f"{interval_s:g}"}
    async with serve("embedded", settings=settings) as server:
        yield ObservedServer(
            server,
            condition,
            planted,
            rate=rate,
            seconds=seconds,
            random=np.random.default_rng(seed),
            say=say,
        )
