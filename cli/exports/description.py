"""`_export.json`: the collection, its models, schema and settings, and the parts with its rows."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from annheal.errors import DataCorruption, InvalidArgument, Unimplemented
from annheal.model.collection import Collection

# Readers of whole folders (pyarrow, DuckDB, Spark) leave out names that begin with "_".
DESCRIPTION_FILE: Final = "_export.json"
VERSION: Final = 2
"""The newest version that is read. One model's export has the first: older programs read it."""


class ExportFormat(StrEnum):
    """How the rows are written."""

    PARQUET = "parquet"
    JSONL = "jsonl"


class ExportPart(msgspec.Struct, frozen=True):
    """One file with rows, written once and never changed."""

    file: str
    rows: int
    size_bytes: int
    sha256: str


class ExportDescription(msgspec.Struct, frozen=True):
    """What an export holds. `rows` is the sum of its parts."""

    annheal_export: int
    format: ExportFormat
    collection: Collection
    rows: int
    parts: tuple[ExportPart, ...]
    began_at: str
    ended_at: str

    def differences(self, other: Collection) -> list[str]:
        """Return how `other` differs in what decides whether it can hold the same records."""
        mine, found = self.collection, []
        for model in mine.models:
            same = other.model_named(model.name)
            if same is None and len(mine.models) == 1:
                same = other.model
            if same is None:
                found.append(f"it has no model {model.name}")
                continue
            for field in dataclasses.fields(model):
                ours, theirs = getattr(model, field.name), getattr(same, field.name)
                if ours != theirs:
                    found.append(f"its model has {field.name} {theirs}, the export {ours}")
        ours_types = {f.name: f.type for f in mine.schema}
        their_types = {f.name: f.type for f in other.schema}
        for name in sorted(ours_types.keys() | their_types.keys()):
            if ours_types.get(name) != their_types.get(name):
                found.append(
                    f"its attribute {name} is {their_types.get(name, 'not declared')}, that of the"
                    f" export {ours_types.get(name, 'not declared')}"
                )
        return found


def version_of(collection: Collection) -> int:
    """Return the version of an export of `collection`."""
    return 1 if len(collection.models) == 1 else 2


def encode_description(description: ExportDescription) -> bytes:
    """Return the content of `_export.json`, indented for people."""
    return msgspec.json.format(msgspec.json.encode(description), indent=2) + b"\n"


def find_export(path: Path) -> ExportDescription | None:
    """Return what the export at `path` (its folder, or its `_export.json`) holds.

    None when there is no export. Raises `InvalidArgument` for a description that cannot be read,
    `Unimplemented` for one of a later version, `DataCorruption` when parts are missing.
    """
    file = path / DESCRIPTION_FILE if path.is_dir() else path
    if file.name != DESCRIPTION_FILE or not file.is_file():
        return None
    try:
        content = file.read_bytes()
        version = msgspec.json.decode(content, type=_Version).annheal_export
        if version > VERSION:
            raise Unimplemented(f"{file} has version {version}; this program reads up to {VERSION}")
        description = msgspec.json.decode(content, type=ExportDescription)
    except OSError as error:
        raise InvalidArgument.of("FILE", f"{file} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument.of(
            "FILE", f"{file} is no description of an export: {error}"
        ) from error
    for part in description.parts:
        _check_part(file.parent / part.file, part)
    return description


def _check_part(path: Path, part: ExportPart) -> None:
    if Path(part.file).name != part.file:
        raise InvalidArgument.of("FILE", f"{part.file!r} is no name of a part")
    if not path.is_file():
        raise DataCorruption(f"{path} is missing; the export is not whole")
    if path.stat().st_size != part.size_bytes:
        raise DataCorruption(
            f"{path} has {path.stat().st_size} bytes, not {part.size_bytes}; the export is damaged"
        )


class _Version(msgspec.Struct):
    annheal_export: int
