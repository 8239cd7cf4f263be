"""Answers of filters are computed once for each segment, and grow with growing rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from annheal.filters import evaluate, filter_key
from annheal.model.filter import Comparison, ComparisonOp, Filter
from annheal.model.records import RecordBatch
from annheal.segment import Segment
from annheal.shard_node.rows.growing import GrowingSegment, GrowingView
from annheal.shard_node.search import filter_cache
from annheal.shard_node.search.filter_cache import CacheState, FilterCache
from tests.support.segments import MODEL, open_local, sample_rows, write_sample

SMALL = Comparison("size", ComparisonOp.LT, 5)


def batch(first: int, rows: int) -> RecordBatch:
    sample = sample_rows(rows, first=first)
    return RecordBatch(sample.ids, sample.vectors, sample.attributes, sample.payloads)


def expected(view: GrowingView, filter: Filter) -> list[bool]:
    mask = evaluate(filter, view.attributes(), row_count=view.rows)
    return [bool(hit) for hit in mask]


@pytest.fixture
def segment(tmp_path: Path) -> Segment:
    return open_local(tmp_path, write_sample(tmp_path))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of growing rows of each evaluation."""
    rows: list[int] = []

    def counting(filter: Filter, columns: object, *, row_count: int) -> object:
        rows.append(row_count)
        return evaluate(filter, columns, row_count=row_count)  # type: ignore[arg-type]

    monkeypatch.setattr(filter_cache, "evaluate", counting)
    return rows


def test_a_second_question_gets_the_same_bitmap(segment: Segment) -> None:
    cache = FilterCache()
    first = cache.matches(segment, SMALL)
    assert cache.matches(segment, SMALL, key=filter_key(SMALL)) is first
    assert first.mask().tolist() == [
        bool(hit) for hit in evaluate(SMALL, segment.attributes, row_count=segment.rows)
    ]
    assert cache.size_bytes == first.packed.nbytes


def test_a_forgotten_segment_takes_no_room(segment: Segment, tmp_path: Path) -> None:
    other = open_local(tmp_path / "b", write_sample(tmp_path / "b", segment_id="seg-2"))
    cache = FilterCache()
    cache.matches(segment, SMALL)
    kept = cache.matches(other, SMALL)
    cache.forget([segment.id, "unknown"])
    assert (len(cache), cache.size_bytes) == (1, kept.packed.nbytes)
    assert cache.matches(other, SMALL) is kept


@pytest.mark.parametrize("sizes", [(20, 1, 7), (3,) + (1,) * 70, (1, 1)])
def test_only_new_growing_rows_are_evaluated(sizes: tuple[int, ...], evaluated: list[int]) -> None:
    cache, growing = FilterCache(), GrowingSegment(MODEL.dimension)
    for number, rows in enumerate(sizes):
        growing.append(batch(100 * number, rows), first_sequence=1_000 * number)
        view = growing.view()
        for _ in range(2):
            mask = cache.growing_matches(view, SMALL)
            assert mask.tolist() == expected(view, SMALL)
    assert evaluated == list(sizes)
    assert (len(cache), cache.size_bytes) == (1, sum(sizes))


def test_an_older_view_sees_its_own_rows(evaluated: list[int]) -> None:
    cache, growing = FilterCache(), GrowingSegment(MODEL.dimension)
    growing.append(batch(0, 4), first_sequence=0)
    older = growing.view()
    growing.append(batch(50, 6), first_sequence=10)
    newer = growing.view()
    assert cache.growing_matches(newer, SMALL).shape == (10,)
    assert cache.growing_matches(older, SMALL).tolist() == expected(older, SMALL)
    assert evaluated == [10]


def test_growing_segments_are_told_apart() -> None:
    cache = FilterCache()
    masks = []
    for first in (0, 3):
        growing = GrowingSegment(MODEL.dimension)
        rows = batch(0, 10)
        growing.append(rows.take(np.arange(first, 10)), first_sequence=0)
        masks.append((cache.growing_matches(growing.view(), SMALL), growing.view()))
    for mask, view in masks:
        assert mask.tolist() == expected(view, SMALL)


def test_answers_handed_out_cannot_be_changed() -> None:
    cache, growing = FilterCache(), GrowingSegment(MODEL.dimension)
    growing.append(batch(0, 4), first_sequence=0)
    with pytest.raises(ValueError, match="read-only"):
        cache.growing_matches(growing.view(), SMALL)[0] = True


def test_questions_are_counted(segment: Segment) -> None:
    cache, growing = FilterCache(), GrowingSegment(MODEL.dimension)
    for _ in range(3):
        held = cache.matches(segment, SMALL)
    assert cache.state() == CacheState(2, 1, 1, held.packed.nbytes)
    for number in range(2):
        growing.append(batch(100 * number, 5), first_sequence=10 * number)
        for _ in range(2):
            cache.growing_matches(growing.view(), SMALL)
    # Rows that came since are evaluated: no hit.
    assert (cache.state().hits, cache.state().misses) == (4, 3)


def test_only_what_is_held_keeps_its_room(segment: Segment) -> None:
    cache = FilterCache()
    grown = [GrowingSegment(MODEL.dimension) for _ in range(2)]
    for one in grown:
        one.append(batch(0, 8), first_sequence=0)
        cache.growing_matches(one.view(), SMALL)
    cache.matches(segment, SMALL)
    cache.forget_all_but([grown[1].view().number])
    assert (len(cache), cache.size_bytes) == (1, 8)
    before = cache.state().hits
    cache.growing_matches(grown[1].view(), SMALL)
    assert cache.state().hits == before + 1
