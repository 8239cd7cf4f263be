"""The console script `annheal`, and `python -m annheal.cli`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Options of the whole program that have a value; they may stand after the command too.
_GLOBAL_OPTIONS = ("--address", "--output", "-o", "--timeout")
_OUTPUT_FORMATS = ("table", "json")

# `ExitCode.INTERRUPTED`, before anything is imported.
_INTERRUPTED = 130


def hoist(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with global options moved to the front, up to a lone `--`.

    `export --output PATH` stays: it names a place, unless its value is one of the output formats.
    """
    front: list[str] = []
    rest: list[str] = []
    items = iter(arguments)
    for item in items:
        if item == "--":
            rest.append(item)
            break
        name, equals, value = item.partition("=")
        if name in _GLOBAL_OPTIONS:
            given = value if equals else next(items, None)
            parts = [item] if equals or given is None else [item, given]
            is_place = name == "--output" and "export" in rest and given not in _OUTPUT_FORMATS
            (rest if is_place else front).extend(parts)
        else:
            rest.append(item)
    return [*front, *rest, *items]


def main() -> None:
    """Run the command line."""
    # FAISS's threads must not spin while others could work; read when FAISS is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from annheal.cli.app import app

        app(args=hoist(sys.argv[1:]), prog_name="annheal")
    except KeyboardInterrupt:  # while modules are loaded; later typer sees to it
        sys.exit(_INTERRUPTED)


if __name__ == "__main__":
    main()
