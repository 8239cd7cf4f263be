"""A command imports what it needs: not the index libraries, and not the other commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from annheal.cli.exit_codes import ExitCode
from tests.support.processes import clean_environment

RUN = """
import sys
from annheal.cli.__main__ import main
try:
    main()
except SystemExit as end:
    assert end.code in {codes}, end.code
imported = {{name for name in sys.modules if name.startswith({prefixes})}}
assert not imported, sorted(imported)
"""
CODES = tuple(int(code) for code in (ExitCode.OK, ExitCode.UNAVAILABLE, ExitCode.DEADLINE_EXCEEDED))
"""The command did its work, as far as it can without a server."""
INDEX_LIBRARIES = ("faiss", "numba", "llvmlite")
NO_SERVER = ["--address", "127.0.0.1:1", "--timeout", "0.1"]


def run_without(prefixes: tuple[str, ...], arguments: list[str]) -> None:
    """Run a command in a process of its own; fails when it imported a module by these prefixes."""
    ended = subprocess.run(
        [sys.executable, "-c", RUN.format(prefixes=prefixes, codes=CODES), *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["up", "--print-config"],
        ["count", "papers", *NO_SERVER],
        ["search", "papers", "--id", "a", *NO_SERVER],
    ],
    ids=lambda arguments: arguments[0],
)
def test_commands_do_not_import_the_index_libraries(arguments: list[str]) -> None:
    run_without(INDEX_LIBRARIES, arguments)


def test_a_command_does_not_import_the_others() -> None:
    others = tuple(
        f"annheal.cli.{package}."
        for package in ("server", "sources", "exports", "operator_commands")
    )
    run_without(others, ["count", "papers", *NO_SERVER])
