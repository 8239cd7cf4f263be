"""Plain log lines on stderr: time, level, logger, message, then `key=value` facts."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

LEVELS = ("debug", "info", "warning", "error")


class PlainFormatter(logging.Formatter):
    """One line an event (a traceback follows on lines of its own).

    Facts come as `extra={"facts": {...}}`; values that hold spaces or quotes are written as JSON.
    """

    def __init__(self, *, constants: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._constants = dict(constants or {})

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of `record`."""
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        parts = [stamp, record.levelname.lower(), record.name, record.getMessage()]
        facts: dict[str, object] = dict(self._constants)
        given = getattr(record, "facts", None)
        if isinstance(given, Mapping):
            facts.update(given)
        parts.extend(f"{key}={_shown(value)}" for key, value in facts.items())
        line = " ".join(parts)
        if record.exc_info:
            line = f"{line}\n{self.formatException(record.exc_info)}"
        return line


def configure_logging(
    level: str = "info",
    *,
    constants: Mapping[str, str] | None = None,
    stream: TextIO | None = None,
) -> None:
    """Send the logs of this process to `stream` (stderr); `constants` end every line (role, id)."""
    if level not in LEVELS:
        raise ValueError(f"log level {level!r} is not one of {', '.join(LEVELS)}")
    output = logging.StreamHandler(stream if stream is not None else sys.stderr)
    output.setFormatter(PlainFormatter(constants=constants))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(output)
    root.setLevel(level.upper())


def _shown(value: object) -> str:
    text = value if isinstance(value, str) else str(value)
    if text == "" or any(character in text for character in ' "=\n\t'):
        return json.dumps(text, ensure_ascii=False)
    return text
