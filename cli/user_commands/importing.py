"""`annheal import`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from annheal.cli.exit_codes import CONFIGURATION
from annheal.cli.exports import ExportDescription, find_export
from annheal.cli.output import counted
from annheal.cli.sources import Columns, ImportSource, Layout, check_file, open_source
from annheal.cli.sources.exported import ExportSource
from annheal.cli.state import State, state_of
from annheal.cli.user_commands.assignments import parse_settings
from annheal.cli.user_commands.import_run import Sending, Tally, bytes_progress, send_rows
from annheal.client import Client
from annheal.client.records.write_calls import BATCH_ROWS, CONCURRENCY
from annheal.errors import InvalidArgument, NotFound
from annheal.model.collection import Collection
from annheal.model.validation import usable_model

IMPORT_TIMEOUT_S: Final = 300.0
"""Time for one request: a server that asks for patience gets it."""


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did; rates count the time from the first row read to the last acknowledged.

    `not_taken` are columns that became nothing; `skipped` rows were left out by `--skip-rows`.
    """

    collection: str
    created: bool
    rows: int
    skipped: int
    seconds: float
    rows_per_second: float
    attributes: Mapping[str, str]
    payload: Sequence[str]
    not_taken: Sequence[str]


@dataclass(frozen=True, slots=True)
class Creation:
    """What `--create` makes where nothing says otherwise; None stands for what is usual."""

    wanted: bool
    metric: str | None
    shards: int | None
    model: str | None
    settings: Mapping[str, Any]


