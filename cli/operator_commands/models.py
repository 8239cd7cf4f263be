"""`annheal models list|add|show|remove|test`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import RenderableType

from annheal.cli.output import facts, table
from annheal.cli.state import state_of
from annheal.cli.user_commands.assignments import parse_embedder
from annheal.cli.user_commands.collections import confirm, embedder_lines
from annheal.errors import NotFound
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.suggestions import suggestion
from annheal.model.texts.spec import EmbedderTest, TextModel

app = typer.Typer(no_args_is_help=True, help="Models of collections and their embedders.")


CollectionName = Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")]
ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="The model.")]


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A model of a collection; `text_model` None: clients send its vectors."""

    model: ModelSpec
    serving: bool
    text_model: TextModel | None


@app.callback()
def models() -> None:
    """Models of collections and their embedders."""


@app.command("list")
def list_(context: typer.Context, collection: CollectionName) -> None:
    """List the models of a collection; one of them serves."""
    state = state_of(context)
    with state.client() as client:
        found = client.get_collection(collection)
    state.output.show([_entry(found, model) for model in found.models], _render_list)


@app.command()
def show(context: typer.Context, collection: CollectionName, model: ModelName) -> None:
    """Describe a model and its embedder."""
    state = state_of(context)
    with state.client() as client:
        found = client.get_collection(collection)
    spec = found.model_named(model)
    if spec is None:
        names = [one.name for one in found.models]
        raise NotFound(
            f"collection {collection!r} has no model {model!r}; {suggestion(model, names)}"
        )
    state.output.show(_entry(found, spec), _render_one)


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
) -> None:
    """Embed one text with the collection's embedder: does it work, and how fast is it?"""
    state = state_of(context)
    with state.client() as client:
        found = client.test_embedder(collection, text, as_query=not document)
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


def _entry(collection: Collection, model: ModelSpec) -> ModelEntry:
    return ModelEntry(model, model == collection.model, collection.text_model(model.name))


def _render_list(entries: list[ModelEntry]) -> RenderableType:
    return table(
        ["MODEL", "SERVING", ">DIMENSION", "METRIC", "EMBEDDER"],
        (
            (
                one.model.name,
                "yes" if one.serving else None,
                one.model.dimension,
                one.model.metric,
                None if one.text_model is None else one.text_model.embedder.kind,
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
            *embedder_lines(entry.text_model),
        ]
    )
