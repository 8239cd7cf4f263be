"""Texts read by their offsets are those that Arrow's own `take` returns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from annheal.segment.texts import FEW_TEXTS, texts_at

TEXTS = ["", "é", "日本", "a" * 300, *(f"id-{number}" for number in range(500))]


@pytest.mark.parametrize("count", [0, 1, FEW_TEXTS, FEW_TEXTS + 1])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize("start", [0, 2], ids=["whole", "slice"])
def test_texts_at(count: int, kind: pa.DataType, start: int) -> None:
    column = pa.array(TEXTS, type=kind).slice(start)
    rows = np.random.default_rng(count).integers(0, len(column), size=count)
    rows[: min(count, 3)] = [0, len(column) - 1, 1][: min(count, 3)]
    assert texts_at(column, rows) == [TEXTS[start + row] for row in rows]


def test_texts_of_nothing_but_empty_texts() -> None:
    assert texts_at(pa.array(["", ""]), np.array([1, 0])) == ["", ""]


def test_no_texts_of_an_empty_column() -> None:
    assert texts_at(pa.array([], type=pa.string()), np.empty(0, dtype=np.int64)) == []
