"""Recall of merged answers, rebuilt from the shards' parts, against brute force."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.errors import InvalidArgument
from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.measures.recall import CollectionRecall
from annheal.model.measures.shard_queries import FOUND, KNOWN, SERVED, ShardQueries
from annheal.recall.merging import depth_max, filter_number, merge_queries, tag_number
from annheal.v1 import internal_pb2
from annheal.wire.recall import decode_recall_reports, encode_recall_reports


@dataclass(frozen=True)
class Part:
    """One query in one shard: exact scores, which were found, and of the given answer: which rows
    it knew and had, and the scores of its rows that are gone."""

    scores: Sequence[float]
    found: Sequence[bool]
    known: Sequence[bool] | None = None
    served: Sequence[bool] | None = None
    gone: Sequence[float] = ()
    more: bool = False
    cut: float = -math.inf


def shard_queries(
    shard: int,
    parts: dict[int, Part],
    *,
    k: int,
    filter: int = 0,
    objective: float | None = None,
    tags: Mapping[int, str] | None = None,
) -> ShardQueries:
    """Return the parts by query number as a shard reports them.

    Those with `tags` are of the samples of their tags alone.
    """
    of_tags = tags or {}
    held = list(parts.values())
    n = len(held)
    marks = [
        FOUND * found + (KNOWN * known + SERVED * served if one.served is not None else 0)
        for one in held
        for found, known, served in zip(
            one.found,
            one.known or [True] * len(one.found),
            one.served or one.found,
            strict=True,
        )
    ]
    return ShardQueries(
        shard=shard,
        measured_at_s=1_000.0 + shard,
        valid_s=600.0,
        numbers=np.array(list(parts), dtype=np.uint64),
        same=np.array(list(parts), dtype=np.uint64),
        ks=np.full(n, k),
        filters=np.full(n, filter, dtype=np.uint64),
        own=np.full(n, objective is not None),
        objectives=np.full(n, math.nan if objective is None else objective),
        matches=np.full(n, 10),
        live_rows=np.full(n, 1_000),
        sampled_at_s=np.arange(n) + 900.0,
        depths=np.array([len(one.scores) for one in held]),
        more=np.array([one.more for one in held]),
        scores=np.array([score for one in held for score in one.scores], dtype=np.float32),
        marks=np.array(marks, dtype=np.uint8),
        served=np.array([one.served is not None for one in held]),
        cuts=np.array([one.cut for one in held], dtype=np.float32),
        gone=np.array([len(one.gone) for one in held]),
        gone_scores=np.array([score for one in held for score in one.gone], dtype=np.float32),
        in_band=np.array([number not in of_tags for number in parts]),
        tags=np.array([tag_number(of_tags.get(number, "")) for number in parts], dtype=np.uint64),
    )


def merged_recall(parts: Sequence[Part], *, k: int) -> tuple[float, float]:
    """Return the recall of one query over shards with these parts: of now, and as served."""
    shards = [shard_queries(shard, {7: part}, k=k) for shard, part in enumerate(parts)]
    merged = merge_queries(shards, shard_count=len(parts))
    assert len(merged.recalls) == 1
    return float(merged.recalls[0]), float(merged.served[0])


def test_only_hits_that_belong_into_the_answer_count() -> None:
    """Each shard misses one of its own three, but only one of these is among the best three."""
    first = Part([0.9, 0.8, 0.1], [True, True, False])
    second = Part([0.7, 0.6, 0.2], [True, False, True])
    assert merged_recall([first, second], k=3)[0] == 1.0
    assert merged_recall([first, second], k=4)[0] == pytest.approx(3 / 4)
    assert merged_recall([first, second], k=9)[0] == pytest.approx(4 / 6)


def test_of_equal_scores_at_the_end_any_will_do() -> None:
    first = Part([0.9, 0.5, 0.5], [True, True, True])
    second = Part([0.5, 0.5], [False, False])
    assert merged_recall([first, second], k=3)[0] == 1.0
    assert merged_recall([first, second], k=4)[0] == pytest.approx(3 / 4)
    # Negative scores, as those of l2: equal up to rounding.
    third = Part([-1.0, -2.0], [True, False])
    assert merged_recall([third, Part([-2.0 * (1 + 1e-7)], [True])], k=2)[0] == 1.0


def test_a_shard_without_a_match_takes_part_and_a_query_without_one_has_no_recall() -> None:
    nothing = Part([], [])
    assert merged_recall([Part([0.5], [True]), nothing], k=3)[0] == 1.0
    assert math.isnan(merged_recall([nothing, nothing], k=3)[0])


def test_queries_that_a_shard_lacks_are_counted_and_left_out() -> None:
    whole = Part([0.5], [True])
    shards = [
        shard_queries(0, {1: whole, 2: whole, 3: whole}, k=1),
        shard_queries(1, {3: whole, 4: whole}, k=1),
    ]
    merged = merge_queries(shards, shard_count=2)
    assert (len(merged.recalls), merged.incomplete) == (1, 3)
    assert merged.measured_at_s == 1_000.0
    # A shard that reports nothing, because it was opened just now: no answer is known.
    merged = merge_queries(shards, shard_count=3)
    assert (len(merged.recalls), merged.incomplete) == (0, 4)
    assert merge_queries([], shard_count=2).estimate(np.zeros(0, dtype=np.bool_), {}) is None


def test_queries_of_a_tag_count_for_it_where_all_shards_say_so_and_not_for_a_band() -> None:
    good, bad = Part([0.9], [True]), Part([0.8], [False])
    first = shard_queries(0, {1: good, 2: bad, 3: bad}, k=2, tags={2: "rare", 3: "rare"})
    second = shard_queries(1, {1: good, 2: good, 3: good}, k=2, tags={2: "rare"})
    merged = merge_queries([first, second], shard_count=2)
    assert merged.in_band.tolist() == [True, False, False]
    rare = merged.tags == tag_number("rare")
    assert rare.tolist() == [False, True, False], "the second shard has query 3 for its band"
    assert merged.recalls[rare].tolist() == [0.5]
    # Of the bands one query is complete, and one is not.
    assert merged.incomplete == 1


def test_a_part_that_is_too_short_to_tell_is_left_out() -> None:
    long = Part([0.9, 0.8], [True, True])
    short = Part([0.95], [True], more=True)  # its next hit may belong as well
    shards = [shard_queries(0, {1: long}, k=2), shard_queries(1, {1: short}, k=2)]
    assert merge_queries(shards, shard_count=2).undecided == 1
    enough = replace(short, scores=[0.5])
    shards[1] = shard_queries(1, {1: enough}, k=2)
    merged = merge_queries(shards, shard_count=2)
    assert (merged.undecided, merged.recalls.tolist()) == (0, [1.0])


def test_an_answer_that_was_given_is_judged_without_what_was_written_since() -> None:
    """A row of shard 0 is new since, one of shard 1 is gone and keeps its place in the answer."""
    first = Part([0.9, 0.8, 0.4], [True] * 3, [False, True, True], [False, True, False])
    second = Part([0.6, 0.5], [True] * 2, [True] * 2, [True, False], gone=[0.7])
    # Then: 0.8, 0.7 (gone), 0.6, 0.5, 0.4.
    assert merged_recall([first, second], k=2)[1] == 1.0
    assert merged_recall([first, second], k=3)[1] == 1.0
    assert merged_recall([first, second], k=4)[1] == pytest.approx(2 / 3)
    assert merged_recall([first, second], k=9)[1] == pytest.approx(2 / 4)
    unknown = replace(second, served=None)
    assert math.isnan(merged_recall([first, unknown], k=3)[1])
    # Only its hits down to 0.6 are kept: the others are not judged.
    cut = replace(second, cut=0.6)
    assert merged_recall([first, cut], k=9)[1] == 1.0


def brute_force(
    rows: npt.NDArray[np.int64], shards: npt.NDArray[np.int64], *, k: int, missed: set[int], of: int
) -> float:
    """Return the recall of an answer that merges what the shards found of their own best k."""
    order = np.argsort(-rows, kind="stable")
    hits: list[int] = []
    for shard in range(of):
        own = [row for row in order.tolist() if shards[row] == shard]
        hits += [row for row in own[:k] if row not in missed]
    answer = sorted(hits, key=lambda row: -rows[row])[:k]
    truth = sorted(rows.tolist(), reverse=True)[:k]
    if not truth:
        return math.nan
    good = sum(int(rows[row]) >= truth[-1] for row in answer)
    return min(good, len(truth)) / len(truth)


@settings(max_examples=300, deadline=None)
@given(
    of=st.integers(2, 8),
    k=st.integers(1, 12),
    # Few values, so that many scores are equal.
    placed=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 7), st.booleans()), max_size=60),
)
def test_the_parts_say_what_brute_force_says(
    of: int, k: int, placed: list[tuple[int, int, bool]]
) -> None:
    rows = np.array([value for value, _, _ in placed], dtype=np.int64)
    shards = np.array([shard % of for _, shard, _ in placed], dtype=np.int64)
    missed = {row for row, (_, _, is_missed) in enumerate(placed) if is_missed}
    order = np.argsort(-rows, kind="stable") if len(rows) else np.empty(0, dtype=np.int64)
    parts = []
    for shard in range(of):
        own = [row for row in order.tolist() if shards[row] == shard][:k]
        parts.append(Part([float(rows[row]) for row in own], [row not in missed for row in own]))
    found, _ = merged_recall(parts, k=k)
    expected = brute_force(rows, shards, k=k, missed=missed, of=of)
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("shard_count", [2, 4, 8, 64])
@pytest.mark.parametrize("k", [1, 10, 100, 1_000])
def test_parts_of_the_stated_depth_are_nearly_always_enough(k: int, shard_count: int) -> None:
    depth = depth_max(k, shard_count=shard_count)
    held = np.random.default_rng(1).multinomial(k, [1 / shard_count] * shard_count, size=20_000)
    assert held.max() <= depth <= k
    if k == 1_000:
        assert depth < 0.65 * k  # what is reported is much less than all


def test_parts_travel_as_they_are_and_columns_that_do_not_fit_are_refused() -> None:
    part = shard_queries(
        3,
        {5: Part([0.9, 0.5], [True, False], [True, False], [True, False], gone=[0.25])},
        k=10,
        filter=filter_number(Comparison("year", ComparisonOp.GE, 2000)),
        objective=0.99,
    )
    report = CollectionRecall("c", 0.95, 1.0, (), (), queries=(part,))
    message = encode_recall_reports([report])
    (again,) = decode_recall_reports(message)[0].queries
    for name in ShardQueries.__slots__:
        assert np.array_equal(getattr(part, name), getattr(again, name)), name
    for break_it in (
        lambda one: one.ks.append(3),
        lambda one: setattr(one, "scores", one.scores[:-1]),
        lambda one: setattr(one, "scores", one.scores[:-4]),
        lambda one: setattr(one, "marks", b""),
        lambda one: one.gone.__setitem__(0, 2**31),
    ):
        broken = internal_pb2.ReportRecallResponse()
        broken.CopyFrom(message)
        break_it(broken.collections[0].queries[0])
        with pytest.raises(InvalidArgument, match="queries"):
            decode_recall_reports(broken)
