"""`annheal recall`, `filters` and `explain` against a server whose nodes tell planted recall."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from annheal.cli.__main__ import hoist
from annheal.cli.app import app
from annheal.cli.exit_codes import ExitCode
from annheal.cli.operator_commands.recall import _render_report, _report_document
from annheal.cli.user_commands.explain import why
from annheal.coordinator.service import services
from annheal.model.measures.recall import CollectionRecall, OwnSettingRecall, RecallEstimate
from annheal.model.search import SegmentExplain
from annheal.model.topology.cluster import RecallReport
from annheal.rpc.server import RpcServer
from tests.support.memory_cluster import memory_cluster, soon, spec
from tests.support.memory_node import MemoryNode
from tests.support.processes import REPOSITORY, clean_environment
from tests.support.recall_reports import UNKNOWN, report

WAIT_S = 60.0


@dataclass(slots=True)
class Served:
    """A server whose one node tells recall: of `things`, and of `wide`, which has two shards."""

    address: str
    collection_id: str
    wide_id: str
    node: MemoryNode

    async def run(self, *arguments: str, code: int = 0) -> Result:
        given = hoist([*arguments, "--address", self.address])
        found = await asyncio.to_thread(CliRunner().invoke, app, given)
        assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
        return found


@pytest.fixture
async def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Served]:
    for name in os.environ:
        if name.startswith("ANNHEAL_"):
            monkeypatch.delenv(name)
    async with memory_cluster(tmp_path) as cluster:
        node = await cluster.add_node("a")
        coordinator = await cluster.add_coordinator()
        made = await coordinator.collections.create(spec("things", shard_count=1), deadline=soon())
        wide = await coordinator.collections.create(spec("wide", shard_count=2), deadline=soon())
        server = RpcServer(services(coordinator))
        address = f"127.0.0.1:{server.listen('127.0.0.1:0')}"
        await server.start()
        try:
            yield Served(address, made.id, wide.id, node)
        finally:
            await server.stop(grace_s=0)


def document(found: Result) -> Any:
    return json.loads(found.stdout)


async def test_recall_shows_slices_segments_and_what_is_done(served: Served) -> None:
    served.node.recalls.append(report(served.wide_id, shards=[0, 1]))
    shown = (await served.run("recall", "wide")).stdout
    lines = {" ".join(line.split()) for line in shown.splitlines()}
    assert "objective 0.95 (met)" in lines
    assert "live queries 10,000; 1.00% of the present ones are sampled" in lines
    assert any(line.startswith("window 140 queries, asked from") for line in lines)
    few = next(line for line in lines if line.startswith("0.1-1% 1,000 10.0% 0.8000 0."))
    assert few.endswith("50.0% selector 100% missed")
    plain = next(line for line in lines if line.startswith("unfiltered 9,000 90.0% 0.9800 0.9"))
    assert plain.endswith("100.0% graph 100% met")
    # Which recall is shown: that of answers, or of the shards' own hits.
    assert "recall of answers; all shards have measured 140 queries" in lines
    assert "own top 10 0.9620 (0.9485 to 0.9755), of each shard, averaged" in lines
    assert any(line.startswith("TIER (OWN TOP K) RECALL") for line in lines)
    assert "cold 0.8000 0.7000 to 0.9000 - 40 missed" in lines
    assert any(line.startswith("segment cold-0 (shard 0, 0.1-1%): ef 512 of at") for line in lines)
    assert any("although it was rebuilt" in line for line in lines)
    assert "a 120 4 ms 2.00 - - slower" in lines
    said = " ".join(shown.split())
    assert "take 2.00 times (1.90 to 2.10) what they took at this volume" in said
    assert "2.00 times as many rows are compared" in said
    whole = document(await served.run("recall", "wide", "-o", "json"))
    assert whole["overall"]["estimate"]["recall"] == pytest.approx(0.962)
    assert whole["bands"][1]["verdict"] == "missed"
    assert (whole["merged"]["complete"], whole["merged"]["incomplete"]) == (140, 0)
    assert whole["merged"]["own_top_k"]["estimate"]["recall"] == pytest.approx(0.962)
    assert {one["segment_id"] for one in whole["segments"] if one["stuck"]} == {"cold-1"}
    assert whole["latency"]["a"]["p50"]["ratio"] == 2.0
    served.node.recalls[:] = [report(served.wide_id, latency=UNKNOWN)]
    shown = " ".join((await served.run("recall", "wide")).stdout.split())
    assert "node a: searches by volume are not comparable yet: 4 of the last 10 minutes" in shown
    assert (
        whole["filters"][0]["filter"] == 'ecosystem = "pypi" and year >= 2024'
        or whole["filters"][0]["filter"] == "ecosystem = 'pypi' and year >= 2024"
    )
    assert whole["filters"][1]["recall"] is None


def asked_until(end_s: float, *, valid_s: float, served_id: str) -> CollectionRecall:
    """Return the usual report, measured with queries of the minute before `end_s`."""

    def within(estimate: RecallEstimate) -> RecallEstimate:
        return replace(
            estimate,
            window_begin_s=end_s - 60.0,
            window_end_s=end_s,
            valid_until_s=end_s + valid_s,
            distinct=estimate.queries - 10,
        )

    usual = report(served_id)
    given = within(replace(usual.shards[0].estimate, recall=0.91, low=0.9, high=0.92))
    return replace(
        usual,
        shards=tuple(
            replace(one, estimate=within(one.estimate), served=given, recent=10)
            for one in usual.shards
        ),
        own=(
            OwnSettingRecall(0, 0.99, within(usual.shards[0].estimate), given),
            OwnSettingRecall(0, None, within(usual.shards[1].estimate)),
        ),
    )


async def test_recall_says_its_window_what_was_served_and_own_settings(served: Served) -> None:
    now_s = time.time()
    served.node.recalls.append(asked_until(now_s, valid_s=600.0, served_id=served.collection_id))
    shown = " ".join((await served.run("recall", "things")).stdout.split())
    assert "window 140 queries (120 different ones), asked from" in shown
    assert "as served 0.9100 (0.90" in shown
    assert "objective 0.99 0.9800 0.9700 to 0.9900 0.9100 100 unclear" in shown
    assert "ef 0.8000 0.7000 to 0.9000 - 40 not judged" in shown
    whole = document(await served.run("recall", "things", "-o", "json"))
    estimate = whole["overall"]["estimate"]
    assert estimate["window_end_s"] == pytest.approx(now_s, abs=1e-3)
    assert estimate["window_end_s"] - estimate["window_begin_s"] == pytest.approx(60.0, abs=1e-3)
    assert (estimate["queries"], estimate["distinct"]) == (140, 120)
    assert whole["overall"]["served"]["recall"] == pytest.approx(0.91)
    assert [one["verdict"] for one in whole["own"]] == ["unclear", "not judged"]
    bands = document(await served.run("filters", "things", "-o", "json"))["bands"]
    assert bands[0]["window_end_s"] == pytest.approx(now_s, abs=1e-3)


async def test_recall_of_long_ago_is_unknown(served: Served) -> None:
    old = asked_until(time.time() - 700.0, valid_s=600.0, served_id=served.collection_id)
    served.node.recalls.append(old)
    whole = document(await served.run("recall", "things", "-o", "json"))
    assert [one["verdict"] for one in whole["bands"]] == ["unknown", "unknown"]
    assert whole["overall"]["verdict"] == "unknown"
    shown = " ".join((await served.run("filters", "things")).stdout.split())
    assert "unfiltered: unknown; recall@10 0.9800" in shown
    assert "are too few or too old to be sure of 0.95" in shown
    assert "0.0% of the live queries are in bands that are validated" in shown


async def test_filters_gives_a_verdict_on_every_band(served: Served) -> None:
    empty = (await served.run("filters", "things")).stdout
    assert "no node counts live queries" in empty
    served.node.recalls.append(report(served.collection_id))
    shown = (await served.run("filters", "things")).stdout
    assert "unfiltered: validated; recall@10 0.9800" in shown
    assert "0.1-1%: NOT met; recall@10 0.8000 (0.7000 to 0.9000) on 40 sampled queries" in shown
    assert "90.0% of the live queries are in bands that are validated" in shown
    assert "year >= 2024" in shown
    whole = document(await served.run("filters", "things", "-o", "json"))
    assert whole["validated_share"] == pytest.approx(0.9)
    assert [one["validated"] for one in whole["bands"]] == [True, False]
    selective, broad = whole["filters"]
    assert selective["selectivity"] == pytest.approx(0.005)
    assert (selective["recall"], selective["plans"]) == (pytest.approx(0.8), {"selector": 40})
    assert broad["filter"] == "year >= 2000"


async def test_shares_of_bands_are_those_of_the_present_queries(served: Served) -> None:
    usual = report(served.collection_id)
    plain, narrow = usual.shards
    recent = (replace(plain, recent=30), replace(narrow, recent=70))
    served.node.recalls.append(replace(usual, shards=recent))
    shown = (await served.run("filters", "things")).stdout
    assert "30.0% of the live queries are in bands that are validated" in shown
    whole = document(await served.run("filters", "things", "-o", "json"))
    assert [(one["share"], one["recent"]) for one in whole["bands"]] == [
        (pytest.approx(0.3), 30),
        (pytest.approx(0.7), 70),
    ]
    lines = {
        " ".join(one.split()) for one in (await served.run("recall", "things")).stdout.splitlines()
    }
    assert any(line.startswith("unfiltered 9,000 30.0%") for line in lines)
    live = document(await served.run("recall", "things", "-o", "json"))
    assert (live["queries_from"], live["changed_at_s"]) == ("live queries", 0.0)
    served.node.recalls[:] = [replace(usual, changed_at_s=1_700_000_000.0)]
    shown = (await served.run("recall", "things")).stdout
    assert "change detected at 2023-11-1" in shown
    live = document(await served.run("recall", "things", "-o", "json"))
    assert live["changed_at_s"] == 1_700_000_000.0


@pytest.mark.parametrize(("high", "verdict"), [(0.999, "not judged"), (0.94, "missed")])
def test_stored_rows_never_show_that_the_objective_is_met(high: float, verdict: str) -> None:
    measured = RecallReport(high - 0.002, high - 0.02, high, 200, 10, 0.95)
    found = _report_document(measured)
    assert (found["verdict"], found["queries_from"]) == (verdict, "stored rows")
    console = Console(width=200)
    with console.capture() as capture:
        console.print(_render_report(measured))
    shown = " ".join(capture.get().split())
    assert f"objective 0.95 ({verdict})" in shown
    assert "200 stored rows" in shown


async def test_an_audit_and_the_worst_queries_are_views_of_their_own(served: Served) -> None:
    audit = document(await served.run("recall", "things", "--audit", "50", "-o", "json"))
    assert (audit["audits"], audit["windows"], audit["coverage_share"]) == ([], 0, None)
    worst = document(await served.run("recall", "things", "--worst", "5", "-o", "json"))
    assert (worst["queries"], worst["sampled"]) == ([], 0)
    for first, second in (("--audit", "--worst"), ("--worst", "--sample"), ("--audit", "-k")):
        both = await served.run(
            "recall", "things", first, "5", second, "5", code=ExitCode.INVALID_ARGUMENT
        )
        assert "does not go with" in both.stderr


async def test_without_live_queries_recall_measures_at_once(served: Served) -> None:
    found = await served.run("recall", "things", code=ExitCode.FAILED_PRECONDITION)
    assert "live recall is unknown" in found.stderr
    assert "holds no records" in found.stderr  # the measurement was tried
    quiet = document(await served.run("recall", "things", "-o", "json"))
    assert quiet["overall"]["verdict"] == "unmeasured"
    both = await served.run(
        "recall", "things", "--watch", "--sample", "5", code=ExitCode.INVALID_ARGUMENT
    )
    assert "--measure" in both.stderr
    await served.run("recall", "absent", "--watch", code=ExitCode.NOT_FOUND)


async def watch(served: Served, *options: str, stdout: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "annheal.cli", "recall", "things", "--watch", "--interval", "0.1", *options),
        *("--address", served.address),
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=stdout,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("options", "sign"),
    [
        ((), lambda line: "recall@10 0.9620 [" in line and "0.1-1% 0.8000" in line),
        (("-o", "json"), lambda line: json.loads(line)["collection"] == "things"),
    ],
    ids=["lines", "json"],
)
async def test_a_watch_prints_lines_for_programs_and_ends_on_interrupt(
    served: Served, options: tuple[str, ...], sign: Callable[[str], bool]
) -> None:
    served.node.recalls.append(report(served.collection_id))
    process = await watch(served, *options, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(WAIT_S):
        for _ in range(3):
            assert sign((await process.stdout.readline()).decode())
        process.send_signal(signal.SIGINT)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


async def test_a_watch_on_a_terminal_changes_in_place_and_ends_on_interrupt(
    served: Served,
) -> None:
    served.node.recalls.append(report(served.collection_id))
    ours, theirs = pty.openpty()
    process = await watch(served, stdout=theirs)
    os.close(theirs)
    shown = b""
    try:
        async with asyncio.timeout(WAIT_S):
            while shown.count(b"objective") < 3:
                shown += await asyncio.to_thread(os.read, ours, 65_536)
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # EIO: the other end is closed
                while await asyncio.to_thread(os.read, ours, 65_536):
                    pass
            _, errors = await process.communicate()
    finally:
        os.close(ours)
    assert b"\x1b[" in shown  # moved the cursor
    assert (process.returncode, errors) == (0, b"")


def test_every_plan_has_a_reason() -> None:
    def entry(plan: str, segment: str = "s") -> SegmentExplain:
        return SegmentExplain(0, segment, plan, 100, 90, 9, 64, 50, 0.001)

    assert "no live row matches" in why(entry("skip"))
    assert "only 9 rows match" in why(entry("rows"))
    assert "memory" in why(entry("scan", "growing-0"))
    assert "no graph" in why(entry("scan"))
    assert "ef 64" in why(entry("graph"))
    assert "10.0%" in why(entry("selector"))
    assert "'quantum'" in why(entry("quantum"))
    bare = replace(entry("rows"), without_kernels=True)
    assert "has not loaded its compiled kernels" in why(bare)
    assert "kernels" not in why(entry("rows"))
