"""`annheal get|delete|count|scan`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from annheal.cli.output import counted, table, to_json
from annheal.cli.state import state_of
from annheal.cli.user_commands.collections import confirm
from annheal.client import Hit, Record, Records
from annheal.errors import InvalidArgument, NotFound

Collection = Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")]
Filter = Annotated[
    str | None,
    typer.Option("--filter", "-f", metavar="EXPRESSION", help="Only records that match."),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        "-i",
        metavar="WHAT",
        help="attributes, payload, vector, version, all, or the name of an attribute; repeatable.",
    ),
]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="The model whose vectors are read, else the serving one; repeatable.",
    ),
]
VECTOR_SHOWN = 4
MISSING_SHOWN = 5


def get(
    context: typer.Context,
    collection: Collection,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids.")],
    include: Include = None,
    model: Models = None,
) -> None:
    """Read records by id. Those that do not exist are left out, and the exit code is 3."""
    state = state_of(context)
    with state.client() as client:
        found = client.get(
            collection, ids, include=included(include, model), model=one_or_several(model)
        )
    if found.ids or state.output.is_json:
        state.output.show(as_objects(found), lambda _: render_records(found))
    missing = [one for one in dict.fromkeys(ids) if one not in set(found.ids)]
    if missing:
        raise NotFound(f"collection {collection!r} has no {named(missing)}")


def included(include: Sequence[str] | None, model: Sequence[str] | None) -> list[str]:
    """Return what is read of each record; a model is named for its vectors."""
    wanted = list(include or ("attributes", "payload"))
    return wanted if not model or {"vector", "all"} & set(wanted) else [*wanted, "vector"]


def one_or_several(model: Sequence[str] | None) -> str | list[str] | None:
    """Return one name as a text: its vectors are shown without the name."""
    if not model:
        return None
    return model[0] if len(model) == 1 else list(model)


def named(ids: Sequence[str]) -> str:
    """Return the first of some ids in words, for a message."""
    shown = ", ".join(map(repr, ids[:MISSING_SHOWN]))
    more = f" and {len(ids) - MISSING_SHOWN} more" if len(ids) > MISSING_SHOWN else ""
    return f"{'record' if len(ids) == 1 else 'records'} {shown}{more}"


def delete(
    context: typer.Context,
    collection: Collection,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID...]", help="Ids.")] = None,
    filter: Filter = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete records by id, or all that match a filter."""
    state = state_of(context)
    if bool(ids) == (filter is not None):
        raise InvalidArgument.of("--filter", "give either ids or a filter")
    with state.client() as client:
        if not yes:
            what = (
                counted(len(ids), "id")
                if ids
                else counted(client.count(collection, filter=filter), "record")
            )
            confirm(f"Delete {what} from {collection}?")
        result = client.delete(collection, ids or None, filter=filter)
    state.output.show(
        {"deleted": result.count}, lambda r: f"deleted {counted(r['deleted'], 'record')}"
    )


def count(context: typer.Context, collection: Collection, filter: Filter = None) -> None:
    """Count records."""
    state = state_of(context)
    with state.client() as client:
        number = client.count(collection, filter=filter)
    state.output.show({"count": number}, lambda c: f"{c['count']}")


def scan(
    context: typer.Context,
    collection: Collection,
    filter: Filter = None,
    include: Include = None,
    model: Models = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, help="Stop after this many records.")
    ] = None,
) -> None:
    """Print records, one JSON object a line with `--output json`; the order is the server's.

    What it prints can be imported, so versions are printed only if they are asked for by name.
    """
    state = state_of(context)
    left = limit
    with state.client(endless=True) as client:
        wanted = included(include, model)
        if "all" in wanted and "version" not in wanted:
            wanted = ["attributes", "payload", "vector"]
        page_rows = min(limit or 1_000, 1_000)
        pages = client.scan(
            collection,
            filter=filter,
            include=wanted,
            model=one_or_several(model),
            page_rows=page_rows,
        )
        for page in pages:
            records = list(page if left is None else page[:left])
            if state.output.is_json:
                for record in records:
                    state.output.line(as_object(record))
            else:
                for record in records:
                    state.output.console.print(to_json(as_object(record)), markup=False)
            if left is not None:
                left -= len(records)
                if left <= 0:
                    return


def as_object(record: Record | Hit) -> dict[str, Any]:
    """Return a record or hit as JSON shows it: what was not asked for is left out.

    Where several models were asked for, `vector` has the vector of each, null for one that the
    record lacks.
    """
    shown: dict[str, Any] = {"id": record.id}
    if record.attributes is not None:
        shown["attributes"] = record.attributes
    if record.payload is not None:
        shown["payload"] = record.payload
    if record.vector is not None:
        shown["vector"] = record.vector
    if isinstance(record, Record) and record.vectors is not None:
        shown["vector"] = record.vectors
    if record.version is not None:
        shown["version"] = record.version
    return shown


def as_objects(records: Records) -> list[dict[str, Any]]:
    """Return records as JSON shows them."""
    return [as_object(record) for record in records]


def render_records(records: Records) -> RenderableType:
    """Return records as a table with a column an attribute."""
    names = list(records.attributes.schema.names) if records.attributes is not None else []
    columns = ["ID", *(name.upper() for name in names)]
    if records.payloads is not None:
        columns.append("PAYLOAD")
    models = list(records.vectors_by_model)
    columns += ["VECTOR"] if len(models) == 1 else [f"VECTOR {name}" for name in models]
    if records.versions is not None:
        columns.append("VERSION")
    with_payload = records.payloads is not None
    rows = (row_of(one, names, models, with_payload=with_payload) for one in records)
    return table(columns, rows)


def row_of(
    record: Record, names: list[str], models: list[str], *, with_payload: bool
) -> list[object]:
    """Return the cells of a record: its id, its attributes, and what else was asked for."""
    attributes = record.attributes or {}
    cells: list[object] = [record.id, *(_shown(attributes.get(name)) for name in names)]
    if with_payload:
        cells.append(None if record.payload is None else to_json(record.payload))
    vectors = {model: record.vector for model in models} | dict(record.vectors or {})
    for vector in vectors.values():
        if vector is None:
            cells.append(None)
            continue
        head = ", ".join(f"{value:.4f}" for value in vector[:VECTOR_SHOWN])
        cells.append(f"[{head}, … {len(vector)}]")
    if record.version is not None:
        cells.append(str(record.version))
    return cells


def _shown(value: object) -> object:
    # Attribute numbers are facts such as years: no thousands separators.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
