"""Rows in memory: searched as brute force does, immutable views, bounded memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.model.collection import Metric
from annheal.model.records import EVERYTHING, Projection, RecordBatch
from annheal.shard_node.rows import growing as growing_module
from annheal.shard_node.rows.growing import GrowingSegment
from annheal.shards.wal import decode_record_batch, empty_attributes, encode_record_batch
from tests.support.model_checker import brute_force, versions_of
from tests.support.shards import DIMENSION, record_batch, vector_of


def filled(rows: int, *, per_batch: int = 7, unit: bool = False) -> GrowingSegment:
    segment = GrowingSegment(DIMENSION)
    for start in range(0, rows, per_batch):
        ids = [f"r{i}" for i in range(start, min(rows, start + per_batch))]
        batch = record_batch(ids, version=1)
        if unit:
            lengths = np.linalg.norm(batch.vectors, axis=1, keepdims=True)
            batch = replace(batch, vectors=batch.vectors / lengths)
        segment.append(batch, first_sequence=start + 1)
    return segment


@pytest.mark.parametrize("metric", list(Metric))
@settings(max_examples=25, deadline=None)
@given(
    rows=st.integers(1, 40),
    k=st.integers(1, 50),
    queries=st.integers(0, 5),
    block_rows=st.sampled_from([1, 2, 1_000]),
    seed=st.integers(0, 1_000),
)
def test_search_equals_brute_force(
    metric: Metric, rows: int, k: int, queries: int, block_rows: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    view = filled(rows, unit=metric is Metric.COSINE).view()
    asked = rng.standard_normal((queries, DIMENSION)).astype(np.float32)
    if metric is Metric.COSINE:
        asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    allowed = rng.random(rows) < 0.6 if seed % 2 else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growing_module, "SCORES_BYTES_MAX", 4 * rows * block_rows)
        scores, found = view.search(asked, k=k, metric=metric, allowed=allowed)
    assert scores.shape == found.shape == (queries, min(k, rows))
    usable = np.arange(rows) if allowed is None else np.flatnonzero(allowed)
    for query, query_scores, query_rows in zip(asked, scores, found, strict=True):
        truth = brute_force(view.vectors[:rows], query, metric=metric)
        wanted = min(k, len(usable))
        assert (query_rows[wanted:] == -1).all()
        assert np.isneginf(query_scores[wanted:]).all()
        assert set(query_rows[:wanted].tolist()) <= set(usable.tolist())
        best = np.sort(truth[usable])[::-1][:wanted]
        np.testing.assert_allclose(query_scores[:wanted], best, atol=1e-4)
        np.testing.assert_allclose(truth[query_rows[:wanted]], best, atol=1e-4)


def test_a_view_does_not_change_while_rows_come_and_die() -> None:
    segment = filled(10)
    view = segment.view()
    before = versions_of(view.take(np.arange(10), EVERYTHING))
    segment.kill(np.array([1, 2]), before_sequence=100)
    ids = [f"new{i}" for i in range(2_000)]
    segment.append(record_batch(ids, version=2), first_sequence=100)
    assert view.live_count == view.rows == 10
    assert versions_of(view.take(np.arange(10), EVERYTHING)) == before
    assert segment.view().live_count == 2_008


def test_a_row_dies_once_and_only_before_the_sequence() -> None:
    segment = filled(5)
    assert segment.kill(np.array([0, 0, 3]), before_sequence=4) == 1
    assert segment.kill(np.array([0, 3]), before_sequence=5) == 1
    assert segment.view().dead_count == 2
    assert segment.view().live_count == 3


def test_columns_are_copied_and_joined() -> None:
    """What came in a message must not keep the whole message, or its vectors, in memory."""
    segment = GrowingSegment(DIMENSION)
    for number in range(500):
        whole = decode_record_batch(encode_record_batch(record_batch([f"r{number}"], version=1)))
        segment.append(whole, first_sequence=number + 1)
    view = segment.view()
    assert len(view.parts) <= 64
    held = sum(part.attributes.get_total_buffer_size() for part in view.parts)
    held += sum(part.payloads.get_total_buffer_size() for part in view.parts)
    assert held < 500 * 64 + 64 * 512
    assert segment.size_bytes >= 500 * DIMENSION * 4
    assert len(versions_of(view.take(np.arange(500), EVERYTHING))) == 500


def test_room_for_all_rows_is_made_once() -> None:
    """Growing by doubling copied all vectors again and again."""
    segment = GrowingSegment(DIMENSION, sealed_at=100_000)
    places = set()
    for number in range(10):
        ids = [f"r{number}-{row}" for row in range(2_000)]
        segment.append(record_batch(ids, version=1), first_sequence=1 + 2_000 * number)
        places.add(segment.view().vectors.ctypes.data)
    assert len(places) <= 4, "moved after a sixteenth of the rows were there"
    view = segment.view()
    assert np.array_equal(view.vectors[2_000], vector_of("r1-0", 1))
    assert np.array_equal(view.vectors[19_999], vector_of("r9-1999", 1))


def test_rows_without_attributes() -> None:
    segment = GrowingSegment(2)
    for number in range(3):
        batch = RecordBatch(
            ids=pa.array([f"r{number}"], type=pa.string()),
            vectors=np.ones((1, 2), dtype=np.float32),
            attributes=empty_attributes(1),
            payloads=pa.array([None], type=pa.binary()),
        )
        segment.append(batch, first_sequence=number + 1)
    taken = segment.view().take(np.array([2, 0]), EVERYTHING)
    assert taken.ids == ["r2", "r0"]
    assert taken.attributes is not None
    assert len(taken.attributes) == 2


def test_attributes_that_do_not_exist_are_left_out() -> None:
    taken = filled(3).view().take(np.array([1]), Projection(attributes=("size", "nothing")))
    assert taken.attributes is not None
    assert taken.attributes.schema.names == ["size"]


@pytest.mark.parametrize("k", [1, 10, 200])
def test_l2_tells_rows_far_from_the_origin_apart(k: int) -> None:
    rng = np.random.default_rng(5)
    segment = GrowingSegment(DIMENSION)
    batch = record_batch([f"r{i}" for i in range(200)], version=1)
    far = 1000.0 + 0.1 * rng.standard_normal((200, DIMENSION))
    segment.append(replace(batch, vectors=far.astype(np.float32)), first_sequence=1)
    view = segment.view()
    vectors = view.vectors[:200]
    allowed = rng.random(200) < 0.5
    for usable in (None, allowed):
        scores, found = view.search(vectors[:20], k=k, metric=Metric.L2, allowed=usable)
        for query, query_scores, rows in zip(vectors[:20], scores, found, strict=True):
            truth = brute_force(vectors.astype(np.float64), query, metric=Metric.L2)
            best = np.sort(truth if usable is None else truth[usable])[::-1][:k]
            np.testing.assert_allclose(query_scores[: len(best)], best, rtol=1e-3)
            assert (rows[len(best) :] == -1).all()
