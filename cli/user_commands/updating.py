"""`annheal update`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import typer

from annheal.cli.output import counted
from annheal.cli.state import state_of
from annheal.cli.user_commands.records import Collection, named
from annheal.errors import Conflict, InvalidArgument, NotFound
from annheal.model.collection import AttributeType

_WRITTEN_AS_TEXT = (AttributeType.KEYWORD, AttributeType.TIMESTAMP, None)
"""None: there is no such attribute, which the client says."""


def update(
    context: typer.Context,
    collection: Collection,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids.")],
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="ATTRIBUTE=VALUE",
            help="Give an attribute a value: text for keywords and timestamps, JSON for others;"
            " repeatable.",
        ),
    ] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(metavar="ATTRIBUTE", help="Take the value of an attribute away; repeatable."),
    ] = None,
    payload: Annotated[
        str | None, typer.Option(metavar="JSON", help="Replace the payload; null takes it away.")
    ] = None,
    if_version: Annotated[
        int | None,
        typer.Option(
            min=1, help="Only while the record has this version (get --include version); one ID."
        ),
    ] = None,
) -> None:
    """Replace attributes or the payload of records; the rest of them stays as it is."""
    state = state_of(context)
    if if_version is not None and len(ids) != 1:
        raise InvalidArgument.of("--if-version", f"is about one record, not {len(ids)}")
    with state.client() as client:
        kinds = {one.name: one.type for one in client.get_collection(collection).schema}
        values = _values(changes or (), unset or (), kinds)
        result = client.update(
            collection,
            ids,
            attributes={name: [value] * len(ids) for name, value in values.items()} or None,
            payloads=None if payload is None else [_json(payload, "--payload")] * len(ids),
            if_versions=None if if_version is None else [if_version],
        )
    shown: dict[str, Any] = {
        "updated": result.count,
        "missing": list(result.missing),
        "conflicts": [{"id": one.id, "version": one.version} for one in result.conflicts],
    }
    state.output.show(shown, lambda r: f"updated {counted(r['updated'], 'record')}")
    for one in result.conflicts:
        present = f"has version {one.version}" if one.version else "does not exist (any more)"
        raise Conflict(f"record {one.id!r} {present}, so nothing was written; read it again")
    if result.missing:
        raise NotFound(f"collection {collection!r} has no {named(result.missing)}")


def _values(
    changes: Sequence[str], unset: Sequence[str], kinds: Mapping[str, AttributeType]
) -> dict[str, Any]:
    """Return the new value of each attribute that is named."""
    values: dict[str, Any] = {}
    for change in changes:
        name, separator, text = change.partition("=")
        if not separator:
            raise InvalidArgument.of("--set", f"{change!r} is not ATTRIBUTE=VALUE")
        _check_once(name, values, field="--set")
        as_text = kinds.get(name) in _WRITTEN_AS_TEXT
        values[name] = text if as_text else _json(text, f"--set {name}")
    for name in unset:
        _check_once(name, values, field="--unset")
        values[name] = None
    return values


def _check_once(name: str, values: Mapping[str, Any], *, field: str) -> None:
    if name in values:
        raise InvalidArgument.of(field, f"names {name!r} twice")


def _json(text: str, field: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidArgument.of(
            field, f"{text!r} is no JSON ({error}); quote texts: '\"a text\"'"
        ) from None
