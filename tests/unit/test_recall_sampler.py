"""The sample of live queries: how much is kept, and of what."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
import pytest

from annheal.model.filter import Comparison, ComparisonOp
from annheal.model.measures.recall import SelectivityBand
from annheal.model.search import SearchOptions
from annheal.shard_node.recall.sampler import (
    FIRST_QUERIES,
    MEMORY_QUERIES,
    RESERVOIR_QUERIES,
    RecallSampler,
)
from annheal.shard_node.search.searcher import MatchCount

ALL = [MatchCount(0, 1_000, 1_000)]
PLAIN = SearchOptions(k=10)
RED = Comparison("colour", ComparisonOp.EQ, "red")


def numbered(first: int, count: int) -> npt.NDArray[np.float32]:
    """Return queries that say which number they have."""
    return np.arange(first, first + count, dtype=np.float32).reshape(count, 1)


def sampler(share: float, *, seed: int = 1) -> RecallSampler:
    return RecallSampler(share, draw=random.Random(seed), now_s=lambda: 5.0)


def numbers(of: RecallSampler, collection: str = "c") -> list[int]:
    return [int(query.vector[0]) for query in of.sample(collection)]


@pytest.mark.parametrize("batch", [1, 7, 1_000])
def test_the_share_is_kept_whatever_the_batches(batch: int) -> None:
    total, share = 60_000, 0.02
    kept = sampler(share)
    for start in range(0, total, batch):
        kept.note("c", numbered(start, min(batch, total - start)), PLAIN, ALL)
    expected = FIRST_QUERIES + (total - FIRST_QUERIES) * share
    # 4.5 standard deviations: once in 150,000 runs, were the seed not fixed.
    assert abs(kept.version("c") - expected) < 4.5 * np.sqrt(total * share)
    assert kept.seen("c", 0, SelectivityBand.UNFILTERED) == total
    assert len(numbers(kept)) == RESERVOIR_QUERIES


def test_every_query_of_a_batch_has_the_same_chance() -> None:
    counts = np.zeros(10)
    for seed in range(3_000):
        kept = sampler(0.2, seed=seed)
        kept.note("c", numbered(0, FIRST_QUERIES), PLAIN, ALL)
        before = kept.version("c")
        kept.note("c", numbered(100, 10), PLAIN, ALL)
        for number in numbers(kept)[before:]:
            counts[number - 100] += 1
    np.testing.assert_allclose(counts / 3_000, 0.2, atol=0.035)


def test_the_first_queries_are_all_kept_however_small_the_share() -> None:
    kept = sampler(1e-9)
    for number in range(FIRST_QUERIES + 50):
        kept.note("c", numbered(number, 1), PLAIN, ALL)
    assert numbers(kept) == list(range(FIRST_QUERIES))


def test_a_long_stream_is_followed_and_old_samples_are_forgotten() -> None:
    kept = sampler(1.0)
    for start in range(0, 10 * MEMORY_QUERIES, 64):
        kept.note("c", numbered(start, 64), PLAIN, ALL)
    ages = 10 * MEMORY_QUERIES - np.array(numbers(kept))
    # The age is geometric with mean MEMORY_QUERIES: 0.7 to 1.4 of it are 3.5 deviations.
    assert 0.7 * MEMORY_QUERIES < ages.mean() < 1.4 * MEMORY_QUERIES
    assert len(ages) == RESERVOIR_QUERIES


def test_bands_have_reservoirs_of_their_own_and_shards_counts_of_their_own() -> None:
    kept = sampler(1.0)
    filtered = SearchOptions(k=3, filter=RED)
    kept.note("c", numbered(0, 2 * RESERVOIR_QUERIES), PLAIN, ALL)
    kept.note(
        "c", numbered(5_000, 2), filtered, [MatchCount(0, 1, 1_000), MatchCount(1, 999, 1_000)]
    )
    found = kept.sample("c")
    assert len(found) == RESERVOIR_QUERIES + 2
    assert {(one.k, one.filter) for one in found} == {(10, None), (3, RED)}
    assert kept.seen("c", 0, SelectivityBand.FROM_0_1) == 2
    assert kept.seen("c", 1, SelectivityBand.FROM_50) == 2
    assert kept.seen("c", 1, SelectivityBand.UNFILTERED) == 0


def test_questions_of_an_operator_are_no_traffic() -> None:
    kept = sampler(1.0)
    kept.note("c", numbered(0, 9), SearchOptions(k=1, exact=True), ALL)
    kept.note("c", numbered(0, 9), SearchOptions(k=1, explain=True), ALL)
    assert kept.sample("c") == ()
    assert kept.seen("c", 0, SelectivityBand.UNFILTERED) == 0
    nothing = sampler(0.0)
    nothing.note("c", numbered(0, 9), PLAIN, ALL)
    assert nothing.version("c") == 0


def test_a_sample_is_a_copy_and_goes_with_its_collection() -> None:
    kept = sampler(1.0)
    queries = numbered(3, 1)
    kept.note("c", queries, PLAIN, ALL)
    kept.note("d", queries, PLAIN, ALL)
    queries[:] = 0.0
    assert numbers(kept) == [3]
    assert kept.sample("c")[0].sampled_at_s == 5.0
    kept.forget_all_but(["d"])
    assert kept.sample("c") == ()
    assert numbers(kept, "d") == [3]
