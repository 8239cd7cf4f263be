"""Watch real data go in, be searched, degrade by deletes and updates, heal, and survive a kill -9.

`make demo` runs it; it starts a server of its own in a temporary folder and removes both. The exit
code is 0 when everything that it checks was true.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from annheal import Client
from annheal.client import SearchResult
from annheal.errors import AnnhealError, FailedPrecondition
from annheal.model.topology.task import TaskPhase
from samples.demo_server import DemoServer
from samples.demo_state import (
    ATTRIBUTES,
    COLLECTION,
    VECTOR_COLUMN,
    Audit,
    Health,
    K,
    Ledger,
    Packages,
    audit,
    load_packages,
    measure,
)

PACKAGES, LATE = "packages-10k.parquet", "packages-queries.parquet"
SEED = 20_240_611
SHARDS = 2
DELETED_SHARE, UPDATED_SHARE = 0.3, 0.2
DEGRADE_ROUNDS = 4
UPDATE_NOISE = 0.3
"""Length of the random vector that an update adds to a vector of length one."""
KILL_AFTER_ROWS = 200
LATE_BATCH_ROWS = 10
CONNECT_TIMEOUT_S = 20.0
"""The server has just begun, on a machine that may be compiling its kernels."""
WRITER_TIMEOUT_S = 1.0
NARROW_COLUMNS = 110

# The demonstration asks for compaction itself, so that the degraded index can be seen first.
SETTINGS = {"compaction_interval_s": "3600"}

NEIGHBOURS = (
    ("pypi:fastparquet", None, "what resembles fastparquet?"),
    ("pypi:mongoengine", None, "what resembles mongoengine?"),
    ("pypi:fastmcp", "year >= 2026 and ecosystem = 'pypi'", "like fastmcp, but released in 2026"),
    ("pypi:mongoengine", "year < 2016", "like mongoengine, but last released before 2016"),
    ("pypi:httplib2", "exists(rank)", "like httplib2, among the most downloaded packages only"),
)
TEXTS = (
    ("draw charts in the terminal", None),
    ("turn speech into text", "year >= 2024"),
    ("send messages to a slack channel", None),
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must be true."""

    claim: str
    holds: bool
    detail: str


@dataclass(slots=True)
class Demo:
    """The stage: what is shown where, the server, and what it has acknowledged."""

    console: Console
    server: DemoServer
    packages: Packages
    late: Packages
    ledger: Ledger = field(default_factory=Ledger)
    checks: list[Check] = field(default_factory=list)
    healths: dict[str, Health] = field(default_factory=dict)

    def chapter(self, title: str, why: str) -> None:
        """Begin a part of the story."""
        self.console.print(f"\n[bold cyan]{title}[/bold cyan]")
        self.say(why)

    def say(self, text: str) -> None:
        """Print a sentence."""
        self.console.print(text, highlight=False)

    def check(self, claim: str, holds: bool, detail: str) -> None:
        """Note whether something is true, and show it."""
        self.checks.append(Check(claim, holds, detail))
        mark = "[green]ok[/green]" if holds else "[bold red]FAILED[/bold red]"
        self.console.print(f"  {mark}  {claim}: {detail}", highlight=False)

    def measured(self, moment: str, client: Client) -> None:
        """Measure recall and latency and keep them under the name of the moment."""
        self.healths[moment] = measure(
            client, self.ledger, self.late.vectors, disk_bytes=self.server.disk_bytes()
        )


def start(demo: Demo) -> str:
    """Start the server; return its address."""
    demo.chapter(
        "1. One command starts everything",
        "A server process: coordinator, shard node and compactor in one, metadata in SQLite,"
        " data in a folder.",
    )
    demo.say(f"  $ annheal {' '.join(demo.server.command)}")
    address, took_s = demo.server.start()
    demo.say(f"  process {demo.server.pid} answers at {address} after {took_s:.1f} s")
    return address


