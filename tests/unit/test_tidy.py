"""Laws of the repository that no linter knows."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("annheal", "coordinator", "shard_node", "compactor", "cli")
ALL_CODE = (*PACKAGES, "tests", "benchmarks", "samples")
GENERATED = ("annheal/v1/", "annheal/metastore/etcdpb/")

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
BANNED_MODULES = {
    "common", "data", "helper", "helpers", "info", "manager", "misc", "util", "utils",
}  # fmt: skip
# "path:qualified name" -> why it is better whole. Empty is the aim.
LONG_FUNCTIONS_ALLOWED: dict[str, str] = {
    "annheal/client/records/write_calls.py:WriteCalls.upsert": "its arguments and their manual",
    "annheal/client/search_calls.py:SearchCalls.search": "its arguments and their manual",
    "cli/user_commands/importing.py:import_": "one declared option for each argument",
}
# Spelled apart, so that this file does not find itself.
LEFTOVER = re.compile(
    r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX", "HA" + "CK")) + r")\b"
)
TEXT_SUFFIXES = {".md", ".proto", ".py", ".sh", ".toml", ".yaml", ".tpl"}


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def modules(folders: tuple[str, ...]) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if not relative(path).startswith(GENERATED)
    )


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Yields `path:qualified name` and the number of lines of every function, nested ones too."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, int]]:
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield from walk(child, prefix)
                continue
            if not isinstance(child, ast.ClassDef):
                lines = (child.end_lineno or child.lineno) - child.lineno + 1
                yield f"{relative(path)}:{prefix}{child.name}", lines
            yield from walk(child, f"{prefix}{child.name}.")

    yield from walk(ast.parse(path.read_text(), filename=str(path)), "")


def test_modules_are_short() -> None:
    lengths = {relative(path): len(path.read_text().splitlines()) for path in modules(ALL_CODE)}
    assert {name: n for name, n in lengths.items() if n > MODULE_LINES_MAX} == {}


def test_functions_are_short() -> None:
    long = {
        name: lines
        for path in modules(ALL_CODE)
        for name, lines in functions(path)
        if lines > FUNCTION_LINES_MAX
    }
    assert {name: n for name, n in long.items() if name not in LONG_FUNCTIONS_ALLOWED} == {}
    assert set(LONG_FUNCTIONS_ALLOWED) <= set(long), "an allowed function is short by now"
    assert all(LONG_FUNCTIONS_ALLOWED.values()), "an allowed function needs a reason"


def test_length_of_nested_functions_and_methods_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "module.py"
    source.write_text("class A:\n    if True:\n        def f(self):\n            return 1\n")
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert dict(functions(source)) == {"module.py:A.f": 2}


def test_modules_are_named_after_what_they_hold() -> None:
    named = {
        relative(path)
        for path in modules(PACKAGES)
        for part in (*path.relative_to(ROOT).parts[:-1], path.stem)
        if part in BANNED_MODULES
    }
    assert named == set()


def test_nothing_is_left_over() -> None:
    folders = [ROOT / name for name in (*ALL_CODE, "docs", "helm", "protos", "scripts")]
    files = [p for folder in folders for p in folder.rglob("*") if p.suffix in TEXT_SUFFIXES]
    files += [p for p in ROOT.glob("*") if p.is_file() and p.suffix in TEXT_SUFFIXES]
    found = [
        f"{relative(path)}:{number}"
        for path in sorted(files)
        if not relative(path).startswith(GENERATED)
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if LEFTOVER.search(line)
    ]
    assert found == []


def test_every_decision_is_in_the_index() -> None:
    folder = ROOT / "docs" / "adr"
    records = {path.name for path in folder.glob("[0-9]*.md")}
    linked = re.findall(r"\]\((\d{4}-[a-z0-9-]+\.md)\)", (folder / "README.md").read_text())
    assert records, "no decision is recorded"
    assert set(linked) == records
    numbers = sorted(int(name[:4]) for name in records)
    assert len(set(numbers)) == len(numbers), "two decisions share a number"


def manual_pages() -> list[Path]:
    """Pages that describe the present code; decision records describe the code of their day."""
    pages = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "adr"]
    return sorted([*pages, *ROOT.glob("*.md")])


def test_modules_that_the_manual_names_exist() -> None:
    files = [relative(path) for path in modules((*ALL_CODE, "scripts"))]
    ends = {file[start:] for file in files for start in range(len(file)) if file[start - 1] == "/"}
    named = {
        (relative(page), name)
        for page in manual_pages()
        for name in re.findall(r"`([\w/-]+\.py)`", page.read_text())
    }
    assert len(named) > 50
    assert sorted(one for one in named if one[1] not in ends | set(files)) == []


def test_paths_in_decision_records_exist() -> None:
    """The text of a decision is not changed later; the paths in it follow their modules."""
    paths = {
        (relative(page), path)
        for page in (ROOT / "docs" / "adr").glob("*.md")
        for path in re.findall(r"`((?:\w+/)+\w+\.py)`", page.read_text())
    }
    assert len(paths) > 20
    assert sorted(one for one in paths if not (ROOT / one[1]).exists()) == []


def test_modules_that_the_manual_imports_exist() -> None:
    """Everything is imported as `annheal.…`, the folders at the top too."""
    ours = re.compile(rf"^(?:from|import) ((?:{'|'.join(PACKAGES)})\b[\w.]*)", re.MULTILINE)
    missing = []
    for page in manual_pages():
        for name in ours.findall(page.read_text()):
            path = ROOT / name.replace(".", "/")
            is_module = (path / "__init__.py").exists() or path.with_suffix(".py").exists()
            if not (name.startswith("annheal") and is_module):
                missing.append(f"{relative(page)}: {name}")
    assert missing == []


def test_the_glossary_is_in_order() -> None:
    rows = re.findall(r"^\| (\w[^|]*) \|", (ROOT / "docs/glossary.md").read_text(), re.MULTILINE)
    words = [row.lower() for row in rows if row not in {"word"}]
    assert words == sorted(words)
    assert len(set(words)) == len(words)


def test_every_package_is_a_package() -> None:
    """A folder without `__init__.py` is left out of the wheel and of the import contracts."""
    folders = {path.parent for path in modules(PACKAGES)}
    assert [relative(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_module_postpones_the_evaluation_of_annotations() -> None:
    missing = [
        relative(path)
        for path in modules(ALL_CODE)
        if path.name != "__init__.py"
        and "from __future__ import annotations" not in path.read_text()
    ]
    assert missing == []
