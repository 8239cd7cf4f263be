"""The folder of an export: built beside its place, resumed after an interrupt, and then renamed."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from annheal.cli.exports.description import (
    DESCRIPTION_FILE,
    ExportDescription,
    ExportFormat,
    ExportPart,
    encode_description,
    find_export,
    version_of,
)
from annheal.cli.exports.parts import sync_file
from annheal.errors import AlreadyExists, FailedPrecondition
from annheal.model.collection import Collection
from annheal.runtime.host.folder_lock import LOCK_FILE, folder_lock

PARTIAL_SUFFIX: Final = ".partial"
REPLACED_SUFFIX: Final = ".replaced"
PROGRESS_FILE: Final = "_progress.json"


class ExportProgress(msgspec.Struct, frozen=True):
    """How far an export is: parts that are whole, and the cursor behind them."""

    annheal_export: int
    format: ExportFormat
    collection: Collection
    began_at: str
    cursor: str = ""
    parts: tuple[ExportPart, ...] = ()

    @property
    def rows(self) -> int:
        """Records in parts that are whole."""
        return sum(part.rows for part in self.parts)


@dataclass(frozen=True, slots=True)
class ExportFolder:
    """`target` appears when everything is in it; until then `partial` holds what is done."""

    target: Path

    @property
    def partial(self) -> Path:
        """Where the export grows."""
        return self.target.with_name(self.target.name + PARTIAL_SUFFIX)

    def check_free(self, *, replace: bool) -> None:
        """Raise unless `target` may be written: free, or an export that may be replaced."""
        if not (self.target.exists() or self.target.is_symlink()):
            return
        if not replace:
            raise AlreadyExists(
                f"{self.target} exists; --force replaces it once the new one is whole"
            )
        if not (self.target / DESCRIPTION_FILE).is_file():
            raise FailedPrecondition(
                f"{self.target} is no export: remove it yourself, or choose another place"
            )

    def hold(self) -> AbstractContextManager[None]:
        """Make `partial` and keep other processes out of it."""
        return folder_lock(
            self.partial, role="annheal export", fix="wait for it, or choose another place"
        )

    def begin(
        self, collection: Collection, format: ExportFormat, *, restart: bool, began_at: str
    ) -> ExportProgress:
        """Return how far an interrupted export is; begin one where there is none.

        `partial` is there, and locked (`hold`). Raises `FailedPrecondition` when it belongs to
        another collection or format.
        """
        held = [path for path in self.partial.iterdir() if path.name != LOCK_FILE]
        if restart and self.partial / PROGRESS_FILE in held:
            for path in held:
                path.unlink()
            held = []
        found = self._progress()
        if found is None:
            if held:
                raise FailedPrecondition(f"{self.partial} is no partial export; remove it")
            found = ExportProgress(version_of(collection), format, collection, began_at)
            self.save(found)
        same = (found.annheal_export, found.format, found.collection.id)
        if same != (version_of(collection), format, collection.id) or (
            found.collection.models != collection.models
        ):
            raise FailedPrecondition(
                f"{self.partial} was begun for collection {found.collection.name}"
                f" ({found.collection.id}) as {found.format}; --restart begins anew"
            )
        return found

    def save(self, progress: ExportProgress) -> None:
        """Remember how far the export is, durably."""
        self._write(PROGRESS_FILE, msgspec.json.encode(progress))

    def finish(self, progress: ExportProgress, *, ended_at: str) -> ExportDescription:
        """Describe the export, and put it into its place."""
        description = ExportDescription(
            annheal_export=progress.annheal_export,
            format=progress.format,
            collection=progress.collection,
            rows=progress.rows,
            parts=progress.parts,
            began_at=progress.began_at,
            ended_at=ended_at,
        )
        self._write(DESCRIPTION_FILE, encode_description(description))
        for leftover in self.partial.glob("*.tmp"):
            leftover.unlink()  # a part that an interrupt cut off, and that no record needed later
        for name in (PROGRESS_FILE, LOCK_FILE):
            (self.partial / name).unlink()
        replaced = self.target.with_name(self.target.name + REPLACED_SUFFIX)
        if self.target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            self.target.rename(replaced)
        self.partial.rename(self.target)
        sync_file(self.target.parent)
        shutil.rmtree(replaced, ignore_errors=True)
        return description

    def _progress(self) -> ExportProgress | None:
        file = self.partial / PROGRESS_FILE
        if not file.is_file():
            # Interrupted between its last two steps: it is whole.
            if find_export(self.partial) is not None:
                raise FailedPrecondition(f"{self.partial} is whole; rename it to {self.target}")
            return None
        try:
            return msgspec.json.decode(file.read_bytes(), type=ExportProgress)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise FailedPrecondition(
                f"{file} cannot be read ({error}); --restart begins anew"
            ) from error

    def _write(self, name: str, content: bytes) -> None:
        draft = self.partial / (name + ".tmp")
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(self.partial / name)
        sync_file(self.partial)
