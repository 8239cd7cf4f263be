"""`annheal import`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from annheal.cli.output import counted
from annheal.cli.sources import Chunk, Columns, ImportSource, check_file, open_source
from annheal.cli.state import State, state_of
from annheal.cli.user_commands.assignments import parse_settings
from annheal.client import Client
from annheal.client.record_calls import BATCH_ROWS, CONCURRENCY
from annheal.errors import InvalidArgument, NotFound
from annheal.model.collection import Collection

IMPORT_TIMEOUT_S: Final = 300.0
"""Time for one request: a server that asks for patience gets it."""
CHUNK_REQUESTS: Final = 4
"""Requests a sender that are read from the file at once."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did; rates count the time from the first row read to the last acknowledged."""

    collection: str
    rows: int
    seconds: float
    rows_per_second: float


def import_(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help=".parquet, .jsonl, .npy, .fvecs, .bvecs or .hdf5"),
    ],
    collection: Annotated[str, typer.Option("--collection", "-c", help="The collection.")],
    create: Annotated[
        bool, typer.Option("--create", help="Create the collection if it does not exist.")
    ] = False,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the ids (`id` if there is one).")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Column of the vectors, when several could be it.")
    ] = None,
    attributes: Annotated[
        str, typer.Option(help="Columns that filters may use: auto, none, or names with commas.")
    ] = "auto",
    payload: Annotated[
        str, typer.Option(help="Columns that go into the payload: auto, none, or names.")
    ] = "auto",
    meta: Annotated[
        Path | None, typer.Option(help="Parquet file with ids and attributes of a vector file.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="HDF5 dataset.")] = "train",
    id_prefix: Annotated[str, typer.Option(help="Put before every id.")] = "",
    limit: Annotated[int | None, typer.Option("--limit", "-n", min=1, help="Rows.")] = None,
    batch_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Rows of one request.")] = (
        BATCH_ROWS
    ),
    concurrency: Annotated[int, typer.Option(min=1, max=64, help="Requests at once.")] = (
        CONCURRENCY
    ),
    metric: Annotated[
        str | None, typer.Option(help="For --create; that of the file, or cosine.")
    ] = None,
    shards: Annotated[int, typer.Option(help="For --create.")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For --create.")
    ] = None,
) -> None:
    """Import a file. Writing is idempotent by id: after an error, run the same command again."""
    state = state_of(context)
    check_file(file)
    with state.client() as client:
        existing = _existing(client, collection, create=create)
    with state.client(patient=True, timeout_s=max(state.timeout_s, IMPORT_TIMEOUT_S)) as client:
        columns = Columns(
            id=id_column,
            vector=vector_column,
            attributes=_names(attributes),
            payload=_names(payload),
            schema=None if existing is None else {f.name: f.type for f in existing.schema},
            id_prefix=id_prefix,
            dataset=dataset,
        )
        source = open_source(file, columns, meta=meta)
        layout = source.layout
        if existing is None:
            existing = client.create_collection(
                collection,
                layout.dimension,
                metric=metric or layout.metric or "cosine",
                attributes=layout.attributes,
                shard_count=shards,
                settings=parse_settings(set_ or ()),
            )
            shown = ", ".join(f"{name}:{kind}" for name, kind in layout.attributes.items())
            state.output.note(f"created collection {collection}; attributes: {shown or 'none'}")
        if layout.dimension != existing.model.dimension:
            raise InvalidArgument.of(
                "FILE",
                f"its vectors have {layout.dimension} floats, collection {collection} takes "
                f"{existing.model.dimension}",
            )
        report = _import(
            client,
            source,
            state=state,
            collection=collection,
            limit=limit,
            batch_rows=batch_rows,
            concurrency=concurrency,
        )
    state.output.show(
        report,
        lambda r: (
            f"imported {counted(r.rows, 'record')} into {r.collection} in {r.seconds:.1f} s "
            f"({r.rows_per_second:,.0f} rows/s)"
        ),
    )


def _import(
    client: Client,
    source: ImportSource,
    *,
    state: State,
    collection: str,
    limit: int | None,
    batch_rows: int,
    concurrency: int,
) -> ImportReport:
    began = time.perf_counter()
    rows_max = batch_rows * concurrency * CHUNK_REQUESTS
    total = source.layout.rows
    if limit is not None:
        total = limit if total is None else min(limit, total)
    done = 0
    with _progress(state) as progress:
        task = progress.add_task("importing", total=total)
        for chunk in _read_ahead(source, rows_max, limit):
            before = done

            def acknowledged(rows: int, _: int, before: int = before) -> None:
                progress.update(task, completed=before + rows)

            client.upsert(
                collection,
                chunk.ids,
                chunk.vectors,
                attributes=chunk.attributes,
                payloads=chunk.payloads,
                batch_rows=batch_rows,
                concurrency=concurrency,
                progress=acknowledged,
            )
            done += len(chunk)
            progress.update(task, completed=done)
    seconds = time.perf_counter() - began
    return ImportReport(collection, done, seconds, done / seconds if seconds else 0.0)


def _read_ahead(source: ImportSource, rows_max: int, limit: int | None) -> Iterator[Chunk]:
    """Read the file in a thread, one chunk ahead of what is uploaded."""
    chunks = source.chunks(rows_max=rows_max, limit=limit)
    with ThreadPoolExecutor(1, thread_name_prefix="annheal-import") as reader:
        following = reader.submit(next, chunks, None)
        while (chunk := following.result()) is not None:
            following = reader.submit(next, chunks, None)
            yield chunk


class _Rate(ProgressColumn):
    """Rows a second over the whole time: what the report says at the end."""

    def render(self, task: Task) -> Text:
        elapsed = task.finished_time if task.finished else task.elapsed
        rate = task.completed / elapsed if elapsed else 0.0
        return Text(f"{rate:,.0f} rows/s")


def _progress(state: State) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} rows"),
        _Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=state.output.is_json or not console.is_terminal,
    )


def _existing(client: Client, collection: str, *, create: bool) -> Collection | None:
    try:
        return client.get_collection(collection)
    except NotFound as error:
        if create:
            return None
        text = error.message if error.message.endswith("?") else f"{error.message}."
        raise NotFound(f"{text} Or give --create to create it", reason=error.reason) from error


def _names(text: str) -> tuple[str, ...] | None:
    """Return the names of `a,b`; None for `auto`, none for `none`."""
    if text == "auto":
        return None
    if text == "none":
        return ()
    return tuple(name.strip() for name in text.split(",") if name.strip())