def import_(
    context: typer.Context,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help=".parquet, .jsonl, .npy, .fvecs, .bvecs, .hdf5, or what `annheal export` wrote.",
        ),
    ],
    collection: Annotated[
        str | None,
        typer.Option("--collection", "-c", help="The collection; by default that of the export."),
    ] = None,
    create: Annotated[
        bool, typer.Option("--create", help="Create the collection if it does not exist.")
    ] = False,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the ids (`id` if there is one).")
    ] = None,
    vector_column: Annotated[
        str | None, typer.Option(help="Column of the vectors, if there are several.")
    ] = None,
    attributes: Annotated[
        str, typer.Option(help="Columns that filters may use: auto, none, or names with commas.")
    ] = "auto",
    payload: Annotated[
        str,
        typer.Option(
            help="Columns that go into the payload: auto, none, names, or auto,NAME to put NAME"
            " there as well."
        ),
    ] = "auto",
    ignore_columns: Annotated[
        str, typer.Option(metavar="NAMES", help="Columns to leave out, with commas.")
    ] = "none",
    meta: Annotated[
        Path | None, typer.Option(help="Parquet file with ids and attributes of a vector file.")
    ] = None,
    dataset: Annotated[str, typer.Option(help="HDF5 dataset.")] = "train",
    id_prefix: Annotated[str, typer.Option(help="Text to put before every id.")] = "",
    skip_rows: Annotated[
        int, typer.Option(min=0, help="Leave out the first rows, to resume an import.")
    ] = 0,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="At most this many rows.")
    ] = None,
    batch_rows: Annotated[int, typer.Option(min=1, max=10_000, help="Rows of one request.")] = (
        BATCH_ROWS
    ),
    concurrency: Annotated[
        int, typer.Option(min=1, max=64, help="Requests sent at the same time.")
    ] = (CONCURRENCY),
    metric: Annotated[
        str | None, typer.Option(help="For --create; that of the file, or cosine.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="The model of the vectors; a collection without it refuses them."),
    ] = None,
    shards: Annotated[int | None, typer.Option(help="For --create; 1.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="For --create.")
    ] = None,
) -> None:
    """Import a file. Writing is idempotent by id: an import that failed can be run again.

    What becomes of every column is said before anything is written, and a column that would be
    lost is refused.
    """
    state = state_of(context)
    export = find_export(file)
    if export is None:
        check_file(file)
    name = _collection_name(collection, export)
    columns = Columns(
        id=id_column,
        vector=vector_column,
        attributes=_names(attributes),
        payload=_names(payload),
        payload_also=_also(payload),
        ignored=_names(ignore_columns) or (),
        id_prefix=id_prefix,
        dataset=dataset,
    )
    creation = Creation(create, metric, shards, model, parse_settings(set_ or ()))
    with state.client() as client:
        existing = _existing(client, name, create=create)
    source = _open(file, columns, existing, export, meta=meta, state=state)
    if existing is not None:
        _check_fits(source, existing, export, model=model)
    _say_layout(state, file, source.layout)
    sending = Sending(skip_rows, limit, batch_rows, concurrency, _model(model, export))
    with state.client(patient=True, default_s=IMPORT_TIMEOUT_S, endless=True) as client:
        if existing is None:
            _create(client, name, source.layout, export, creation)
            state.output.note(f"created collection {name}")
        tally = Tally(file.name, name, existing is None, skip_rows, limit)
        seconds = send_rows(client, source, tally, state=state, sending=sending)
    _report(state, tally, source.layout, seconds)


def _open(
    file: Path,
    columns: Columns,
    existing: Collection | None,
    export: ExportDescription | None,
    *,
    meta: Path | None,
    state: State,
) -> ImportSource:
    if export is not None:
        if columns.are_chosen or meta is not None:
            raise InvalidArgument.of(
                "FILE", "is an export, whose columns are known: leave out the options for columns"
            )
        return ExportSource(file, export, id_prefix=columns.id_prefix)
    if existing is not None:
        columns = replace(
            columns,
            schema={f.name: f.type for f in existing.schema},
            known_models={model.name: model.dimension for model in existing.models},
        )
    with bytes_progress(state) as progress:
        task = progress.add_task("looking through", total=None)

        def read(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        return open_source(file, columns, meta=meta, progress=read)


def _check_fits(
    source: ImportSource,
    existing: Collection,
    export: ExportDescription | None,
    *,
    model: str | None,
) -> None:
    """Raise `InvalidArgument` when the collection cannot hold what the file has."""
    if export is None:
        spec = usable_model(model or "", collection=existing, field="--model")
        if source.layout.dimension != spec.dimension:
            raise InvalidArgument.of(
                "FILE",
                f"its vectors have {source.layout.dimension} floats, collection {existing.name}"
                f" takes {spec.dimension}",
            )
    if export is not None:
        wrong = export.differences(existing)
        if wrong:
            raise InvalidArgument.of(
                "FILE",
                f"collection {existing.name} exists and is another one: {'; '.join(wrong)}. Import"
                " into a new one with --collection NAME --create",
            )


def _model(given: str | None, export: ExportDescription | None) -> str | None:
    """Return the tag of the vectors; an export names its own."""
    if export is None:
        return given
    known = export.collection.model.name
    if given not in (None, known):
        raise InvalidArgument.of("--model", f"the vectors were exported as those of {known!r}")
    return known


def _create(
    client: Client,
    name: str,
    layout: Layout,
    export: ExportDescription | None,
    creation: Creation,
) -> Collection:
    if export is None:
        return client.create_collection(
            name,
            layout.dimension,
            metric=creation.metric or layout.metric or "cosine",
            attributes=layout.attributes,
            shard_count=creation.shards or 1,
            model=creation.model or "default",
            settings=creation.settings,
        )
    known = export.collection
    if creation.metric not in (None, known.model.metric.value):
        raise InvalidArgument.of(
            "--metric", f"the vectors were exported from a {known.model.metric} collection"
        )
    texts = known.text_model(known.model.name)
    created = client.create_collection(
        name,
        known.model.dimension,
        metric=known.model.metric,
        attributes=layout.attributes,
        shard_count=creation.shards or known.shard_count,
        model=known.model.name,
        embedder=None if texts is None else texts.embedder,
        source="" if texts is None else texts.source,
        index=known.index,
        settings={**asdict(known.settings), **creation.settings},
    )
    for model in known.models:
        if model == known.model:
            continue
        texts = known.text_model(model.name)
        created = client.add_model(
            name,
            model.name,
            model.dimension,
            metric=model.metric,
            embedder=None if texts is None else texts.embedder,
            source="" if texts is None else texts.source,
        )
    return created


def _say_layout(state: State, file: Path, layout: Layout) -> None:
    """Say what becomes of every column, before anything is written."""
    attributes = [f"{name}:{kind}" for name, kind in layout.attributes.items()]
    told = [
        f"{file.name}: {counted(layout.rows, 'row')} of {layout.dimension} floats",
        f"attributes: {', '.join(attributes) or 'none'}",
        f"payload: {', '.join(layout.payload) or 'none'}",
    ]
    if layout.not_taken:
        told.append(f"not taken: {', '.join(layout.not_taken)}")
    state.output.note("; ".join(told))


def _report(state: State, tally: Tally, layout: Layout, seconds: float) -> None:
    report = ImportReport(
        collection=tally.collection,
        created=tally.created,
        rows=tally.done,
        skipped=tally.skipped,
        seconds=seconds,
        rows_per_second=tally.done / seconds if seconds else 0.0,
        attributes={name: kind.value for name, kind in layout.attributes.items()},
        payload=layout.payload,
        not_taken=layout.not_taken,
    )
    state.output.show(
        report,
        lambda r: (
            f"imported {counted(r.rows, 'record')} into {r.collection} in {r.seconds:.1f} s "
            f"({r.rows_per_second:,.0f} rows/s)"
        ),
    )


def _collection_name(given: str | None, export: ExportDescription | None) -> str:
    if given is not None:
        return given
    if export is not None:
        return export.collection.name
    raise InvalidArgument("--collection: say into which collection", reason=CONFIGURATION)


def _existing(client: Client, collection: str, *, create: bool) -> Collection | None:
    try:
        return client.get_collection(collection)
    except NotFound as error:
        if create:
            return None
        text = error.message if error.message.endswith("?") else f"{error.message}."
        raise NotFound(f"{text} Or give --create to create it", reason=error.reason) from error


def _names(text: str) -> tuple[str, ...] | None:
    """Return the names of `a,b`; None for `auto` (with or without names), none for `none`."""
    names = _split(text)
    if "auto" in names:
        return None
    return () if names == ("none",) else names


def _also(text: str) -> tuple[str, ...]:
    """Return the names beside `auto` in `auto,a,b`."""
    names = _split(text)
    return tuple(name for name in names if name != "auto") if "auto" in names else ()


def _split(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