def fill(demo: Demo, client: Client) -> None:
    """Import the packages and index them."""
    demo.say(
        "  Left alone it heals itself in the background; here that is held back"
        " (compaction_interval_s) so that you can see the degraded index."
    )
    demo.chapter(
        "2. Real data goes in",
        f"{len(demo.packages):,} real packages from PyPI, each with an embedding (384 floats)"
        " of its name and summary. A row is acknowledged when it is on disk.",
    )
    client.create_collection(
        COLLECTION,
        demo.packages.vectors.shape[1],
        attributes=ATTRIBUTES,
        shard_count=SHARDS,
        model=VECTOR_COLUMN,  # questions in words are embedded with it
    )
    insert(demo, client)
    compact(demo, client, "the rows get their graphs (HNSW)")
    show_segments(demo, client, "fresh")
    demo.measured("fresh", client)


def insert(demo: Demo, client: Client) -> None:
    """Upsert all packages with their vectors, and count them."""
    rows = demo.packages.take(np.arange(len(demo.packages)), revision=1)
    started_s = time.monotonic()
    result = client.upsert(
        COLLECTION, rows.ids, rows.vectors, attributes=rows.attributes, payloads=rows.payloads
    )
    took_s = time.monotonic() - started_s
    demo.ledger.upserted(rows)
    demo.say(
        f"  {result.count:,} rows acknowledged in {took_s:.2f} s"
        f" ({result.count / took_s:,.0f} rows/s)"
    )
    count = client.count(COLLECTION)
    demo.check("every row is there", count == len(rows), f"{count:,} counted")


def neighbours(demo: Demo, client: Client) -> None:
    """Show semantic neighbours with and without filters."""
    demo.chapter(
        "3. What is near in meaning is near in space",
        "Neighbours of packages that you may know. Nothing compares words: the vectors do it.",
    )
    for name, expression, question in NEIGHBOURS:
        found = client.search(
            COLLECTION, id=name, k=6, filter=expression, include=["year", "rank", "payload"]
        )
        shown = f"{question}" + (f'   --filter "{expression}"' if expression else "")
        show_hits(demo, shown, found, skip=name)
    old = client.search(
        COLLECTION, id="pypi:mongoengine", k=50, filter="year < 2016", include=["year"]
    )
    years = [hit.attributes["year"] for hit in old if hit.attributes]
    demo.check(
        "a filter is kept and still fills the answer",
        len(years) == 50 and max(years) < 2016,
        f"{len(years)} of 50 hits, the newest of {max(years)}",
    )


def free_text(demo: Demo, client: Client) -> None:
    """Search by text when an embedding model is installed."""
    demo.chapter(
        "4. Ask in your own words",
        "A small embedding model turns the question into a vector, on this machine.",
    )
    try:
        for text, expression in TEXTS:
            found = client.search(
                COLLECTION, text=text, k=5, filter=expression, include=["year", "rank", "payload"]
            )
            shown = f'"{text}"' + (f'   --filter "{expression}"' if expression else "")
            show_hits(demo, shown, found)
    except FailedPrecondition as error:
        if error.reason != "EMBEDDER_NOT_INSTALLED":
            raise
        demo.say(f"  [yellow]left out[/yellow]: {error.message}")


def degrade(demo: Demo, client: Client) -> None:
    """Delete and update much of the data, and show what that does to the index."""
    generator = np.random.default_rng(SEED)
    order = generator.permutation(len(demo.packages))
    deleted = int(DELETED_SHARE * len(order))
    updated = int(UPDATED_SHARE * len(order))
    demo.chapter(
        "5. Degradation",
        f"{deleted:,} packages are deleted and {updated:,} updated, in {DEGRADE_ROUNDS} rounds."
        " A graph cannot forget: dead rows stay in it as tombstones, and new rows gather in small"
        " segments beside it.",
    )
    gone, changed = order[:deleted], order[deleted : deleted + updated]
    for part, rewritten in zip(
        np.array_split(gone, DEGRADE_ROUNDS), np.array_split(changed, DEGRADE_ROUNDS), strict=True
    ):
        ids = [demo.packages.ids[row] for row in part]
        client.delete(COLLECTION, ids)
        demo.ledger.removed(ids)
        rows = _revised(demo.packages, rewritten, generator)
        client.upsert(
            COLLECTION, rows.ids, rows.vectors, attributes=rows.attributes, payloads=rows.payloads
        )
        demo.ledger.upserted(rows)
        client.flush(COLLECTION)
    show_segments(demo, client, "degraded")
    demo.measured("degraded", client)
    degraded = demo.healths["degraded"]
    demo.check(
        "dead rows are tombstones now",
        degraded.dead_rows == deleted + updated,
        f"{degraded.dead_rows:,} of {degraded.rows:,} rows in {degraded.segments} segments",
    )


