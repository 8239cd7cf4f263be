"""What a process counts about itself, for Prometheus. docs/operations/metrics.md lists the names.

Two kinds of numbers. Instruments are written where things happen: a batch of searches costs about
a microsecond, whatever its size. Reports are asked for when somebody scrapes: states that the
process knows, or can ask for, anyway.

Label values come from outside (names of collections, segments), so every metric has a limit of
series; what comes beyond is counted under the value `other`.
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
from typing import Final, TypeAlias

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


class Counter(Collector):
    """Numbers that only grow, by labels. May be used from several threads."""

    def __init__(
        self, name: str, help: str, *, labels: Labels = (), series_max: int = SERIES_MAX
    ) -> None:
        self._name = name
        self._help = help
        self._labels = labels
        self._series_max = series_max
        self._lock = threading.Lock()
        # Without labels there is one series, from the start.
        self._values: dict[Labels, float] = {} if labels else {(): 0.0}

    def add(self, amount: float, *labels: str) -> None:
        """Add `amount`, at least 0."""
        with self._lock:
            if labels not in self._values and len(self._values) >= self._series_max:
                labels = (OTHER,) * len(labels)
            self._values[labels] = self._values.get(labels, 0.0) + amount

    def describe(self) -> Iterable[Metric]:
        """Return no samples: asked for names only."""
        return [CounterMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        with self._lock:
            values = list(self._values.items())
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
        self._series_max = series_max
        self._lock = threading.Lock()
        self._rows: dict[Labels, list[float]] = {}
        if not labels:
            self._admit(())

    def observe(self, value: float, *labels: str, weight: int = 1) -> None:
        """Count `weight` observations of `value`."""
        place = bisect_left(self._bounds, value)
        with self._lock:
            row = self._rows.get(labels)
            if row is None:
                row = self._admit(labels)
            row[place] += weight
            row[-1] += value * weight

    def _admit(self, labels: Labels) -> list[float]:
        if len(self._rows) >= self._series_max:
            labels = (OTHER,) * len(labels)
        return self._rows.setdefault(labels, [0.0] * (len(self._bounds) + 2))

    def describe(self) -> Iterable[Metric]:
        """Return no samples: asked for names only."""
        return [HistogramMetricFamily(self._name, self._help, labels=self._labels)]

    def collect(self) -> Iterator[Metric]:
        """Yield the metric."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        names = [*map(repr, self._bounds), "+Inf"]
        with self._lock:
            rows = [(labels, list(row)) for labels, row in self._rows.items()]
        for labels, row in rows:
            total = 0.0
            buckets: list[tuple[str, float]] = []
            for name, count in zip(names, row[:-1], strict=True):
                total += count
                buckets.append((name, total))
            family.add_metric(labels, buckets=buckets, sum_value=row[-1])
        yield family


class Metrics:
    """The instruments and reports of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.search_seconds = self.histogram(
            "annheal_search_seconds",
            "Time of a query in this coordinator, all waiting included; queries of one request"
            " share it.",
            labels=("collection", "filtered"),
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
        self.registry.register(made)
        return made

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
        self.registry.register(made)
        return made

    def observe_search(
        self, collection: str, *, filtered: bool, queries: int, duration_s: float
    ) -> None:
        """Count a request of `queries` that was answered `duration_s` after it came."""
        self.search_seconds.observe(
            duration_s, collection, "yes" if filtered else "no", weight=queries
        )

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
        loop = asyncio.get_running_loop()
        self.registry.register(_Reported(report, loop, self.report_errors, series_max))

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
        loop: asyncio.AbstractEventLoop,
        errors: Counter,
        series_max: int,
    ) -> None:
        self._report = report
        self._loop = loop
        self._errors = errors
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

        asking = ask()
        try:
            future = asyncio.run_coroutine_threadsafe(asking, self._loop)
        except RuntimeError:  # the loop has ended
            asking.close()
            return ()
        try:
            return future.result(REPORT_TIMEOUT_S)
        except (TimeoutError, concurrent.futures.CancelledError, AnnhealError) as error:
            future.cancel()
            self._errors.add(1)
            _log.warning("a report for a scrape failed: %s: %s", type(error).__name__, error)
            return ()
