"""The pictures of docs/recall.md are those that the program draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.impact.recall_pictures import pictures

IMAGES = Path(__file__).resolve().parents[2] / "docs" / "images"


@pytest.mark.parametrize(("name", "text"), pictures().items())
def test_pictures_are_what_is_drawn(name: str, text: str) -> None:
    command = "benchmarks/impact/recall_pictures.py --svg-dir docs/images"
    assert text == (IMAGES / name).read_text(), f"run {command}"
