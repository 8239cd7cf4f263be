"""`annheal up` and `annheal serve`: their options. `cli.server.serve` runs what they describe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from annheal.cli.server.settings import SettingsSource, format_settings, parse_assignments, require

app = typer.Typer(no_args_is_help=True, help="Run one role of a cluster as a process.")

Config = Annotated[
    Path | None,
    typer.Option("--config", envvar="ANNHEAL_CONFIG", help="TOML file; see docs/configuration.md."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting; repeatable."),
]
Print = Annotated[
    bool, typer.Option("--print-config", help="Print the settings in force, and exit.")
]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Directory of this process.")]
Listen = Annotated[
    str | None, typer.Option("--listen", metavar="HOST:PORT", help="Where to answer.")
]
Advertise = Annotated[
    str | None,
    typer.Option("--advertise", metavar="HOST:PORT", help="The address that others use."),
]
NodeId = Annotated[str | None, typer.Option("--node-id", help="Identity of the process.")]
MetadataUrl = Annotated[
    str | None,
    typer.Option("--metadata-url", help="etcd://HOST:PORT,…/CLUSTER or sqlite:///PATH"),
]
ObjectStoreUrl = Annotated[
    str | None, typer.Option("--object-store-url", help="s3://BUCKET/PREFIX or file:///PATH")
]
LogLevel = Annotated[str | None, typer.Option("--log-level", help="debug, info, warning or error.")]


def up(
    data_dir: DataDir = None,
    listen: Listen = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65_535, help="Port alone; 0 picks one.")
    ] = None,
    log_level: LogLevel = None,
    config: Config = None,
    set_: SetOption = None,
    print_config: Print = False,
) -> None:
    """Run everything in one process: nothing else to install. Data lie in --data-dir."""
    from annheal.cli.server.roles import embedded_settings

    if port is not None:
        host = (listen or "127.0.0.1:0").rpartition(":")[0]
        listen = f"{host}:{port}"
    source = _source(config, set_, data_dir=data_dir, listen=listen, log_level=log_level)
    settings = embedded_settings(source)
    if print_config:
        parts = (settings.process, settings.coordinator, settings.shard_node, settings.compactor)
        typer.echo(format_settings(*parts))
        return
    from annheal.cli.server import serve

    serve.up(settings)


@app.command()
def coordinator(
    metadata_url: MetadataUrl = None,
    object_store_url: ObjectStoreUrl = None,
    listen: Listen = None,
    advertise: Advertise = None,
    node_id: NodeId = None,
    log_level: LogLevel = None,
    config: Config = None,
    set_: SetOption = None,
    print_config: Print = False,
) -> None:
    """Run a coordinator: it routes requests, and leads when elected."""
    from annheal.cli.server.roles import coordinator_settings

    source = _source(
        config,
        set_,
        metadata_url=metadata_url,
        object_store_url=object_store_url,
        listen=listen,
        advertise=advertise,
        node_id=node_id,
        log_level=log_level,
    )
    process, settings = coordinator_settings(source)
    if print_config:
        typer.echo(format_settings(process, settings))
        return
    from annheal.cli.server import serve

    require(process, "metadata_url", "object_store_url")
    serve.serve_coordinator(process, settings)


@app.command("shard-node")
def shard_node(
    metadata_url: MetadataUrl = None,
    object_store_url: ObjectStoreUrl = None,
    listen: Listen = None,
    advertise: Advertise = None,
    node_id: NodeId = None,
    data_dir: DataDir = None,
    zone: Annotated[str | None, typer.Option("--zone", help="Failure zone.")] = None,
    capacity: Annotated[
        float | None, typer.Option("--capacity", help="Share of shards relative to others.")
    ] = None,
    log_level: LogLevel = None,
    config: Config = None,
    set_: SetOption = None,
    print_config: Print = False,
) -> None:
    """Run a shard node: it serves shards and takes their writes."""
    from annheal.cli.server.roles import shard_node_settings

    source = _source(
        config,
        set_,
        metadata_url=metadata_url,
        object_store_url=object_store_url,
        listen=listen,
        advertise=advertise,
        node_id=node_id,
        data_dir=data_dir,
        zone=zone,
        capacity=capacity,
        log_level=log_level,
    )
    process, settings = shard_node_settings(source)
    if print_config:
        typer.echo(format_settings(settings, process))
        return
    from annheal.cli.server import serve

    require(process, "metadata_url", "object_store_url")
    serve.serve_shard_node(process, settings)


@app.command()
def compactor(
    metadata_url: MetadataUrl = None,
    object_store_url: ObjectStoreUrl = None,
    listen: Listen = None,
    node_id: NodeId = None,
    data_dir: DataDir = None,
    log_level: LogLevel = None,
    config: Config = None,
    set_: SetOption = None,
    print_config: Print = False,
) -> None:
    """Run a compactor: it rewrites segments, and may be killed at any moment."""
    from annheal.cli.server.roles import compactor_settings

    source = _source(
        config,
        set_,
        metadata_url=metadata_url,
        object_store_url=object_store_url,
        listen=listen,
        node_id=node_id,
        data_dir=data_dir,
        log_level=log_level,
    )
    process, settings = compactor_settings(source)
    if print_config:
        typer.echo(format_settings(process, settings))
        return
    from annheal.cli.server import serve

    require(process, "metadata_url", "object_store_url")
    serve.serve_compactor_role(process, settings)


def _source(config: Path | None, assignments: list[str] | None, **flags: object) -> SettingsSource:
    """Return what was given; an option of its own wins over `--set` of the same key."""
    from annheal.cli.server.roles import settings_source

    given = parse_assignments(assignments or ())
    given.update({key: str(value) for key, value in flags.items() if value is not None})
    return settings_source(given, config=config)
