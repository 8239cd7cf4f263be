"""`annheal export`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer

from annheal.cli.exports import ExportFormat
from annheal.cli.exports.folder import ExportFolder, ExportProgress
from annheal.cli.exports.parts import PartFile, finished_part, open_part
from annheal.cli.output import counted, size
from annheal.cli.state import State, state_of
from annheal.cli.user_commands.import_run import rows_progress
from annheal.client import Client
from annheal.errors import AnnhealError, FailedPrecondition
from annheal.model.limits import SCAN_PAGE_ROWS_MAX

PART_BYTES: Final = 128 << 20
"""A part ends with the page that makes it so large: what an interrupt loses."""
PAGE_ROWS: Final = SCAN_PAGE_ROWS_MAX
"""Records asked for at once; pages of large ones are shorter."""
EXPORT_TIMEOUT_S: Final = 300.0
"""Time for one page."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export wrote; `resumed_rows` of its rows were there before."""

    collection: str
    output: str
    format: ExportFormat
    rows: int
    resumed_rows: int
    parts: int
    size_bytes: int


def export(
    context: typer.Context,
    collection: Annotated[str, typer.Argument(metavar="COLLECTION", help="The collection.")],
    output: Annotated[Path, typer.Option("--output", metavar="PATH", help="The folder to write.")],
    format: Annotated[
        ExportFormat, typer.Option("--format", help="How the records are written.")
    ] = ExportFormat.PARQUET,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Start again instead of continuing a partial export.")
    ] = False,
) -> None:
    """Write all records with schema, settings and model to a folder, for `annheal import`.

    The folder grows as PATH.partial and gets its name when it is whole. After an interrupt the same
    command goes on with the parts that are done.
    """
    state = state_of(context)
    folder = ExportFolder(output.absolute())
    folder.check_free(replace=force)
    with state.client(patient=True, default_s=EXPORT_TIMEOUT_S, endless=True) as client:
        found = client.get_collection(collection)
        with folder.hold(), _resumable(folder, state):
            progress = folder.begin(found, format, restart=restart, began_at=_now())
            before = progress.rows
            if before:
                state.output.note(f"going on with {folder.partial}, which has {before:,} records")
            progress = _write_parts(client, folder, progress, state=state)
            description = folder.finish(progress, ended_at=_now())
    report = ExportReport(
        collection=collection,
        output=str(output),
        format=format,
        rows=description.rows,
        resumed_rows=before,
        parts=len(description.parts),
        size_bytes=sum(part.size_bytes for part in description.parts),
    )
    state.output.show(
        report,
        lambda r: (
            f"exported {counted(r.rows, 'record')} of {r.collection} to {r.output}"
            f" ({counted(r.parts, 'part')}, {size(r.size_bytes)})"
        ),
    )


def _write_parts(
    client: Client, folder: ExportFolder, progress: ExportProgress, *, state: State
) -> ExportProgress:
    """Write what is missing, part by part; each that is whole is remembered."""
    name = progress.collection.name
    if progress.parts and not progress.cursor:
        return progress  # interrupted after the last page
    with rows_progress(state) as bar:
        task = bar.add_task("exporting", total=client.count(name), completed=progress.rows)
        part: PartFile | None = None
        models = [one.name for one in progress.collection.models]
        pages = client.scan(
            name,
            model=models if len(models) > 1 else None,
            page_rows=PAGE_ROWS,
            cursor=progress.cursor,
        )
        try:
            for page in pages:
                if part is None:
                    part = open_part(_draft(folder, progress), progress.format, progress.collection)
                part.write(page)
                bar.update(task, advance=len(page))
                if part.size_bytes >= PART_BYTES:
                    progress = _close_part(folder, progress, part, cursor=page.cursor)
                    part = None
            if part is not None:
                progress = _close_part(folder, progress, part, cursor="")
                part = None
        finally:
            if part is not None:
                part.abandon()
    return progress


def _draft(folder: ExportFolder, progress: ExportProgress) -> Path:
    """Return the name of the next part while it is being written."""
    return folder.partial / f"part-{len(progress.parts):05d}.{progress.format}.tmp"


def _close_part(
    folder: ExportFolder, progress: ExportProgress, part: PartFile, *, cursor: str
) -> ExportProgress:
    part.close()
    draft = _draft(folder, progress)
    whole = draft.rename(draft.with_suffix(""))
    entry = finished_part(whole, rows=part.rows)
    progress = msgspec.structs.replace(progress, parts=(*progress.parts, entry), cursor=cursor)
    folder.save(progress)
    return progress


@contextmanager
def _resumable(folder: ExportFolder, state: State) -> Iterator[None]:
    """Say with every error what is there already, and how to go on."""
    hint = f"The same command goes on with what {folder.partial} has"
    try:
        yield
    except OSError as error:
        where = error.filename or folder.partial
        raise FailedPrecondition(
            f"{where} cannot be written: {error.strerror or error}. {hint}"
        ) from error
    except AnnhealError:
        if folder.partial.is_dir():
            state.output.note(hint)
        raise
    except KeyboardInterrupt:
        state.output.note(f"interrupted. {hint}")
        raise


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
