"""The picture of the imports: few rooms on a level, no circle between them, one package to import.

A room is a module or a sub-package, as it is seen from the folder that holds it. Imports inside
functions count: they are how circles hide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("cli", "compactor", "coordinator", "shard_node")
ROOMS_MAX = 14
GENERATED = "annheal.v1"  # as many modules as there are protos
# Not rooms of `annheal/`: generated code, and the links to the services' folders.
NOT_COUNTED = frozenset({GENERATED, *(f"annheal.{name}" for name in SERVICES)})


@cache
def graph() -> grimp.ImportGraph:
    """All imports, those inside functions too; those that only type checkers follow left out."""
    return grimp.build_graph("annheal", "benchmarks", exclude_type_checking_imports=True)


def rooms(folder: str) -> set[str]:
    """The modules and packages on the level below `folder`, itself left out."""
    return set(graph().find_children(folder)) - {f"{folder}.__main__"}


def folders() -> list[str]:
    return sorted(m for m in graph().modules if graph().find_children(m))


def arrows(folder: str) -> dict[str, set[str]]:
    """Which room below `folder` imports which other one."""
    children = rooms(folder)
    room_of = {
        module: child for child in children for module in (child, *graph().find_descendants(child))
    }
    found: dict[str, set[str]] = {child: set() for child in children}
    for module, room in room_of.items():
        for imported in graph().find_modules_directly_imported_by(module):
            other = room_of.get(imported)
            if other is not None and other != room:
                found[room].add(other)
    return found


def circle(arrows_from: Mapping[str, Iterable[str]]) -> list[str]:
    """Return one circle, its first room named again at its end, or nothing."""
    done: set[str] = set()

    def walk(room: str, path: list[str]) -> list[str]:
        if room in path:
            return [*path[path.index(room) :], room]
        if room in done:
            return []
        for other in sorted(arrows_from.get(room, ())):
            if found := walk(other, [*path, room]):
                return found
        done.add(room)
        return []

    return next((found for room in sorted(arrows_from) if (found := walk(room, []))), [])


def why(steps: list[str]) -> list[str]:
    """For each arrow of a circle, one import that makes it."""
    found = []
    for importer, imported in pairwise(steps):
        chains = sorted(
            (source, target)
            for source in (importer, *graph().find_descendants(importer))
            for target in graph().find_modules_directly_imported_by(source)
            if target == imported or target.startswith(f"{imported}.")
        )
        found.append(" -> ".join(chains[0]))
    return found


@pytest.mark.parametrize("folder", [one for one in folders() if one != GENERATED])
def test_no_folder_has_more_rooms_than_one_picture_shows(folder: str) -> None:
    counted = rooms(folder) - NOT_COUNTED
    assert len(counted) <= ROOMS_MAX, f"group them by concern: {sorted(counted)}"


@pytest.mark.parametrize("folder", folders())
def test_rooms_of_a_folder_do_not_import_in_a_circle(folder: str) -> None:
    found = circle(arrows(folder))
    assert found == [], why(found)


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_imports_inside_functions_are_seen() -> None:
    """`annheal up` loads the servers late, so that other commands start soon."""
    assert graph().direct_import_exists(
        importer="annheal.cli.server.serving", imported="annheal.cli.server.serve"
    )


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_links_in_the_one_import_package(service: str) -> None:
    link = ROOT / "annheal" / service
    assert link.is_symlink()
    assert link.resolve() == ROOT / service
    assert f"annheal.{service}" in graph().modules
