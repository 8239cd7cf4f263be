"""Runs the unit tests of what changed since BASE (default: where this branch left main).

A test concerns a changed module when it imports it, or a package that the module is in and that it
takes names from. What does not fit into BUDGET_S is left to `make test`, and said.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("cli", "compactor", "coordinator", "shard_node")
TESTS = ("tests/unit", "tests/contract")
BUDGET_S = 75.0


class Budget:
    """Ends a session between two tests once `seconds` are over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._started_s = time.monotonic()
        self.used_up = False

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Note that the time is over."""
        self.used_up = time.monotonic() - self._started_s > self._seconds

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Stop before the next test."""
        if self.used_up:
            item.session.shouldstop = "the budget is used up; `make test` runs the rest"


def git(*arguments: str) -> list[str]:
    """Return the lines that git prints; none when it fails."""
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines() if done.returncode == 0 else []


def changed_files(base: str) -> set[str]:
    """Return the paths that differ from `base`, files that git does not track yet among them."""
    return {*git("diff", "--name-only", base), *git("ls-files", "--others", "--exclude-standard")}


def module_of(path: str) -> str:
    """Return the name under which the file at `path` is imported."""
    parts = path.removesuffix(".py").removesuffix("/__init__").split("/")
    return ".".join(["annheal", *parts] if parts[0] in SERVICES else parts)


def imported_by(source: str) -> set[str]:
    """Return every module and `module.name` that `source` imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def concerns(imported: set[str], module: str) -> bool:
    """Whether a test with these imports looks at `module`."""
    package = module.rpartition(".")[0]
    return module in imported or (package in imported and package.count(".") > 0)


def tests_of(changed: set[str]) -> list[str]:
    """Return the test files that changed, then those that look at a changed module."""
    modules = {module_of(path) for path in changed if path.endswith(".py")}
    files = [path for folder in TESTS for path in sorted((ROOT / folder).glob("test_*.py"))]
    names = {path.relative_to(ROOT).as_posix(): path for path in files}
    direct = [name for name in names if name in changed]
    others = [
        name
        for name, path in names.items()
        if name not in changed
        and any(concerns(imported_by(path.read_text()), module) for module in modules)
    ]
    return direct + others


def main() -> int:
    """Run them; 0 when none failed."""
    base = sys.argv[1] if len(sys.argv) > 1 else "".join(git("merge-base", "HEAD", "origin/main"))
    tests = tests_of(changed_files(base or "HEAD"))
    if not tests:
        print("no unit test looks at what changed")
        return 0
    budget = Budget(BUDGET_S)
    status = pytest.main(["-q", "-x", "--no-header", *tests], plugins=[budget])
    return 0 if status == pytest.ExitCode.INTERRUPTED and budget.used_up else int(status)


if __name__ == "__main__":
    sys.exit(main())
