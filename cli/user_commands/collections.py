"""`annheal collection create|list|show|update|drop`."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer
from rich.console import Group, RenderableType

from annheal.cli.output import counted, facts, moment, share, size, table
from annheal.cli.state import state_of
from annheal.cli.user_commands.assignments import (
    parse_attributes,
    parse_embedder,
    parse_embedder_options,
    parse_settings,
)
from annheal.client import CollectionInfo
from annheal.errors import FailedPrecondition
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.texts.spec import OPTION_NAMES, EmbedderSpec, TextModel

app = typer.Typer(no_args_is_help=True, help="Create, describe, change and drop collections.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The collection.")]
Setting = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="A setting, such as recall_objective=0.98."),
]


@app.command()
def create(
    context: typer.Context,
    name: Name,
    dimension: Annotated[int, typer.Option("--dimension", "-d", help="Floats per vector.")],
    metric: Annotated[Metric, typer.Option("--metric", help="How vectors are compared.")] = (
        Metric.COSINE
    ),
    attribute: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute",
            "-a",
            metavar="NAME:TYPE",
            help="Filterable: keyword, keyword_list, int64, float64, bool or timestamp.",
        ),
    ] = None,
    shards: Annotated[int, typer.Option("--shards", help="Number of shards.")] = 1,
    model: Annotated[
        str, typer.Option("--model", help="Name of the model of the vectors.")
    ] = "default",
    embedder: Annotated[
        str | None,
        typer.Option(
            "--embedder",
            metavar="KIND",
            help="The server embeds texts: openai, onnx, minilm_l6, or a plugin.",
        ),
    ] = None,
    embedder_option: Annotated[
        list[str] | None,
        typer.Option(
            "--embedder-option",
            metavar="KEY=VALUE",
            help="Such as url=http://localhost:8080/v1 or remote_model=NAME; repeatable.",
        ),
    ] = None,
    source: Annotated[
        str,
        typer.Option(
            "--source",
            metavar="TEMPLATE",
            help="Text of records without text and vector, such as '{name}: {summary}'.",
        ),
    ] = "",
    set_: Setting = None,
    m: Annotated[int | None, typer.Option("--m", help="HNSW links per node.")] = None,
    ef_construction: Annotated[
        int | None, typer.Option("--ef-construction", help="HNSW beam width while building.")
    ] = None,
) -> None:
    """Create a collection."""
    state = state_of(context)
    index = {"m": m, "ef_construction": ef_construction}
    with state.client() as client:
        created = client.create_collection(
            name,
            dimension,
            metric=metric,
            attributes=parse_attributes(attribute or ()),
            shard_count=shards,
            model=model,
            embedder=parse_embedder(embedder, embedder_option or ()),
            source=source,
            index={key: value for key, value in index.items() if value is not None},
            settings=parse_settings(set_ or ()),
        )
    state.output.show(
        created, lambda c: f"created collection {c.name} ({counted(c.shard_count, 'shard')})"
    )


@app.command("list")
def list_(context: typer.Context) -> None:
    """List collections."""
    state = state_of(context)
    with state.client() as client:
        found = client.list_collections()
    state.output.show(found, _render_list)


@app.command()
def show(context: typer.Context, name: Name) -> None:
    """Describe a collection and what it holds."""
    state = state_of(context)
    with state.client() as client:
        info = client.describe_collection(name)
    state.output.show(info, _render_info)


@app.command()
def update(
    context: typer.Context,
    name: Name,
    set_: Setting = None,
    m: Annotated[int | None, typer.Option("--m", help="HNSW links per node.")] = None,
    ef_construction: Annotated[
        int | None, typer.Option("--ef-construction", help="HNSW beam width while building.")
    ] = None,
    embedder_option: Annotated[
        list[str] | None,
        typer.Option(
            "--embedder-option",
            metavar="KEY=VALUE",
            help="Where and how fast texts are embedded, such as url=http://localhost:8080/v1 or"
            " requests_per_minute=600; repeatable.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="The model whose embedder it is; without it, the serving."),
    ] = None,
) -> None:
    """Change settings; `--set KEY=` restores a default."""
    state = state_of(context)
    index = {"m": m, "ef_construction": ef_construction}
    with state.client() as client:
        updated = client.update_collection(
            name,
            settings=parse_settings(set_ or ()),
            index={key: value for key, value in index.items() if value is not None},
            embedder=parse_embedder_options(embedder_option or ()),
            model=model,
        )
    state.output.show(updated, lambda c: _render_info(CollectionInfo(c, None)))


@app.command()
def drop(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Drop a collection and everything in it."""
    state = state_of(context)
    with state.client() as client:
        if not yes:
            confirm(f"Drop collection {name} with {counted(client.count(name), 'record')}?")
        client.drop_collection(name)
    state.output.show({"dropped": name}, lambda _: f"dropped collection {name}")


def confirm(question: str) -> None:
    """Ask; raises `FailedPrecondition` when nobody can answer, and ends when the answer is no."""
    stdin = typer.get_text_stream("stdin")
    if not stdin.isatty():
        raise FailedPrecondition(f"{question} Nobody is there to answer: give --yes")
    typer.confirm(question, abort=True, err=True)


def _render_list(collections: list[Collection]) -> RenderableType:
    return table(
        ["NAME", "MODEL", ">DIMENSION", "METRIC", ">SHARDS", "ATTRIBUTES", "CREATED"],
        (
            (
                c.name,
                c.model.name,
                c.model.dimension,
                c.model.metric,
                c.shard_count,
                ", ".join(f.name for f in c.schema) or None,
                moment(c.created_at_s),
            )
            for c in collections
        ),
    )


def _render_info(info: CollectionInfo) -> RenderableType:
    c, status = info.collection, info.status
    lines: list[tuple[str, object]] = [
        ("name", c.name),
        ("id", c.id),
        ("model", _model_line(c.model)),
        *embedder_lines(c.text_model(c.model.name)),
        *(("further model", _model_line(one)) for one in c.models if one != c.model),
        ("created", moment(c.created_at_s)),
        ("shards", c.shard_count),
    ]
    if status is not None:
        rows = status.live_rows + status.dead_rows
        lines += [
            ("shards serving", status.shards_serving),
            ("records", status.live_rows),
            ("dead rows", f"{status.dead_rows:,} ({share(status.dead_rows, rows) or '0 %'})"),
            ("rows without graph", status.unindexed_rows),
            ("segments", status.segments),
            ("size", size(status.size_bytes)),
        ]
    attributes = table(["ATTRIBUTE", "TYPE"], ((f.name, f.type) for f in c.schema))
    values = {**dataclasses.asdict(c.settings), **dataclasses.asdict(c.index)}
    settings = table(["SETTING", ">VALUE"], values.items())
    return Group(facts(lines), "", *((attributes, "") if c.schema else ()), settings)


def _model_line(model: ModelSpec) -> str:
    return f"{model.name}, {model.dimension} floats, {model.metric}"


def embedder_lines(found: TextModel | None) -> list[tuple[str, object]]:
    """Return the embedder of a model and its options that are not the usual ones."""
    if found is None:
        return []
    usual = EmbedderSpec(found.embedder.kind)
    options = [
        f"{name}={getattr(found.embedder, name)}"
        for name in OPTION_NAMES
        if name not in ("kind", "options") and getattr(found.embedder, name) != getattr(usual, name)
    ]
    options += [f"options.{name}={value}" for name, value in found.embedder.options]
    lines: list[tuple[str, object]] = [("embedder", ", ".join([found.embedder.kind, *options]))]
    return [*lines, ("source", found.source)] if found.source else lines