def _revised(
    packages: Packages, rows: npt.NDArray[np.int64], generator: np.random.Generator
) -> Packages:
    """Return rows with vectors that have moved a little, as a new summary would move them."""
    revised = packages.take(rows, revision=2)
    noise = generator.normal(size=revised.vectors.shape).astype(np.float32)
    noise *= UPDATE_NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
    moved = revised.vectors + noise
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return Packages(revised.ids, moved, revised.attributes, revised.payloads)


def heal(demo: Demo, client: Client) -> None:
    """Compact, and compare the three moments."""
    demo.chapter(
        "6. Healing",
        "The compactor reads the live rows, builds new graphs, tests them and publishes them."
        " Searches and writes go on meanwhile.",
    )
    compact(demo, client, "degraded segments are rewritten")
    show_segments(demo, client, "healed")
    demo.measured("healed", client)
    show_healths(demo)
    healed = demo.healths["healed"]
    demo.check("no tombstone is left", healed.dead_rows == 0, f"{healed.dead_rows} dead rows")
    demo.check(
        "the healed index finds the true neighbours",
        healed.recall >= 0.95,
        f"recall@{K} {healed.recall:.3f} against brute force, 0.95 promised",
    )


def compact(demo: Demo, client: Client, purpose: str, *, tasks_min: int = 1) -> None:
    """Flush, compact and wait for the tasks, of which there are at least `tasks_min`."""
    started_s = time.monotonic()
    client.flush(COLLECTION)
    with demo.console.status(f"compacting: {purpose}") as status:
        tasks = client.compact(
            COLLECTION,
            progress=lambda tasks: status.update(
                "compacting: " + ", ".join(f"{t.step or t.phase} {t.progress:.0%}" for t in tasks)
            ),
        )
    done = [task for task in tasks if task.phase == TaskPhase.PUBLISHED]
    rows_in, rows_out = sum(t.rows_in for t in tasks), sum(t.rows_out for t in tasks)
    demo.check(
        f"compaction ({purpose})",
        len(done) == len(tasks) >= tasks_min,
        f"{len(done)} of {len(tasks)} tasks, {rows_in:,} rows read, {rows_out:,} written,"
        f" {time.monotonic() - started_s:.1f} s",
    )


def kill_while_writing(demo: Demo, client: Client) -> str:
    """Kill the server in the middle of writes and start it again; return the new address."""
    demo.chapter(
        "7. kill -9",
        "A client writes new packages and deletes some; in the middle of it the server is killed by"
        " SIGKILL. No chance to save anything.",
    )
    writer = Writer(client.address, demo.ledger, demo.late)
    writer.start()
    writer.enough.wait(timeout=60.0)
    pid = demo.server.pid
    demo.server.kill()
    writer.join()
    demo.say(
        f"  process {pid} killed after {writer.rows:,} more rows and {writer.deletes} deletes were"
        f" acknowledged; the call that was cut off held {len(demo.ledger.unsure)} ids"
    )
    address, took_s = demo.server.start()
    demo.say(f"  started again over the same folder: it answers after {took_s:.1f} s")
    demo.check(
        "the kill came in the middle of writes",
        writer.interrupted and writer.rows >= KILL_AFTER_ROWS,
        "the writer was cut off" if writer.interrupted else "the writer was not cut off",
    )
    return address


