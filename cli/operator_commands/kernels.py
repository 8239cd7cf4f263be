"""`annheal kernels`: the machine code of searches, which servers compile beside their work.

What imports FAISS is imported by the commands: `annheal --help` imports this module too.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Group, RenderableType

from annheal.cli.output import table
from annheal.cli.state import state_of
from annheal.errors import FailedPrecondition

if TYPE_CHECKING:
    from annheal.index.kernels.cache import KernelCache
    from annheal.index.kernels.catalog import Kernel

app = typer.Typer(
    no_args_is_help=True, help="Compiled search kernels of this user, on this machine."
)

CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        envvar="ANNHEAL_KERNEL_CACHE",
        help="Where they are kept; by default in the user's cache directory.",
    ),
]


@dataclass(frozen=True, slots=True)
class KernelEntry:
    """One kernel; `compile_s` is None where nothing was compiled now."""

    kernel: str
    ready: bool
    compile_s: float | None = None


@dataclass(frozen=True, slots=True)
class KernelReport:
    """The kernels in one folder; `private` says why no lasting one can be used, empty if one can.

    The folder's name covers the version, the processor and the sources of the kernels.
    """

    directory: str
    private: str
    kernels: list[KernelEntry]


@app.command()
def status(context: typer.Context, cache: CacheOption = None) -> None:
    """Show where compiled kernels are stored, and which exist."""
    from annheal.index.kernels.cache import open_cache
    from annheal.index.kernels.catalog import Kernel

    found = open_cache(cache)
    entries = [KernelEntry(kernel.value, found.has(kernel)) for kernel in Kernel]
    if found.private_because:
        shutil.rmtree(found.directory, ignore_errors=True)
    state_of(context).output.show(
        KernelReport(str(found.directory), found.private_because, entries), _render
    )


@app.command()
def build(context: typer.Context, cache: CacheOption = None) -> None:
    """Compile what is missing, so that no server has to: about a minute of one core.

    For images and set-up scripts. Servers do it by themselves, at a low priority, and answer
    without the kernels meanwhile.
    """
    from annheal.index.kernels.cache import open_cache
    from annheal.index.kernels.catalog import Kernel

    output, found = state_of(context).output, open_cache(cache)
    if found.private_because:
        shutil.rmtree(found.directory, ignore_errors=True)
        raise FailedPrecondition(
            f"there is nowhere to keep kernels: {found.private_because}; give --cache DIRECTORY",
            reason="KERNEL_CACHE",
        )
    if found.missing():
        output.note(f"compiling kernels into {found.directory}")
    entries = [_built(kernel, found) for kernel in Kernel]
    output.show(KernelReport(str(found.directory), "", entries), _render)


def _built(kernel: Kernel, cache: KernelCache) -> KernelEntry:
    from annheal.index.kernels.compile import compile_missing

    took_s = 0.0 if cache.has(kernel) else compile_missing(kernel, cache)
    return KernelEntry(kernel.value, True, round(took_s, 1) if took_s else None)


def _render(report: KernelReport) -> RenderableType:
    def cells(entry: KernelEntry) -> tuple[object, ...]:
        return entry.kernel, "yes" if entry.ready else "no", entry.compile_s

    where = report.directory
    if report.private:
        where = f"every process compiles for itself: {report.private}"
    return Group(table(["KERNEL", "COMPILED", ">SECONDS"], map(cells, report.kernels)), where)
