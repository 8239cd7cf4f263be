"""`annheal up` and `annheal serve`: their options. `cli.server.serve` runs what they describe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from annheal.cli.server.settings import SettingsSource, format_settings, parse_assignments, require

if TYPE_CHECKING:
    from annheal.cli.server.settings import ProcessSettings

app = typer.Typer(no_args_is_help=True, help="Run one role of a cluster as a process.")

OPTIONS: Final[dict[str, Any]] = {
    "metadata_url": Annotated[
        str | None,
        typer.Option("--metadata-url", help="etcd://HOST:PORT,…/CLUSTER or sqlite:///PATH"),
    ],
    "object_store_url": Annotated[
        str | None,
        typer.Option("--object-store-url", help="s3://BUCKET/PREFIX or file:///PATH"),
    ],
    "listen": Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="Address to listen on.")
    ],
    "advertise": Annotated[
        str | None,
        typer.Option("--advertise", metavar="HOST:PORT", help="The address that others use."),
    ],
    "port": Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="Port alone; 0 picks one.")
    ],
    "node_id": Annotated[str | None, typer.Option("--node-id", help="Identity of the process.")],
    "data_dir": Annotated[
        Path | None, typer.Option("--data-dir", help="Directory of this process.")
    ],
    "zone": Annotated[str | None, typer.Option("--zone", help="Failure zone.")],
    "capacity": Annotated[
        float | None,
        typer.Option("--capacity", help="Weight of this node when shards are distributed."),
    ],
    "log_level": Annotated[
        str | None, typer.Option("--log-level", help="debug, info, warning or error.")
    ],
    "config": Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="ANNHEAL_CONFIG", help="TOML file; see docs/configuration.md."
        ),
    ],
    "set_": Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting; repeatable."),
    ],
    "print_config": Annotated[
        bool, typer.Option("--print-config", help="Print the settings in force, and exit.")
    ],
}
"""Options of servers by parameter; those that are keys of settings have the key's name."""
_OF_EVERY_SERVER: Final = ("log_level", "config", "set_", "print_config")
_OF_EVERY_ROLE: Final = ("metadata_url", "object_store_url", "listen", "node_id")

Run = Callable[[], None]
Prepare = Callable[[SettingsSource], tuple[str, Run]]
"""Returns the settings in force as TOML, and what runs the server."""


def takes(*names: str) -> Callable[[Prepare], Callable[..., None]]:
    """Make a command with the options `names` and those of every server of what prepares it."""
    order = [name for name in OPTIONS if name in (*names, *_OF_EVERY_SERVER)]

    def decorate(prepare: Prepare) -> Callable[..., None]:
        def command(**given: Any) -> None:
            config, assignments = given.pop("config"), given.pop("set_")
            print_config = given.pop("print_config")
            settings, run = prepare(_source(config, assignments, **_with_port(given)))
            if print_config:
                typer.echo(settings)
            else:
                run()

        # Typer makes the options of a command from its signature.
        defaults = {"print_config": False}
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=defaults.get(name),
                    annotation=OPTIONS[name],
                )
                for name in order
            ]
        )
        command.__annotations__ = {name: OPTIONS[name] for name in order}
        command.__name__, command.__doc__ = prepare.__name__, prepare.__doc__
        return command

    return decorate


@takes("data_dir", "listen", "port")
def up(source: SettingsSource) -> tuple[str, Run]:
    """Run everything in one process: nothing else to install. Data lie in --data-dir."""
    from annheal.cli.server.roles import embedded_settings

    settings = embedded_settings(source)

    def run() -> None:
        from annheal.cli.server import serve

        serve.up(settings)

    parts = (settings.process, settings.coordinator, settings.shard_node, settings.compactor)
    return format_settings(*parts), run


@app.command()
@takes(*_OF_EVERY_ROLE, "advertise")
def coordinator(source: SettingsSource) -> tuple[str, Run]:
    """Run a coordinator: it routes requests, and leads when elected."""
    from annheal.cli.server.roles import coordinator_settings

    process, settings = coordinator_settings(source)

    def run() -> None:
        from annheal.cli.server import serve

        _require_stores(process)
        serve.serve_coordinator(process, settings)

    return format_settings(process, settings), run


@app.command("shard-node")
@takes(*_OF_EVERY_ROLE, "advertise", "data_dir", "zone", "capacity")
def shard_node(source: SettingsSource) -> tuple[str, Run]:
    """Run a shard node: it serves shards and takes their writes."""
    from annheal.cli.server.roles import shard_node_settings

    process, settings = shard_node_settings(source)

    def run() -> None:
        from annheal.cli.server import serve

        _require_stores(process)
        serve.serve_shard_node(process, settings)

    return format_settings(settings, process), run


@app.command()
@takes(*_OF_EVERY_ROLE, "data_dir")
def compactor(source: SettingsSource) -> tuple[str, Run]:
    """Run a compactor: it rewrites segments, and may be killed at any moment."""
    from annheal.cli.server.roles import compactor_settings

    process, settings = compactor_settings(source)

    def run() -> None:
        from annheal.cli.server import serve

        _require_stores(process)
        serve.serve_compactor_role(process, settings)

    return format_settings(process, settings), run


def _require_stores(process: ProcessSettings) -> None:
    require(process, "metadata_url", "object_store_url")


def _with_port(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options with `listen` that has the port of `--port`, if that is given."""
    port = given.pop("port", None)
    if port is None:
        return given
    host = (given["listen"] or "127.0.0.1:0").rpartition(":")[0]
    return {**given, "listen": f"{host}:{port}"}


def _source(config: Path | None, assignments: list[str] | None, **flags: object) -> SettingsSource:
    """Return what was given; an option of its own wins over `--set` of the same key."""
    from annheal.cli.server.roles import settings_source

    given = parse_assignments(assignments or ())
    given.update({key: str(value) for key, value in flags.items() if value is not None})
    return settings_source(given, config=config)
