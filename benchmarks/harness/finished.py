"""Results of finished parts of a benchmark, in a file, so that a long run can be done in pieces."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Key = Mapping[str, Any]
Line = dict[str, Any]


class FinishedParts:
    """A file with one JSON object a line: the key of a part, the commit that was measured, the
    result.

    Without a path results are kept in memory only. A part that was measured again has several
    lines; the last one counts. A line that was cut off, by the end of a process, is left out.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lines: list[Line] = []
        text = path.read_text() if path is not None and path.is_file() else ""
        for line in text.splitlines():
            try:
                self._lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        self._ends_open = bool(text) and not text.endswith("\n")

    def find(self, key: Key, *, commit: str | None) -> Line | None:
        """Return the line of a part, None without one; `commit` None: of whatever commit."""
        wanted = json.loads(json.dumps(key))
        for line in reversed(self._lines):
            if line["key"] == wanted and commit in (None, line["commit"]):
                return line
        return None

    def add(self, key: Key, *, commit: str, result: Any) -> Line:
        """Append the result of a part, and return its line as `find` does."""
        text = json.dumps({"key": key, "commit": commit, "result": result})
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(("\n" if self._ends_open else "") + text + "\n")
            self._ends_open = False
        line: Line = json.loads(text)
        self._lines.append(line)
        return line