class Writer(threading.Thread):
    """Writes and deletes until the server is gone, noting what was acknowledged."""

    def __init__(self, address: str, ledger: Ledger, packages: Packages) -> None:
        super().__init__(name="writer", daemon=True)
        self.enough = threading.Event()
        self.interrupted = False
        self.rows = self.deletes = 0
        self._address = address
        self._ledger = ledger
        self._packages = packages

    def run(self) -> None:
        """Upsert ten packages and delete the first of them, over and over."""
        revision = 1
        with Client(
            self._address, timeout_s=WRITER_TIMEOUT_S, connect_timeout_s=CONNECT_TIMEOUT_S
        ) as client:
            while not self.interrupted:
                for start in range(0, len(self._packages), LATE_BATCH_ROWS):
                    rows = np.arange(start, min(start + LATE_BATCH_ROWS, len(self._packages)))
                    if not self._write(client, self._packages.take(rows, revision=revision)):
                        return
                revision += 1

    def _write(self, client: Client, batch: Packages) -> bool:
        cut_off = batch.ids
        try:
            client.upsert(
                COLLECTION,
                batch.ids,
                batch.vectors,
                attributes=batch.attributes,
                payloads=batch.payloads,
            )
            self._ledger.upserted(batch)
            self.rows += len(batch)
            cut_off = batch.ids[:1]
            client.delete(COLLECTION, cut_off)
            self._ledger.removed(cut_off)
            self.deletes += 1
        except AnnhealError:
            self._ledger.unsure.update(cut_off)
            self.interrupted = True
            self.enough.set()
            return False
        if self.rows >= KILL_AFTER_ROWS:
            self.enough.set()
        return True


def verify(demo: Demo, client: Client) -> None:
    """Compare everything with what was acknowledged."""
    demo.chapter(
        "8. Is everything there?",
        "Every record is read back and compared with what the server had acknowledged.",
    )
    check_records(demo, audit(client, demo.ledger))


def check_records(demo: Demo, found: Audit) -> None:
    """Check that an audit has found no difference."""
    expected = len(demo.ledger.records)
    demo.check(
        "every acknowledged record is there",
        not found.missing,
        f"{expected - len(found.missing):,} of {expected:,}" + _some(found.missing),
    )
    demo.check(
        "each with its last acknowledged value",
        not found.outdated,
        f"{len(found.outdated)} outdated" + _some(found.outdated),
    )
    demo.check(
        "no deleted record came back",
        not found.ghosts,
        f"{len(demo.ledger.deleted):,} deleted ones looked for by scan, by id and by search,"
        f" {len(found.ghosts)} found" + _some(found.ghosts),
    )
    demo.check(
        "nothing is there twice or out of nowhere",
        not found.repeated and not found.unexpected,
        f"{len(found.repeated)} repeated, {len(found.unexpected)} unknown of {found.seen:,} read",
    )


def _some(ids: Iterable[str]) -> str:
    names = list(ids)[:3]
    return f" ({', '.join(names)} ...)" if names else ""


def show_hits(demo: Demo, question: str, found: SearchResult, *, skip: str = "") -> None:
    """Print a question and its answers."""
    table = Table(title=question, title_justify="left", title_style="bold", box=None, expand=True)
    table.add_column("score", justify="right", style="green", width=5)
    table.add_column("package", style="cyan", no_wrap=True, width=28)
    table.add_column("year", justify="right", width=4)
    table.add_column("summary", no_wrap=True, overflow="ellipsis", ratio=1)
    for hit in found:
        if hit.id == skip:
            continue
        year = (hit.attributes or {}).get("year", "")
        table.add_row(f"{hit.score:.3f}", hit.payload["name"], str(year), hit.payload["summary"])
    demo.console.print(table)


def show_segments(demo: Demo, client: Client, moment: str) -> None:
    """Print the segments with their tombstones."""
    table = Table(title=f"segments, {moment}", title_justify="left", header_style="bold")
    table.add_column("shard", justify="right")
    table.add_column("segment")
    table.add_column("tier")
    table.add_column("index")
    for title in ("rows", "tombstones", "dead"):
        table.add_column(title, justify="right")
    for segment in client.segments(COLLECTION).segments:
        share = segment.dead_rows / segment.rows if segment.rows else 0.0
        style = "red" if share >= 0.2 else "yellow" if share > 0 else "green"
        table.add_row(
            str(segment.shard),
            segment.segment_id[:12],
            segment.tier,
            segment.index_kind,
            f"{segment.rows:,}",
            f"{segment.dead_rows:,}",
            f"[{style}]{share:.0%}[/{style}]",
        )
    demo.console.print(table)


