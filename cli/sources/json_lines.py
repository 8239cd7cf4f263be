"""The lines of a JSON lines file: objects whose values are still JSON text."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from annheal.cli.sources.chunk import Progress
from annheal.errors import InvalidArgument

LINE_BYTES_MAX: Final = 16 << 20
PROGRESS_LINES: Final = 5_000
"""Lines between two calls of the progress callback."""
_KEY_END = re.compile(rb'"\s*:')
_MARK = b"\xef\xbb\xbf"

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its number from 1, its bytes, and its values as JSON text by key."""

    number: int
    size_bytes: int
    values: Mapping[str, bytes]


def read_lines(
    path: Path, *, progress: Progress | None = None, look_for_twins: bool = False
) -> Iterator[Line]:
    """Yield the objects of a file, blank lines left out.

    Raises `InvalidArgument` that names the line for what is no JSON object in UTF-8; with
    `look_for_twins` also for an object that has a key twice, of which only the last value would be
    seen.
    """
    try:
        total = path.stat().st_size
        done = 0
        with path.open("rb") as file:
            for number, text in enumerate(_texts(file, path), start=1):
                done += len(text)
                if progress is not None and number % PROGRESS_LINES == 0:
                    progress(done, total)
                if text.strip():
                    values = _object(text, path=path, number=number)
                    if look_for_twins and (twin := _twin(text, values)) is not None:
                        raise refuse_line(path, number, f"has the key {twin} twice")
                    yield Line(number, len(text), values)
    except OSError as error:
        raise InvalidArgument.of("FILE", f"{path} cannot be read: {error.strerror}") from error
    if progress is not None:
        progress(total, total)


def members(value: bytes) -> dict[str, bytes]:
    """Return the members of a JSON object as JSON text by key."""
    return {key: bytes(part) for key, part in _OBJECT.decode(value).items()}


def refuse_line(path: Path, number: int, what: str) -> InvalidArgument:
    """Return the error for one line."""
    return InvalidArgument.of(f"{path.name}:{number}", what)


def _twin(text: bytes, values: Mapping[str, bytes]) -> str | None:
    """Return a key that the object has twice."""
    if len(_KEY_END.findall(text)) == len(values):
        return None  # as many keys as were found, and none inside the values
    if all(text.count(msgspec.json.encode(key)) == 1 for key in values):
        return None
    pairs: list[tuple[str, object]] = []

    def keep(found: list[tuple[str, object]]) -> None:
        pairs[:] = found  # the outermost object ends last

    json.loads(text, object_pairs_hook=keep)
    names = [name for name, _ in pairs]
    return next((name for name in names if names.count(name) > 1), None)


def _texts(file: object, path: Path) -> Iterator[bytes]:
    read = file.readline  # type: ignore[attr-defined]
    number = 0
    while text := read(LINE_BYTES_MAX + 1):
        number += 1
        if len(text) > LINE_BYTES_MAX:
            raise refuse_line(
                path,
                number,
                f"is longer than {LINE_BYTES_MAX} bytes; one JSON object a line is read, not one"
                " JSON document",
            )
        yield text.removeprefix(_MARK) if number == 1 else text


def _object(text: bytes, *, path: Path, number: int) -> dict[str, bytes]:
    try:
        if not text.isascii():
            text.decode()
        return members(text)
    except UnicodeDecodeError as error:
        raise refuse_line(
            path,
            number,
            f"is not UTF-8: byte 0x{text[error.start]:02x} at column {error.start + 1}; convert the"
            " file first (iconv -f latin1 -t utf-8)",
        ) from error
    except (msgspec.MsgspecError, RecursionError) as error:
        hint = ""
        if text.lstrip().startswith(b"["):
            hint = "; a list of objects becomes lines with: jq -c '.[]' FILE"
        raise refuse_line(path, number, f"is no JSON object: {error}{hint}") from error
