"""What a benchmark reports: a table for people, and JSON with the facts of the machine."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.harness.dataset import Dataset
from benchmarks.harness.options import REPOSITORY, Options

PACKAGES = ("annheal", "faiss-cpu", "grpcio", "numpy", "protobuf", "pyarrow")
GIT_TIMEOUT_S = 10.0
TABLE_COLUMNS = 120

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """A key of the rows as a column of the table; `digits` after the point."""

    key: str
    title: str
    digits: int = 0


@dataclass(frozen=True, slots=True)
class Requirement:
    """Something that must hold, whether it did, and the figures that say so."""

    name: str
    holds: bool
    figures: str


@dataclass(slots=True)
class Report:
    """The rows of one benchmark. Keys of environment and rows: docs/benchmarks.md."""

    benchmark: str
    options: Options
    dataset: Dataset
    rows: list[Row] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)

    def add(self, **values: Any) -> Row:
        """Add a row and return it."""
        self.rows.append(values)
        return values

    def document(self) -> dict[str, Any]:
        """Return what is written as JSON."""
        document: dict[str, Any] = {"environment": environment(self), "rows": self.rows}
        if self.requirements:
            document["requirements"] = [asdict(one) for one in self.requirements]
        return document

    def write(self) -> Path | None:
        """Write the JSON file that was asked for, and return its path."""
        target = self.options.json
        if target is None:
            return None
        if target.is_dir():
            target = target / f"{self.benchmark}.json"
        target.write_text(json.dumps(self.document(), indent=2) + "\n")
        return target


def environment(report: Report) -> dict[str, Any]:
    """Return the facts that a reader needs to judge the figures."""
    return {
        "benchmark": report.benchmark,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "cpu_model": _cpu_model(),
        "cpu_cores": len(os.sched_getaffinity(0)),
        "load_average": os.getloadavg()[0],
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "dataset": report.dataset.name,
        "rows": report.dataset.rows,
        "dimension": report.dataset.dimension,
        "queries": len(report.dataset.queries),
        "attributes": sorted(report.dataset.schema),
        "repeats": report.options.repeats,
        "seconds": report.options.seconds,
        "k": report.options.k,
    }


def report_console() -> Console:
    """Return a console that is wide enough for the tables where there is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_COLUMNS)


def print_report(
    report: Report, *, title: str, columns: Sequence[Column], console: Console
) -> None:
    """Print the machine in one line and the rows as a table."""
    facts = environment(report)
    console.print(
        f"\n[bold]{title}[/bold]: {facts['rows']:,} rows x {facts['dimension']} of"
        f" {facts['dataset']}, k = {facts['k']}, {facts['cpu_cores']} cores {facts['cpu_model']},"
        f" load {facts['load_average']:.1f}, Python {facts['python']},"
        f" FAISS {facts['packages']['faiss-cpu']},"
        f" commit {facts['git_commit']}",
        highlight=False,
    )
    table = Table(header_style="bold", pad_edge=False)
    for column in columns:
        numeric = any(isinstance(row.get(column.key), int | float) for row in report.rows)
        table.add_column(column.title, justify="right" if numeric else "left")
    for row in report.rows:
        table.add_row(*(_cell(row, column) for column in columns))
    console.print(table)
    for one in report.requirements:
        verdict = "[green]pass[/green]" if one.holds else "[bold red]FAIL[/bold red]"
        console.print(f"{verdict}  {one.name}: {one.figures}", highlight=False)
    path = report.write()
    if path is not None:
        console.print(f"written to {path}", highlight=False)


def _cell(row: Mapping[str, Any], column: Column) -> str:
    value = row.get(column.key)
    if value is None:
        return ""
    if isinstance(value, int | float):
        return f"{value:,.{column.digits}f}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()


def git_commit() -> str:
    """Return the short hash, with "+changes" when files differ from it; "" outside a clone."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        return f"{commit}+changes" if _git("status", "--porcelain", "-uno") else commit
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=GIT_TIMEOUT_S,
        check=True,
    )
    return done.stdout.strip()