def show_healths(demo: Demo) -> None:
    """Print the moments side by side."""
    table = Table(
        title=f"the same {len(demo.late)} queries, one after the other, at three moments",
        title_justify="left",
        header_style="bold",
    )
    table.add_column("")
    for moment in demo.healths:
        table.add_column(moment, justify="right")
    healths = list(demo.healths.values())
    for title, cells in (
        ("segments", [f"{h.segments}" for h in healths]),
        ("rows", [f"{h.rows:,}" for h in healths]),
        ("tombstones", [f"{h.dead_rows:,}" for h in healths]),
        (f"recall@{K}, against brute force", [f"{h.recall:.3f}" for h in healths]),
        (f"recall@{K}, as the server measures it *", [f"{h.server_recall:.3f}" for h in healths]),
        ("a query, median", [f"{h.p50_ms:.2f} ms" for h in healths]),
        ("a query, 95 %", [f"{h.p95_ms:.2f} ms" for h in healths]),
    ):
        table.add_row(title, *cells)
    demo.console.print(table)
    demo.say(
        "  Recall holds in the degraded index because walks compare more rows where dead rows are,"
        " and small\n  segments are searched exactly: the cost of degradation is time."
        "\n  * with stored vectors as queries, which are easier than packages it has never seen"
    )


def verdict(demo: Demo, started_s: float, *, following: str = "README.md") -> int:
    """Print whether all checks hold, and what to read next; return the exit code."""
    failed = [check for check in demo.checks if not check.holds]
    took = f"{time.monotonic() - started_s:.0f} s"
    if failed:
        demo.say(
            f"\n[bold red]FAILED[/bold red]: {len(failed)} of {len(demo.checks)} checks ({took})"
        )
        for check in failed:
            demo.say(f"  {check.claim}: {check.detail}")
        return 1
    demo.say(
        f"\n[bold green]All {len(demo.checks)} checks hold[/bold green] ({took}). Next:"
        f" {following}, or `.venv/bin/annheal up` and `.venv/bin/annheal --help`."
    )
    return 0


def play(demo: Demo) -> int:
    """Run the whole story; return the exit code."""
    started_s = time.monotonic()
    with Client(start(demo), connect_timeout_s=CONNECT_TIMEOUT_S) as client:
        fill(demo, client)
        neighbours(demo, client)
        free_text(demo, client)
        degrade(demo, client)
        heal(demo, client)
        address = kill_while_writing(demo, client)
    with Client(address, connect_timeout_s=CONNECT_TIMEOUT_S) as client:
        verify(demo, client)
    return verdict(demo, started_s)


def on_stage(
    play: Callable[[Demo], int], settings: Mapping[str, str], *, rows: int | None = None
) -> int:
    """Run `play` with a server over a folder that is removed afterwards; return the exit code.

    `rows` packages are stored, all of the sample file without it.
    """
    console = Console()
    if not console.is_terminal:
        console = Console(width=NARROW_COLUMNS)
    signal.signal(signal.SIGTERM, _interrupt)
    folder = Path(tempfile.mkdtemp(prefix="annheal-demo-"))
    server = DemoServer(folder, settings)
    try:
        packages = load_packages(PACKAGES)
        if rows is not None:
            packages = packages.take(np.arange(rows), revision=1)
        return play(Demo(console, server, packages, load_packages(LATE)))
    except KeyboardInterrupt:
        console.print("\ninterrupted")
        return 130
    except (AnnhealError, RuntimeError) as error:
        console.print(f"\n[bold red]FAILED[/bold red]: {error}", highlight=False)
        return 1
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """Play the demonstration in a folder that is removed afterwards."""
    return on_stage(play, SETTINGS)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
