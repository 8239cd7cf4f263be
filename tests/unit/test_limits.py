from __future__ import annotations

import importlib
import re
from pathlib import Path

from annheal.model import filter as filter_limits
from annheal.model import limits

MANUAL = (Path(__file__).resolve().parents[2] / "docs" / "limits.md").read_text()
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
