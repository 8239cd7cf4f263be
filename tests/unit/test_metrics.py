"""Instruments, reports and the endpoint, as a scraper sees them."""

from __future__ import annotations

import asyncio
import socket
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from annheal.errors import AlreadyExists, FailedPrecondition, InvalidArgument, Unavailable
from annheal.model.measures.recall import SelectivityBand
from annheal.objectstore.local import LocalObjectStore
from annheal.objectstore.metered import MeteredObjectStore
from annheal.runtime import metrics as module
from annheal.runtime.metrics import Family, FamilyKind, Metrics
from annheal.runtime.metrics_endpoint import metrics_endpoint

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def samples(metrics: Metrics) -> Samples:
    return parse(generate_latest(metrics.registry).decode())


def key(name: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


def test_a_batch_counts_as_many_times_as_it_has_queries() -> None:
    metrics = Metrics()
    metrics.observe_search("things", filtered=False, queries=3, duration_s=0.002)
    metrics.observe_search("things", filtered=False, queries=1, duration_s=99.0)
    found = samples(metrics)
    labels = {"collection": "things", "filtered": "no"}
    name = "annheal_search_seconds"
    assert found[key(f"{name}_count", **labels)] == 4
    assert found[key(f"{name}_sum", **labels)] == pytest.approx(99.006)
    assert found[key(f"{name}_bucket", le="0.001", **labels)] == 0
    # A bound belongs to its bucket, as Prometheus defines `le`.
    assert found[key(f"{name}_bucket", le="0.0025", **labels)] == 3
    assert found[key(f"{name}_bucket", le="10.0", **labels)] == 3
    assert found[key(f"{name}_bucket", le="+Inf", **labels)] == 4


def test_writes_are_counted_in_rows() -> None:
    metrics = Metrics()
    metrics.observe_write("things", "upsert", rows=500, duration_s=0.1)
    metrics.observe_write("things", "upsert", rows=7, duration_s=0.1)
    found = samples(metrics)
    labels = {"collection": "things", "operation": "upsert"}
    assert found[key("annheal_written_rows_total", **labels)] == 507
    assert found[key("annheal_write_seconds_count", **labels)] == 2


def test_label_values_beyond_the_limit_are_joined() -> None:
    metrics = Metrics()
    counter = metrics.counter("made_up", "Test.", labels=("name",), series_max=3)
    histogram = metrics.histogram("made_up_seconds", "Test.", labels=("name",), series_max=3)
    for number in range(10):
        counter.add(1, f"n{number}")
        histogram.observe(0.1, f"n{number}")
    counter.add(1, "n0")
    found = samples(metrics)
    assert found[key("made_up_total", name="n0")] == 2
    assert found[key("made_up_total", name="other")] == 7
    assert found[key("made_up_seconds_count", name="other")] == 7
    assert key("made_up_total", name="n3") not in found


async def fetch(address: str) -> Samples:
    def get() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    return parse(await asyncio.to_thread(get))


async def test_reports_run_on_the_event_loop_when_somebody_scrapes() -> None:
    metrics, loop, asked = Metrics(), asyncio.get_running_loop(), []

    async def report() -> Iterable[Family]:
        asked.append(asyncio.get_running_loop())
        gauge = Family("made_up_rows", "Test.", ("name",))
        for number in range(5):
            gauge.add(number, f"n{number}")
        total = Family("made_up", "Test.", kind=FamilyKind.COUNTER)
        total.add(9)
        return [gauge, total]

    metrics.add_report(report, series_max=3)
    assert asked == []
    async with metrics_endpoint(metrics, "127.0.0.1:0") as address:
        found = await fetch(address)
    assert asked == [loop]
    assert found[key("made_up_rows", name="n2")] == 2
    assert key("made_up_rows", name="n3") not in found  # the limit of series
    assert found[key("made_up_total")] == 9
    with pytest.raises(OSError, match="refused"):
        await fetch(address)


async def test_a_report_that_fails_or_hangs_leaves_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "REPORT_TIMEOUT_S", 0.1)
    metrics = Metrics()

    async def fail() -> Iterable[Family]:
        raise Unavailable("no node answers")

    async def hang() -> Iterable[Family]:
        await asyncio.Event().wait()
        return []

    metrics.add_report(fail)
    metrics.add_report(hang)
    metrics.observe_write("things", "upsert", rows=1, duration_s=0.1)
    async with metrics_endpoint(metrics, "127.0.0.1:0") as address:
        await fetch(address)
        found = await fetch(address)
    labels = {"collection": "things", "operation": "upsert"}
    assert found[key("annheal_written_rows_total", **labels)] == 1
    assert found[key("annheal_report_errors_total")] >= 2


