"""Writing what an import source reads, and saying what an import that ended early has left."""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from annheal.cli.output import PlainConsole, counted
from annheal.cli.sources import Chunk, ImportSource
from annheal.cli.state import State
from annheal.client import Client
from annheal.errors import AnnhealError, InvalidArgument

CHUNK_REQUESTS: Final = 4
"""Requests a sender that are read from the file at once."""
_ROW = re.compile(r"\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Sending:
    """How rows are sent: `skip` and `limit` choose them; `model` tags their vectors.

    `batch_rows` and `concurrency` say how many travel at once.
    """

    skip: int
    limit: int | None
    batch_rows: int
    concurrency: int
    model: str | None = None


@dataclass(slots=True)
class Tally:
    """How far an import is; what it says when it ends early.

    `begun` counts rows of a block that was being sent, so that some of them may be written.
    """

    file: str
    collection: str
    created: bool
    skipped: int
    limit: int | None = None
    done: int = 0
    begun: int = 0

    @property
    def resume_at(self) -> int:
        """Rows of the file that need not be written again."""
        return self.skipped + self.done

    def left_behind(self) -> str:
        """Return what was written, and how to go on."""
        parts = [f"Collection {self.collection} was created."] if self.created else []
        if not self.done and not self.begun:
            return " ".join([*parts, "No record was written."])
        first, last = self.skipped, self.resume_at - 1
        if self.done:
            rows = f"rows {first:,} to {last:,}" if last > first else f"row {first:,}"
            parts.append(f"{counted(self.done, 'record')} ({rows} of {self.file}) are written.")
        if self.begun:
            parts.append(f"Of the next {self.begun:,} some may be written.")
        left = "" if self.limit is None else f" --limit {self.limit - self.done}"
        parts.append(
            f"Resume with --skip-rows {self.resume_at}{left};"
            " to write a record again changes nothing."
        )
        return " ".join(parts)

    def told(self, error: AnnhealError) -> AnnhealError:
        """Return `error`, with what was left behind."""
        found = copy.copy(error)
        found.message = f"{error.message}\n{self.left_behind()}"
        found.metadata = {
            **error.metadata,
            "collection_created": str(self.created).lower(),
            "rows_written": str(self.done),
            "rows_perhaps_written": str(self.begun),
            "resume_with_skip_rows": str(self.resume_at),
        }
        return found


def send_rows(
    client: Client, source: ImportSource, tally: Tally, *, state: State, sending: Sending
) -> float:
    """Write all rows; returns the seconds it took. An error says what was left behind."""
    began = time.perf_counter()
    try:
        _send(client, source, tally, state=state, sending=sending)
    except AnnhealError as error:
        raise tally.told(error) from error
    except KeyboardInterrupt:
        state.output.note(f"interrupted. {tally.left_behind()}")
        raise
    return time.perf_counter() - began


def _send(
    client: Client, source: ImportSource, tally: Tally, *, state: State, sending: Sending
) -> None:
    rows_max = sending.batch_rows * sending.concurrency * CHUNK_REQUESTS
    total = max(0, source.layout.rows - sending.skip)
    if sending.limit is not None:
        total = min(total, sending.limit)
    with rows_progress(state) as progress:
        task = progress.add_task("importing", total=total)
        for chunk in _read_ahead(source, rows_max, sending):
            before = tally.done

            def acknowledged(rows: int, _: int, before: int = before) -> None:
                progress.update(task, completed=before + rows)

            tally.begun = len(chunk)
            try:
                client.upsert(
                    tally.collection,
                    chunk.ids,
                    chunk.by_model or chunk.vectors,
                    attributes=chunk.attributes,
                    payloads=chunk.payloads,
                    model=None if chunk.by_model else sending.model,
                    batch_rows=sending.batch_rows,
                    concurrency=sending.concurrency,
                    progress=acknowledged,
                )
            except InvalidArgument as error:
                raise _located(error, chunk) from error
            tally.done += len(chunk)
            tally.begun = 0
            progress.update(task, completed=tally.done)


def _located(error: InvalidArgument, chunk: Chunk) -> InvalidArgument:
    """Return `error` with the place in the file of the row that it names."""
    numbers = [_ROW.search(violation.field) for violation in error.violations]
    rows = [int(found.group(1)) for found in numbers if found is not None]
    if not rows or rows[0] >= len(chunk):
        return error
    found = copy.copy(error)
    found.message = f"{chunk.place.of(rows[0])}: {error.message}"
    return found


def _read_ahead(source: ImportSource, rows_max: int, sending: Sending) -> Iterator[Chunk]:
    """Read the file in a thread, one chunk ahead of what is uploaded."""
    chunks = source.chunks(rows_max=rows_max, limit=sending.limit, skip=sending.skip)
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


def rows_progress(state: State) -> Progress:
    """Return a bar that counts rows; nothing is shown where nobody looks."""
    return _bar(state, TextColumn("{task.completed:,.0f} rows"), _Rate(), TimeRemainingColumn())


def bytes_progress(state: State) -> Progress:
    """Return a bar that counts bytes of a file."""
    return _bar(state, DownloadColumn(), TimeRemainingColumn())


def _bar(state: State, *columns: ProgressColumn) -> Progress:
    console = PlainConsole(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *columns,
        console=console,
        disable=state.output.is_json or not console.is_terminal,
    )
