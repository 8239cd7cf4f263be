"""The command line, put together. docs/cli.md is its manual."""

from __future__ import annotations

from importlib import metadata
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from annheal.cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from annheal.cli.operator_commands import (
    cluster,
    filters,
    garbage,
    healing,
    health,
    kernels,
    recall,
    tasks,
)
from annheal.cli.output import Output, OutputFormat, drop_stdout, print_error
from annheal.cli.server import serving
from annheal.cli.state import State, state_of
from annheal.cli.user_commands import (
    collections,
    explain,
    exporting,
    importing,
    records,
    search,
)
from annheal.errors import AnnhealError, Unavailable
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.rpc.status import CANNOT_CONNECT

_CODES = "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())
_EPILOG = f"Exit codes:\n\n\b\n{_CODES}"


class Commands(TyperGroup):
    """The commands, with expected errors turned into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was chosen."""
        try:
            return super().invoke(ctx)
        except AnnhealError as error:
            error = _with_help(error, ctx)
            print_error(error, format=OutputFormat(ctx.params.get("output", OutputFormat.TABLE)))
            raise typer.Exit(exit_code_of(error)) from None
        except BrokenPipeError:
            drop_stdout()
            raise typer.Exit(ExitCode.BROKEN_PIPE) from None


def _with_help(error: AnnhealError, context: Any) -> AnnhealError:
    """Return `error`, and how to get a server when none was there to be asked."""
    address = getattr(context.obj, "address", "")
    if error.reason != CANNOT_CONNECT or not address or address not in error.message:
        return error
    return Unavailable(
        f"{error.message}. Start one with `annheal up`, or say where it is with"
        " --address HOST:PORT or ANNHEAL_ADDRESS",
        reason=error.reason,
    )


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["--help", "-h"]},
)


@app.callback()
def main(
    context: typer.Context,
    address: Annotated[
        str, typer.Option(envvar="ANNHEAL_ADDRESS", help="A coordinator.", metavar="HOST:PORT")
    ] = "127.0.0.1:7700",
    output: Annotated[
        OutputFormat, typer.Option("--output", "-o", envvar="ANNHEAL_OUTPUT", help="Format.")
    ] = OutputFormat.TABLE,
    timeout: Annotated[
        float | None,
        typer.Option(
            envvar="ANNHEAL_TIMEOUT_S",
            min=0.001,
            max=TIMEOUT_MAX_S,
            help="Seconds for the whole command; for import, export, scan, --watch: for each call.",
            show_default="60; import, export 300; flush, compact, gc, recall --measure 600",
        ),
    ] = None,
) -> None:
    """Annheal: vector search that keeps its own indexes healthy.

    These options may stand before or after the command.
    """
    context.obj = State(address=address, timeout_s=timeout, output=Output(output))


def version(context: typer.Context) -> None:
    """Print the version of this program."""
    found = metadata.version("annheal")
    state_of(context).output.show({"version": found}, lambda v: v["version"])


app.command("up")(serving.up)
app.add_typer(serving.app, name="serve")
app.add_typer(collections.app, name="collection")
app.command("import")(importing.import_)
app.command("export")(exporting.export)
app.command("search")(search.search)
app.command("explain")(explain.explain)
app.command("get")(records.get)
app.command("delete")(records.delete)
app.command("count")(records.count)
app.command("scan")(records.scan)
app.command("segments")(healing.segments)
app.command("flush")(healing.flush)
app.command("compact")(healing.compact)
app.command("recall")(recall.recall)
app.command("filters")(filters.filters)
app.add_typer(tasks.app, name="tasks")
app.command("gc")(garbage.gc)
app.command("health")(health.health)
app.add_typer(kernels.app, name="kernels")
app.command("status")(cluster.status)
app.command("nodes")(cluster.nodes)
app.command("shards")(cluster.shards)
app.command("rebalance")(cluster.rebalance)
app.command("drain")(cluster.drain)
app.command("undrain")(cluster.undrain)
app.command("move")(cluster.move)
app.command("version")(version)
