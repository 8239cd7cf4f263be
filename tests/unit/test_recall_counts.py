"""Searches are counted at once, whenever recall was measured last."""

from __future__ import annotations

import math

import numpy as np

from annheal.coordinator.recall.summary import summarise
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.measures.recall import CollectionRecall, SelectivityBand, ShardBandRecall
from annheal.model.measures.recall_summary import RecallVerdict
from annheal.model.search import SearchOptions
from annheal.shard_node.recall.result import with_seen
from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.search.searcher import MatchCount
from tests.support.recall_reports import estimate

COLLECTION = Collection("c1", "things", (ModelSpec("m", 2, Metric.COSINE),), (), 2)
UNFILTERED, NARROW = SelectivityBand.UNFILTERED, SelectivityBand.BELOW_0_1
MEASURED = ShardBandRecall(0, UNFILTERED, estimate(0.98, 0.97, 0.99), 1.0, seen=40)


def summary_of(bands: tuple[ShardBandRecall, ...]) -> list[tuple[str, int, RecallVerdict]]:
    found = summarise(COLLECTION, [CollectionRecall("c1", 0.95, 0.01, bands, ())])
    assert found.overall.seen == sum(one.seen for one in found.bands)
    return [(one.name, one.seen, one.verdict) for one in found.bands]


def test_counts_are_those_of_now() -> None:
    seen = {(0, UNFILTERED): 100, (0, NARROW): 7, (1, UNFILTERED): 100}
    bands = with_seen([MEASURED], seen, k=10)
    assert [(one.shard, one.band, one.seen) for one in bands] == [
        (0, NARROW, 7),
        (0, UNFILTERED, 100),
        (1, UNFILTERED, 100),
    ]
    assert bands[1].estimate == MEASURED.estimate
    assert math.isnan(bands[0].stability)
    assert summary_of(bands) == [
        # Shard 1 has measured nothing, so nothing is known of the answers of both.
        ("unfiltered", 100, RecallVerdict.UNKNOWN),
        ("0-0.1%", 7, RecallVerdict.UNMEASURED),
    ]


def test_one_search_is_no_longer_denied() -> None:
    sampler = RecallSampler(0.01)
    counts = MatchCount(shard=0, matches=10, live_rows=10, visited=1)
    sampler.note("c1", np.zeros((3, 2), np.float32), SearchOptions(k=1), [counts])
    bands = with_seen([], sampler.seen_by_band("c1"), k=10)
    assert summary_of(bands) == [("unfiltered", 3, RecallVerdict.UNMEASURED)]
    assert not with_seen([], sampler.seen_by_band("another"), k=10)
