"""`annheal models list|add|show|remove|test`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import RenderableType

from annheal.cli.operator_commands.health_checks import coverage_of
from annheal.cli.output import facts, table
from annheal.cli.state import State, state_of
from annheal.cli.user_commands.assignments import parse_embedder
from annheal.cli.user_commands.collections import confirm, embedder_lines
from annheal.client import SegmentList
from annheal.errors import NotFound
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.suggestions import suggestion
from annheal.model.texts.spec import EmbedderTest, TextModel
from annheal.model.topology.state import SegmentState

app = typer.Typer(no_args_is_help=True, help="Models of collections and their embedders.")


CollectionName = Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of a collection; `text_model` None: clients send its vectors.

    `rows` records have a vector of it, `lacking` have none.
    """

    model: ModelSpec
    serving: bool
    text_model: TextModel | None
    rows: int
    lacking: int


@app.callback()
def models() -> None:
    """Models of collections and their embedders."""


@app.command("list")
def list_(context: typer.Context, collection: CollectionName) -> None:
    """List the models of a collection, and how many records have vectors of each."""
    state = state_of(context)
    with state.client() as client:
        found, segments = client.get_collection(collection), client.segments(collection)
    _warn(state, segments)
    entries = [_entry(found, model, segments.segments) for model in found.models]
    state.output.show(entries, _render_list)


@app.command()
def show(context: typer.Context, collection: CollectionName, model: ModelName) -> None:
    """Describe a model and its embedder."""
    state = state_of(context)
    with state.client() as client:
        found, segments = client.get_collection(collection), client.segments(collection)
    spec = found.model_named(model)
    if spec is None:
        names = [one.name for one in found.models]
        raise NotFound(
            f"collection {collection!r} has no model {model!r}; {suggestion(model, names)}"
        )
    _warn(state, segments)
    state.output.show(_entry(found, spec, segments.segments), _render_one)


@app.command()
def add(
    context: typer.Context,
    collection: CollectionName,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Its name, which tags its vectors.")
    ],
    dimension: Annotated[int, typer.Option("--dimension", "-d", help="Floats per vector.")],
    metric: Annotated[Metric, typer.Option("--metric", help="How vectors are compared.")] = (
        Metric.COSINE
    ),
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
) -> None:
    """Add a model: records may have vectors of it beside those of the others.

    The serving model answers searches as before. Adding the same model again changes nothing.
    """
    state = state_of(context)
    with state.client() as client:
        changed = client.add_model(
            collection,
            model,
            dimension,
            metric=metric,
            embedder=parse_embedder(embedder, embedder_option or ()),
            source=source,
        )
    state.output.show(
        changed, lambda c: f"collection {c.name} has the models {', '.join(_names(c))}"
    )


@app.command()
def remove(
    context: typer.Context,
    collection: CollectionName,
    model: ModelName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a model that does not serve: its vectors cannot be read or searched any more."""
    state = state_of(context)
    if not yes:
        confirm(f"Remove model {model} from collection {collection}, with its vectors?")
    with state.client() as client:
        changed = client.remove_model(collection, model)
    state.output.show(
        changed, lambda c: f"collection {c.name} has the models {', '.join(_names(c))}"
    )


@app.command("test")
def try_embedder(
    context: typer.Context,
    collection: CollectionName,
    text: Annotated[str, typer.Option("--text", "-t", help="The text.")] = "hello",
    document: Annotated[
        bool, typer.Option("--document", help="Embed it as a record, not as a query.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", help="The model; without it, the serving one.")
    ] = None,
) -> None:
    """Embed one text with the collection's embedder: does it work, and how fast is it?"""
    state = state_of(context)
    with state.client() as client:
        found = client.test_embedder(collection, text, as_query=not document, model=model)
    state.output.show(found, _render)


def _render(found: EmbedderTest) -> RenderableType:
    return facts(
        [
            ("model", found.model),
            ("embedder", found.embedder),
            ("dimension", found.dimension),
            ("norm", f"{found.norm:.4f}"),
            ("milliseconds", f"{found.duration_s * 1e3:.1f}"),
        ]
    )


def _names(collection: Collection) -> list[str]:
    """Return the names of the models, the serving one marked."""
    serving = collection.model.name
    return [
        f"{one.name} (serving)" if one.name == serving else one.name for one in collection.models
    ]


def _entry(
    collection: Collection, model: ModelSpec, segments: Sequence[SegmentState]
) -> ModelEntry:
    rows, lacking = coverage_of(segments).get(model.name, (0, 0))
    if len(collection.models) == 1 and not rows:
        rows = sum(segment.rows - segment.dead_rows for segment in segments)
    return ModelEntry(
        model, model == collection.model, collection.text_model(model.name), rows, lacking
    )


def _warn(state: State, segments: SegmentList) -> None:
    if segments.missing_shards:
        shards = ", ".join(map(str, segments.missing_shards))
        state.output.note(f"shards {shards} do not answer: their records are not counted")


def _render_list(entries: list[ModelEntry]) -> RenderableType:
    return table(
        ["MODEL", "SERVING", ">DIMENSION", "METRIC", "EMBEDDER", ">VECTORS", ">LACKING"],
        (
            (
                one.model.name,
                "yes" if one.serving else None,
                one.model.dimension,
                one.model.metric,
                None if one.text_model is None else one.text_model.embedder.kind,
                one.rows,
                one.lacking,
            )
            for one in entries
        ),
    )


def _render_one(entry: ModelEntry) -> RenderableType:
    return facts(
        [
            ("model", entry.model.name),
            ("serving", "yes" if entry.serving else "no"),
            ("dimension", entry.model.dimension),
            ("metric", entry.model.metric),
            ("records with a vector", entry.rows),
            ("records without", entry.lacking),
            *embedder_lines(entry.text_model),
        ]
    )
