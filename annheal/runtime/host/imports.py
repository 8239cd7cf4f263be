"""Keeping Arrow from importing pandas into a server.

Arrow imports pandas, where it is installed, when it first turns a Python list into an array, to
know whether the list is a Series. In a server that is during the first write, on the event loop:
about a second of a core and 60 MiB for nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

import pyarrow as pa


class _NoPandas(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("servers do not use pandas", name=fullname)
        return None


def keep_pandas_from_arrow() -> None:
    """Let Arrow find no pandas, now and later; other imports of pandas work as before.

    Does nothing where pandas was imported already, or Arrow looked for it.
    """
    finder = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        pa.array([0])  # Arrow looks for pandas once, and remembers what it found
    finally:
        sys.meta_path.remove(finder)
