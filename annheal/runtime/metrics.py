"""What a process counts about itself, for Prometheus. docs/operations/metrics.md lists the names.

Two kinds of numbers. Instruments are written where things happen: a batch of searches costs about
a microsecond, whatever its size. Reports are asked for when somebody scrapes: states that the
process knows, or can ask for, anyway.

Label values come from outside (names of collections, segments), so every metric has a limit of
series; what comes beyond is counted under the value `other`. Series of things that are gone are
forgotten: at every scrape, and when a metric is full (`Metrics.watch_label`).
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Generic, TypeAlias, TypeVar

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from annheal.errors import AnnhealError
from annheal.model.measures.recall import SelectivityBand

SERIES_MAX: Final = 1_000
"""Series of one metric; further label values are joined under `other`."""
OTHER: Final = "other"
REPORT_TIMEOUT_S: Final = 8.0
"""Prometheus gives up after ten seconds by default."""
LAG_INTERVAL_S: Final = 0.02
"""Sleeps of the watch: a stall is seen but for the part that falls into the sleep under way."""

SECONDS: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
    10.0,
)  # fmt: skip
"""Bounds of buckets for latencies."""
LONG_SECONDS: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3_600.0, 14_400.0)
"""Bounds of buckets for work that takes minutes."""
QUERIES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 1_000.0)

Labels: TypeAlias = tuple[str, ...]

_log = logging.getLogger(__name__)


class FamilyKind(StrEnum):
    """Whether a reported number only grows."""

    GAUGE = "gauge"
    COUNTER = "counter"


@dataclass(frozen=True, slots=True)
class Family:
    """One metric as a report gives it: `values` by the values of `labels`."""

    name: str
    help: str
    labels: Labels = ()
    kind: FamilyKind = FamilyKind.GAUGE
    values: list[tuple[Labels, float]] = field(default_factory=list)

    def add(self, value: float, *labels: str) -> None:
        """Add one series."""
        self.values.append((labels, value))


Report: TypeAlias = Callable[[], Awaitable[Iterable[Family]]]
"""Says how things stand; runs on the event loop when somebody scrapes."""


Present: TypeAlias = Callable[[], Iterable[str]]
"""Says which values of a label still stand for something; called on the event loop."""
SeriesT = TypeVar("SeriesT")


class _Series(Generic[SeriesT]):
    """The series of one metric by the values of its labels; the caller holds the lock.

    A new series beyond `series_max` makes room by `make_room`, or else is the one called `other`.
    """

    def __init__(self, labels: Labels, *, series_max: int, make: Callable[[], SeriesT]) -> None:
        self.labels = labels
        self.make_room: Callable[[], None] = lambda: None
        self._series_max = series_max
        self._make = make
        self.held: dict[Labels, SeriesT] = {}

    def at(self, values: Labels) -> SeriesT:
        """Return the series of `values`."""
        found = self.held.get(values)
        if found is not None:
            return found
        if len(self.held) >= self._series_max:
            self.make_room()
        if len(self.held) >= self._series_max:
            values = (OTHER,) * len(values)
        return self.held.setdefault(values, self._make())

    def forget_all_but(self, label: str, present: frozenset[str]) -> None:
        """Forget the series whose `label` has another value than those in `present`."""
        if label not in self.labels:
            return
        place = self.labels.index(label)
        for values in [one for one in self.held if one[place] not in present]:
            if values[place] != OTHER:
                del self.held[values]


class Counter(Collector):
    """Numbers that only grow, by labels. May be used from several threads."""

    def __init__(
        self, name: str, help: str, *, labels: Labels = (), series_max: int = SERIES_MAX
    ) -> None:
        self._name = name
        self._help = help
        self._labels = labels
        self.lock = threading.RLock()
        self.series = _Series(labels, series_max=series_max, make=lambda: [0.0])
        if not labels:
            self.series.at(())  # one series, from the start

    def add(self, amount: float, *labels: str) -> None:
        """Add `amount`, at least 0."""
        with self.lock:
            self.series.at(labels)[0] += amount

    def describe(self) -> Iterable[Metric]:
        """Return no samples: asked for names only."""
        return [CounterMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        with self.lock:
            values = [(labels, value) for labels, (value,) in self.series.held.items()]
        for labels, value in values:
            family.add_metric(labels, value)
        yield family


class Histogram(Collector):
    """Distributions by labels, in fixed buckets. May be used from several threads.

    Unlike the library's own it takes a weight, so that a batch is one observation.
    """

    def __init__(
        self,
        name: str,
        help: str,
        *,
        bounds: Sequence[float] = SECONDS,
        labels: Labels = (),
        series_max: int = SERIES_MAX,
    ) -> None:
        self._name = name
        self._help = help
        self._labels = labels
        self._bounds = tuple(bounds)
        self.lock = threading.RLock()
        self.series = _Series(
            labels, series_max=series_max, make=lambda: [0.0] * (len(self._bounds) + 2)
        )
        if not labels:
            self.series.at(())

    def observe(self, value: float, *labels: str, weight: int = 1) -> None:
        """Count `weight` observations of `value`."""
        place = bisect_left(self._bounds, value)
        with self.lock:
            row = self.series.at(labels)
            row[place] += weight
            row[-1] += value * weight

    def describe(self) -> Iterable[Metric]:
        """Return no samples: asked for names only."""
        return [HistogramMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        names = [*map(repr, self._bounds), "+Inf"]
        with self.lock:
            rows = [(labels, list(row)) for labels, row in self.series.held.items()]
        for labels, row in rows:
            total = 0.0
            buckets: list[tuple[str, float]] = []
            for name, count in zip(names, row[:-1], strict=True):
                total += count
                buckets.append((name, total))
            family.add_metric(labels, buckets=buckets, sum_value=row[-1])
        yield family


InstrumentT = TypeVar("InstrumentT", Counter, Histogram)


class Metrics:
    """The instruments and reports of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._instruments: list[Counter | Histogram] = []
        self._watched: list[tuple[str, Present]] = []
        self._tidying = _Reported(self._tidy, self._count_report_error)
        self.registry.register(self._tidying)  # before the instruments: they are collected after it
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.search_seconds = self.histogram(
            "annheal_search_seconds",
            "Time of a query in this coordinator, all waiting included; queries of one request"
            " share it.",
            labels=("collection", "filtered"),
        )
        self.below_objective = self.counter(
            "annheal_below_objective_queries",
            "Queries whose answers say that they are below the recall objective.",
            labels=("collection",),
        )
        self.node_search_seconds = self.histogram(
            "annheal_node_search_seconds",
            "Time of a query inside this node; queries of one batch share it.",
            labels=("collection", "band"),
        )
        self.call_seconds = self.histogram(
            "annheal_node_call_seconds",
            "Time of a call from this coordinator to a shard node.",
            labels=("node", "call"),
        )
        self.batch_queries = self.histogram(
            "annheal_search_batch_queries",
            "Queries that travelled to a node in one call.",
            bounds=QUERIES,
            labels=("node",),
        )
        self.written_rows = self.counter(
            "annheal_written_rows", "Rows written or deleted.", labels=("collection", "operation")
        )
        self.write_seconds = self.histogram(
            "annheal_write_seconds",
            "Time until a write request was durable and visible.",
            labels=("collection", "operation"),
        )
        self.monitor_cpu_seconds = self.counter(
            "annheal_recall_monitor_cpu_seconds", "CPU time of measuring recall on this node."
        )
        self._add_store()
        self.lane_wait_seconds = self.histogram(
            "annheal_lane_wait_seconds",
            "Time that work waited to begin in a lane of this shard node.",
            labels=("lane",),
        )
        self.background_failures = self.counter(
            "annheal_background_failures",
            "Work for later searches that failed: measuring costs, making codes.",
            labels=("work",),
        )
        self.loop_lag_seconds = self.histogram(
            "annheal_event_loop_lag_seconds", "How late the event loop woke up."
        )
        self.report_errors = self.counter(
            "annheal_report_errors", "Reports that failed or took too long while scraped."
        )

    def _add_store(self) -> None:
        self.store_seconds = self.histogram(
            "annheal_object_store_seconds",
            "Time of a call to the object store; put of wal is the latency of the log.",
            labels=("operation", "part"),
        )
        self.store_bytes = self.counter(
            "annheal_object_store_bytes",
            "Bytes that went to or came from the object store.",
            labels=("operation", "part"),
        )
        self.store_errors = self.counter(
            "annheal_object_store_errors",
            "Calls to the object store that failed.",
            labels=("operation", "part", "kind"),
        )
        self.foreign_objects = self.counter(
            "annheal_foreign_objects",
            "Objects in the object store that are not Annheal's; the log names each once.",
            labels=("part",),
        )

    def counter(
        self, name: str, help: str, *, labels: Labels = (), series_max: int = SERIES_MAX
    ) -> Counter:
        """Add a counter; `_total` is appended to its name."""
        made = Counter(name, help, labels=labels, series_max=series_max)
        return self._added(made)

    def histogram(
        self,
        name: str,
        help: str,
        *,
        bounds: Sequence[float] = SECONDS,
        labels: Labels = (),
        series_max: int = SERIES_MAX,
    ) -> Histogram:
        """Add a histogram."""
        made = Histogram(name, help, bounds=bounds, labels=labels, series_max=series_max)
        return self._added(made)

    def watch_label(self, label: str, present: Present) -> None:
        """Forget series whose `label` has a value that nobody's `present` names any more.

        Several parts of a process may name what they know; call it inside their event loop.
        """
        self._watched.append((label, present))
        self._tidying.loop = asyncio.get_running_loop()

    def forget_gone(self) -> None:
        """Forget the series of what is gone, of every watched label."""
        for label in dict.fromkeys(label for label, _ in self._watched):
            named = [present() for one, present in self._watched if one == label]
            present = frozenset(value for values in named for value in values)
            for instrument in self._instruments:
                with instrument.lock:
                    instrument.series.forget_all_but(label, present)

    async def _tidy(self) -> Iterable[Family]:
        self.forget_gone()
        return ()

    def _count_report_error(self) -> None:
        self.report_errors.add(1)

    def _added(self, made: InstrumentT) -> InstrumentT:
        made.series.make_room = self.forget_gone
        self._instruments.append(made)
        self.registry.register(made)
        return made

    def observe_search(
        self,
        collection: str,
        *,
        filtered: bool,
        queries: int,
        duration_s: float,
        below_objective: bool = False,
    ) -> None:
        """Count a request of `queries` that was answered `duration_s` after it came.

        `below_objective`: the answer says so of itself.
        """
        self.search_seconds.observe(
            duration_s, collection, "yes" if filtered else "no", weight=queries
        )
        self.below_objective.add(queries if below_objective else 0, collection)

    def observe_node_search(
        self, collection: str, band: SelectivityBand, *, queries: int, duration_s: float
    ) -> None:
        """Count a batch of `queries` that a node answered `duration_s` after it came."""
        self.node_search_seconds.observe(duration_s, collection, band.value, weight=queries)

    def observe_write(
        self, collection: str, operation: str, *, rows: int, duration_s: float
    ) -> None:
        """Count a request that wrote or deleted `rows`."""
        self.written_rows.add(rows, collection, operation)
        self.write_seconds.observe(duration_s, collection, operation)

    def observe_lane_wait(self, lane: str, waited_s: float) -> None:
        """Count a piece of work that waited so long to begin."""
        self.lane_wait_seconds.observe(waited_s, lane)

    def count_background_failure(self, work: str) -> None:
        """Count work in the background that failed."""
        self.background_failures.add(1, work)

    def add_report(self, report: Report, *, series_max: int = SERIES_MAX) -> None:
        """Ask `report` whenever somebody scrapes; call inside the event loop that it runs on."""
        reported = _Reported(report, self._count_report_error, series_max)
        reported.loop = asyncio.get_running_loop()
        self.registry.register(reported)

    async def watch_loop(self) -> None:
        """Measure how late the event loop wakes up, until cancelled."""
        while True:
            due_s = time.perf_counter() + LAG_INTERVAL_S
            await asyncio.sleep(LAG_INTERVAL_S)
            self.loop_lag_seconds.observe(max(0.0, time.perf_counter() - due_s))


class _Reported(Collector):
    """A report as the library's collector; scraped from threads of the endpoint."""

    def __init__(
        self,
        report: Report,
        on_error: Callable[[], None],
        series_max: int = SERIES_MAX,
    ) -> None:
        self._report = report
        self.loop: asyncio.AbstractEventLoop | None = None
        self._on_error = on_error
        self._series_max = series_max

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for family in self._ask():
            kind = GaugeMetricFamily if family.kind is FamilyKind.GAUGE else CounterMetricFamily
            made = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.values[: self._series_max]:
                made.add_metric(labels, value)
            yield made

    def _ask(self) -> Iterable[Family]:
        async def ask() -> Iterable[Family]:
            return await self._report()

        if self.loop is None:
            return ()
        asking = ask()
        try:
            future = asyncio.run_coroutine_threadsafe(asking, self.loop)
        except RuntimeError:  # the loop has ended
            asking.close()
            return ()
        try:
            return future.result(REPORT_TIMEOUT_S)
        except (TimeoutError, concurrent.futures.CancelledError, AnnhealError) as error:
            future.cancel()
            self._on_error()
            _log.warning("a report for a scrape failed: %s: %s", type(error).__name__, error)
            return ()