async def test_a_blocked_event_loop_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LAG_INTERVAL_S", 0.01)
    metrics = Metrics()
    watching = asyncio.create_task(metrics.watch_loop())
    try:
        async with asyncio.timeout(20):
            while not samples(metrics)[key("annheal_event_loop_lag_seconds_count")]:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            before = samples(metrics)[key("annheal_event_loop_lag_seconds_sum")]
            blocking = asyncio.Event()
            asyncio.get_running_loop().call_soon(lambda: (_block(0.3), blocking.set()))
            await blocking.wait()
            while samples(metrics)[key("annheal_event_loop_lag_seconds_sum")] < before + 0.2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _block(duration_s: float) -> None:
    time.sleep(duration_s)


async def test_a_taken_port_and_a_bad_address_are_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match="cannot serve metrics"):
            async with metrics_endpoint(Metrics(), f"127.0.0.1:{port}"):
                pass
    with pytest.raises(InvalidArgument, match="host:port"):
        async with metrics_endpoint(Metrics(), "9090"):
            pass


async def test_calls_to_the_object_store_are_counted_by_what_they_are_for(tmp_path: Path) -> None:
    metrics = Metrics()
    store = MeteredObjectStore(LocalObjectStore(tmp_path / "objects"), metrics)
    await store.put_if_absent("wal/c1/00000/1", b"12345")
    with pytest.raises(AlreadyExists):
        await store.put_if_absent("wal/c1/00000/1", b"other")
    assert await store.get("wal/c1/00000/1") == b"12345"
    (tmp_path / "file").write_bytes(b"1234567")
    await store.put_file_if_absent("segments/s1", tmp_path / "file")
    assert [one.key async for one in store.list("wal/")] == ["wal/c1/00000/1"]
    await store.delete(["segments/s1"])
    await store.close()
    found = samples(metrics)
    wal = {"operation": "put", "part": "wal"}
    assert found[key("annheal_object_store_seconds_count", **wal)] == 2
    assert found[key("annheal_object_store_bytes_total", **wal)] == 5
    segments = {"operation": "put", "part": "segments"}
    assert found[key("annheal_object_store_bytes_total", **segments)] == 7
    # What a caller may expect is no failure.
    assert not [name for name, _ in found if name == "annheal_object_store_errors_total"]


async def test_series_of_what_is_gone_are_forgotten() -> None:
    """Ten thousand collections that come and go leave no series, and none is counted as other."""
    metrics = Metrics()
    alive: set[str] = set()
    metrics.watch_label("collection", lambda: alive)
    for number in range(10_000):
        name = f"c{number}"
        alive.add(name)
        metrics.observe_search(name, filtered=False, queries=1, duration_s=0.001)
        metrics.observe_search(name, filtered=True, queries=1, duration_s=0.001)
        metrics.observe_node_search(name, SelectivityBand.UNFILTERED, queries=1, duration_s=0.001)
        metrics.observe_write(name, "upsert", rows=3, duration_s=0.1)
        if number >= 2:
            alive.discard(f"c{number - 2}")
    text = (await asyncio.to_thread(generate_latest, metrics.registry)).decode()
    found = parse(text)
    named = {dict(labels)["collection"] for _, labels in found if "collection" in dict(labels)}
    assert named == {"c9998", "c9999"}
    assert found[key("annheal_written_rows_total", collection="c9999", operation="upsert")] == 3
    assert len(text) < 50_000


async def test_series_are_kept_while_anybody_names_them() -> None:
    metrics = Metrics()
    metrics.watch_label("collection", lambda: ["a"])
    metrics.watch_label("collection", lambda: ["b"])
    for name in ("a", "b", "c"):
        metrics.observe_write(name, "upsert", rows=1, duration_s=0.1)
    metrics.call_seconds.observe(0.1, "node-0", "search")
    metrics.forget_gone()
    kept = {dict(labels).get("collection") for _, labels in samples(metrics)} - {None}
    assert kept == {"a", "b"}
    assert key("annheal_node_call_seconds_count", node="node-0", call="search") in samples(metrics)


async def test_beyond_the_limit_of_living_collections_the_rest_is_still_joined() -> None:
    metrics = Metrics()
    names = [f"c{number}" for number in range(module.SERIES_MAX + 5)]
    metrics.watch_label("collection", lambda: names)
    for name in names:
        metrics.observe_write(name, "upsert", rows=1, duration_s=0.1)
    found = await asyncio.to_thread(samples, metrics)
    assert found[key("annheal_written_rows_total", collection="other", operation="other")] == 5
