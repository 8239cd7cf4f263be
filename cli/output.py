"""What commands print: tables for people, JSON for programs, errors on stderr."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from annheal.cli.exit_codes import ExitCode
from annheal.errors import AnnhealError, InvalidArgument
from annheal.model.values.reading import rows_as_dicts
from annheal.runtime.host.secrets import environment_secrets, mask_secrets

ValueT = TypeVar("ValueT")

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_CELL_CHARACTERS_MAX = 60
_STEERING = ("Cc", "Cs", "Zl", "Zp")
_DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class OutputFormat(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


class PlainConsole(Console):
    """A console that shows control characters instead of sending them to the terminal.

    Ids, attributes and payloads are texts of strangers: an escape sequence in one could rename the
    window, hide lines, or worse. Tables measure cells that `printable` was applied to before
    (`cell`); here is the last place where nothing gets past.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Yield the segments of `renderable`; those of rich itself (`control`) are left alone."""
        for segment in super().render(renderable, options):
            if segment.control or (segment.text.isascii() and segment.text.isprintable()):
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)


class PipeConsole(PlainConsole):
    """A console that ends quietly when its reader went away (`annheal scan | head`)."""

    def on_broken_pipe(self) -> NoReturn:
        """Drop what is still to be printed and exit as a shell would."""
        drop_stdout()
        raise SystemExit(ExitCode.BROKEN_PIPE)


class Output:
    """Where a command prints: `show` its result, `note` what is not part of it."""

    def __init__(self, format: OutputFormat) -> None:
        self.format = format
        self.console = PipeConsole(soft_wrap=False)
        self.errors = PlainConsole(stderr=True, soft_wrap=True)
        if not self.console.is_terminal:
            # A pipe has no width: nothing is folded or cut for it.
            self.console = PipeConsole(width=10_000, soft_wrap=True)

    @property
    def is_json(self) -> bool:
        """Whether programs read the output."""
        return self.format is OutputFormat.JSON

    def show(self, value: ValueT, render: Callable[[ValueT], RenderableType]) -> None:
        """Print the result: `value` as one JSON document, or what `render` makes of it."""
        if self.is_json:
            self.line(value)
        else:
            self.console.print(render(value))

    def line(self, value: object) -> None:
        """Print `value` as one line of JSON."""
        sys.stdout.write(to_json(value) + "\n")
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Tell a person something; not part of the result."""
        if not self.is_json:
            self.errors.print(text, highlight=False)


def to_json(value: object) -> str:
    """Return `value` as JSON: dataclasses as objects, arrays as lists, times as RFC 3339."""
    return msgspec.json.encode(value, enc_hook=_encode).decode()


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.datetime64):  # a moment that no datetime holds
        return f"{value}Z"
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, pa.RecordBatch | pa.Table):
        return rows_as_dicts(value)
    raise NotImplementedError(type(value).__name__)  # how a hook of msgspec refuses a type


def printable(text: str, *, keep: str = "") -> str:
    """Return `text` with characters that steer a terminal as JSON writes them (`\\u001b`).

    These are control characters, line and paragraph separators, lone surrogates, and those that
    change the direction of writing; `keep` names exceptions.
    """
    if text.isprintable() and text.isascii():
        return text
    return "".join(_escaped(one) if one not in keep and _steers(one) else one for one in text)


def _steers(character: str) -> bool:
    return unicodedata.category(character) in _STEERING or character in _DIRECTIONS


def _escaped(character: str) -> str:
    return _SHORT.get(character) or f"\\u{ord(character):04x}"


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None
) -> Table:
    """Return a table; columns whose name begins with ">" are aligned right."""
    heading = None if title is None else Text(printable(title))
    result = Table(title=heading, title_justify="left", title_style="bold", header_style="bold")
    result.box = None
    result.pad_edge = False
    for name in columns:
        result.add_column(
            name.removeprefix(">"), justify="right" if name.startswith(">") else "left"
        )
    for row in rows:
        result.add_row(*(cell(value) for value in row))
    return result


def facts(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return names and values, one a line."""
    result = Table(show_header=False, box=None, pad_edge=False)
    result.add_column(style="bold")
    result.add_column()
    for name, value in pairs:
        result.add_row(name, cell(value))
    return result


def cell(value: object) -> Text:
    """Return a value as one cell; never read as markup."""
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, Text):
        return value
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, int):
        return Text(f"{value:,}")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    text = printable(str(value))
    if len(text) > _CELL_CHARACTERS_MAX:
        text = text[: _CELL_CHARACTERS_MAX - 1] + "…"
    return Text(text)


def size(size_bytes: float) -> str:
    """Return a number of bytes for people."""
    for unit in _UNITS:
        if size_bytes < 1024 or unit == _UNITS[-1]:
            break
        size_bytes /= 1024
    return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"


def counted(number: int, noun: str) -> str:
    """Return `1 record`, `2 records`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def moment(moment_s: float) -> str | None:
    """Return Unix time as local time to the second; None for 0, which means never."""
    if not moment_s:
        return None
    return datetime.fromtimestamp(moment_s, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def share(part: float, whole: float) -> str | None:
    """Return a share in percent; None of nothing."""
    return f"{part / whole:.1%}" if whole else None


def print_error(error: AnnhealError, *, format: OutputFormat) -> None:
    """Print an expected error on stderr: what is wrong, each field, and when to try again."""
    violations = error.violations if isinstance(error, InvalidArgument) else ()
    message = mask_secrets(error.message, secrets=environment_secrets())
    if format is OutputFormat.JSON:
        document = {
            "error": {
                "kind": type(error).__name__,
                "reason": error.reason,
                "message": message,
                "retryable": error.retryable,
                "violations": violations,
                "metadata": error.metadata,
            }
        }
        print(to_json(document), file=sys.stderr)
        return
    console = PlainConsole(stderr=True, soft_wrap=True)
    console.print(Text("error: ", style="bold red") + Text(message))
    for violation in violations:
        # `InvalidArgument.of` has said it in the message already.
        if violation.description not in error.message:
            console.print(Text(f"  {violation.field}: {violation.description}"))
    if error.retry_after_s:
        console.print(Text(f"  try again in {error.retry_after_s:g} s"))


def drop_stdout() -> None:
    """Let what is still buffered go nowhere, so that the exit raises no second error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
