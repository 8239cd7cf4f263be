"""`annheal models test`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import RenderableType

from annheal.cli.output import facts
from annheal.cli.state import state_of
from annheal.model.texts.spec import EmbedderTest

app = typer.Typer(no_args_is_help=True, help="Models of collections and their embedders.")


@app.callback()
def models() -> None:
    """Models of collections and their embedders."""


@app.command("test")
def try_embedder(
    context: typer.Context,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")],
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
