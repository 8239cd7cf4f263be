from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

from annheal.model import filter as filter_limits
from annheal.model import limits
from annheal.model.collection import CollectionSettings

MANUAL_FOLDER = Path(__file__).resolve().parents[2] / "docs"
MANUAL = (MANUAL_FOLDER / "limits.md").read_text()
ROW = re.compile(r"^\| `(\w+)`(?: \(`([\w/]+)\.py`\))? \| ([\d,]+) \|", re.MULTILINE)


def documented() -> dict[str, int]:
    found: dict[str, int] = {}
    for name, module, value in ROW.findall(MANUAL):
        holder = importlib.import_module(module.replace("/", ".")) if module else None
        actual = getattr(holder, name) if holder else _public(name)
        assert actual == int(value.replace(",", "")), f"{name} is {actual}, the manual says {value}"
        found[name] = actual
    return found


def _public(name: str) -> int:
    value: int = getattr(limits, name) if hasattr(limits, name) else getattr(filter_limits, name)
    return value


def test_the_manual_states_every_public_limit_as_it_is() -> None:
    names = documented()
    public = {name for name in vars(limits) if name.endswith("_MAX")} | {
        name for name in vars(filter_limits) if name.startswith("FILTER_")
    }
    assert public <= set(names), public - set(names)


def test_the_manual_states_every_collection_setting_with_its_default() -> None:
    manual = (MANUAL_FOLDER / "configuration.md").read_text()
    section = manual.partition("\n## Collections\n")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\S+) \|", section, re.MULTILINE))
    for field in dataclasses.fields(CollectionSettings):
        default = str(field.default).lower()
        assert rows.get(field.name) == default.removesuffix(".0"), field.name
