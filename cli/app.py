"""The command line, put together. docs/cli.md is its manual."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module, metadata
from typing import Annotated, Any, Final, cast

import typer
from typer.core import TyperGroup

from annheal.cli.exit_codes import MEANINGS, ExitCode, exit_code_of
from annheal.cli.output import Output, OutputFormat, drop_stdout, print_error
from annheal.cli.state import State, state_of
from annheal.errors import AnnhealError, Unavailable
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.rpc.status import CANNOT_CONNECT

_CODES = "\n".join(f"  {code.value:>3}  {meaning}" for code, meaning in MEANINGS.items())
_EPILOG = f"Exit codes:\n\n\b\n{_CODES}"

COMMANDS: Final[Mapping[str, str]] = {
    "up": "server.serving:up",
    "serve": "server.serving:app",
    "collection": "user_commands.collections:app",
    "import": "user_commands.importing:import_",
    "export": "user_commands.exporting:export",
    "search": "user_commands.search:search",
    "explain": "user_commands.explain:explain",
    "get": "user_commands.records:get",
    "update": "user_commands.updating:update",
    "delete": "user_commands.records:delete",
    "count": "user_commands.records:count",
    "scan": "user_commands.records:scan",
    "segments": "operator_commands.healing:segments",
    "flush": "operator_commands.healing:flush",
    "compact": "operator_commands.healing:compact",
    "recall": "operator_commands.recall:recall",
    "filters": "operator_commands.filters:filters",
    "models": "operator_commands.models:app",
    "migrate": "operator_commands.migrate:app",
    "tasks": "operator_commands.tasks:app",
    "gc": "operator_commands.garbage:gc",
    "health": "operator_commands.health:health",
    "kernels": "operator_commands.kernels:app",
    "status": "operator_commands.cluster:status",
    "nodes": "operator_commands.cluster:nodes",
    "shards": "operator_commands.cluster:shards",
    "rebalance": "operator_commands.cluster:rebalance",
    "drain": "operator_commands.cluster:drain",
    "undrain": "operator_commands.cluster:undrain",
    "move": "operator_commands.cluster:move",
    "version": "app:version",
}
"""Commands in the order of `--help`: the module below `annheal.cli`, and its function or group.

A module is imported when one of its commands is asked for: a process runs one command, and to
import them all takes 0.25 CPU seconds more.
"""


class LoadedWhenUsed(Mapping[str, Any]):
    """The commands of `COMMANDS` by name, as typer makes them."""

    def __getitem__(self, name: str) -> Any:
        return _loaded(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@functools.cache
def _loaded(name: str) -> Any:
    """Import the module of a command; return the command. Raises KeyError where there is none."""
    module, _, attribute = COMMANDS[name].partition(":")
    found = getattr(import_module(f"annheal.cli.{module}"), attribute)
    holder = typer.Typer(rich_markup_mode=None)
    if isinstance(found, typer.Typer):
        holder.add_typer(found, name=name)
    else:
        holder.command(name)(found)
    return typer.main.get_group(holder).commands[name]


class Commands(TyperGroup):
    """The commands, with expected errors turned into a message and an exit code."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast("MutableMapping[str, Any]", LoadedWhenUsed())

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
            show_default="60; import, export 300; flush, compact, gc, measuring recall 600",
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
