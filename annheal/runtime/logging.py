"""Plain log lines on stderr: time, level, logger, message, then `key=value` facts."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, TextIO

from annheal.runtime.clock import Clock, monotonic_s
from annheal.runtime.host.secrets import environment_secrets, mask_secrets

LEVELS = ("debug", "info", "warning", "error")
REPEAT_INTERVAL_S: Final = 10.0
"""Between two messages about what goes on failing."""


class PlainFormatter(logging.Formatter):
    """One line an event (a traceback follows on lines of its own).

    Facts come as `extra={"facts": {...}}`; values that hold spaces or quotes are written as JSON.
    Passwords of URLs and of the environment are masked, whoever put them into a message.
    """

    def __init__(self, *, constants: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self._constants = dict(constants or {})
        self._secrets = environment_secrets()

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
        return mask_secrets(line, secrets=self._secrets)


class SparingLog:
    """Warnings about something that is tried again and again: at once, then every `interval_s`."""

    def __init__(
        self,
        log: logging.Logger,
        *,
        interval_s: float = REPEAT_INTERVAL_S,
        clock: Clock = monotonic_s,
    ) -> None:
        self._log = log
        self._interval_s = interval_s
        self._clock = clock
        self._told_s = float("-inf")
        self._untold = 0

    def warning(self, text: str, *values: object) -> None:
        """Log it, with how many were left out before it, unless one was logged just now."""
        now_s = self._clock()
        if now_s - self._told_s < self._interval_s:
            self._untold += 1
            return
        self._told_s = now_s
        more = f" ({self._untold} more times since the last message)" if self._untold else ""
        self._untold = 0
        self._log.warning(text + "%s", *values, more)


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
