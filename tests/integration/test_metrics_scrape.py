"""A real embedded server, scraped: numbers move with what is done."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from annheal import AsyncClient
from annheal.cli.server.embedded import embedded_server

ROOT = Path(__file__).resolve().parents[2]
MANUAL = ROOT / "docs" / "operations" / "metrics.md"
ROWS = 400
LIVE_QUERIES = 25
DROPS = 12
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(address: str) -> Samples:
    def get() -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=20) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(get)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    """Return the sum of the series of `name` that have `labels`."""
    wanted = set(labels.items())
    hits = [v for (one, had), v in found.items() if one == name and wanted <= had]
    assert hits, f"no series {name} {labels}"
    return sum(hits)


async def measured(address: str) -> Samples:
    """Return what is scraped once the leader tells of every live query, on flushed rows."""
    async with asyncio.timeout(60):
        while True:
            found = await scrape(address)
            seen = [v for (name, _), v in found.items() if name == "annheal_searches_total"]
            # A measurement before the flush tells of growing rows, whose cached filters go with
            # them. Nothing is known of answers before both shards measured the same queries.
            flushed = any(
                name == "annheal_recall_tier_ratio" and ("tier", "hot") in labels
                for name, labels in found
            )
            merged = any(
                name == "annheal_recall_ratio" and {("band", "all"), ("bound", "low")} <= labels
                for name, labels in found
            )
            cached = found.get(("annheal_filter_cache_bytes", frozenset()), 0.0)
            if sum(seen) == LIVE_QUERIES and flushed and merged and cached:
                return found
            await asyncio.sleep(0.05)


async def test_a_server_tells_what_it_does(tmp_path: Path) -> None:
    settings = {"metrics_listen": "127.0.0.1:0", "recall_interval_s": "0.2"}
    async with (
        embedded_server(tmp_path / "data", settings=settings) as server,
        AsyncClient(server.address) as client,
    ):
        assert server.metrics_address
        await client.create_collection("things", 8, attributes={"year": "int64"}, shard_count=2)
        vectors = np.random.default_rng(3).normal(size=(ROWS, 8)).astype(np.float32)
        years = {"year": list(range(ROWS))}
        await client.upsert("things", [f"r{n}" for n in range(ROWS)], vectors, attributes=years)
        await client.delete("things", ["r1", "r2"])
        for row in range(5):
            await client.search("things", vectors[row])
        await client.search_batch("things", vectors[:20], filter="year < 100")
        await client.flush("things")
        found = await measured(server.metrics_address)
        here = {"collection": "things"}
        assert value(found, "annheal_written_rows_total", operation="upsert", **here) == ROWS
        assert value(found, "annheal_written_rows_total", operation="delete", **here) == 2
        assert value(found, "annheal_search_seconds_count", filtered="no", **here) == 5
        assert value(found, "annheal_search_seconds_count", filtered="yes", **here) == 20
        assert value(found, "annheal_search_batch_queries_sum", node="local") == 25
        assert value(found, "annheal_node_call_seconds_count", call="write") >= 2
        assert value(found, "annheal_object_store_seconds_count", operation="put", part="wal") >= 2
        node = "annheal_node_search_seconds_count"
        assert value(found, node, band="unfiltered", **here) == 5
        assert value(found, node, **here) == LIVE_QUERIES
        assert value(found, "annheal_recall_monitor_cpu_seconds_total") > 0
        lookups = "annheal_filter_cache_lookups_total"
        assert value(found, lookups, result="miss") >= 2
        assert value(found, "annheal_filter_cache_bytes") > 0
        assert value(found, "annheal_live_rows", **here) == ROWS - 2
        assert value(found, "annheal_segment_rows", tier="hot", **here) >= ROWS - 2
        assert value(found, "annheal_shards_serving", **here) == 2
        assert value(found, "annheal_recall_objective_ratio", **here) == pytest.approx(0.95)
        assert value(found, "annheal_searches_total", band="unfiltered", **here) == 5
        # Every row is compared here, so nothing can be missed.
        for bound, expected in (("estimate", 1.0), ("high", 1.0)):
            got = value(found, "annheal_recall_ratio", band="all", bound=bound, **here)
            assert got == pytest.approx(expected)
        assert 0 < value(found, "annheal_recall_ratio", band="all", bound="low", **here) < 1
        assert value(found, "annheal_recall_tier_ratio", tier="hot", bound="high", **here) == 1
        assert value(found, "annheal_result_stability_ratio", band="all", **here) == 1
        assert value(found, "annheal_rebuilds_wanted", **here) == 0
        assert value(found, "annheal_nodes", answers="yes") == 1
        assert value(found, "annheal_event_loop_lag_seconds_count") >= 0
        assert value(found, "process_cpu_seconds_total") > 0
        for _ in range(2):  # the second finds what the first left, in both shards
            await client.search_batch("things", vectors[:20], filter="year < 100")
        again = await scrape(server.metrics_address)
        assert value(again, lookups, result="hit") >= value(found, lookups, result="hit") + 2
        await client.drop_collection("things")
        gone = await scrape(server.metrics_address)
        assert ("annheal_live_rows", frozenset(here.items())) not in gone
        assert value(gone, "annheal_report_errors_total") == 0


async def test_without_an_address_nothing_listens(tmp_path: Path) -> None:
    async with embedded_server(tmp_path / "data") as server:
        assert server.metrics_address == ""


def test_the_manual_names_every_metric() -> None:
    """Names in the code, in the manual's table and in the alert rules are the same."""
    code = "\n".join(
        (ROOT / path).read_text()
        for path in (
            "annheal/objectstore/store_watch.py",
            "annheal/runtime/host/disk.py",
            "annheal/runtime/metrics.py",
            "cli/server/metering.py",
            "coordinator/metrics.py",
            "coordinator/data_path/embedder_watch.py",
            "shard_node/metrics.py",
        )
    )
    made = set(re.findall(r'"(annheal_[a-z_]+)"', code))
    manual = MANUAL.read_text()
    described = set(re.findall(r"^\| `(annheal_[a-z_]+?)(?:_total)?`", manual, re.MULTILINE))
    assert made == described
    suffix = re.compile(r"_(total|bucket|sum|count)$")
    rules = (ROOT / "helm/annheal/templates/prometheusrule.yaml").read_text()
    used = set(re.findall(r"\b(annheal_[a-z_]+)\b", rules + manual))
    assert {suffix.sub("", name) for name in used} <= made


async def test_dropped_collections_leave_no_series(tmp_path: Path) -> None:
    async with (
        embedded_server(tmp_path / "data", settings={"metrics_listen": "127.0.0.1:0"}) as server,
        AsyncClient(server.address) as client,
    ):
        for number in range(DROPS + 1):
            name = f"c{number}"
            await client.create_collection(name, 2)
            await client.upsert(name, ["a"], [[1.0, 0.0]])
            await client.search(name, [1.0, 0.0])
            if number < DROPS:
                await client.drop_collection(name)
        async with asyncio.timeout(20):
            while True:
                found = await scrape(server.metrics_address)
                named = {dict(labels).get("collection") for _, labels in found} - {None}
                if named == {f"c{DROPS}"}:  # the node learns of a drop a moment later
                    break
                await asyncio.sleep(0.05)
        assert value(found, "annheal_search_seconds_count", collection=f"c{DROPS}") == 1
        assert value(found, "annheal_node_search_seconds_count", collection=f"c{DROPS}") == 1
