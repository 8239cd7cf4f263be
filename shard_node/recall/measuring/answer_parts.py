"""What one shard of several found of each query: parts to rebuild merged answers from. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.model.measures.shard_queries import FOUND, KNOWN, SERVED, ShardQueries
from annheal.recall.merging import depth_max, filter_number, tag_number
from annheal.shard_node.recall.measuring.measure import ExactHits, GroupFinding
from annheal.shard_node.recall.sampling.sampled_query import SampledQuery

QUERIES_BYTES_MAX = 1_048_576
"""Bytes of exact hits that a shard reports: of more, the queries with the largest numbers are left
out, which are the same in all shards."""
_BYTES_PER_HIT = 5


@dataclass(frozen=True, slots=True)
class Moment:
    """When a measurement ended, in seconds since the epoch, and how long it says something.

    `valid_s` is the age of the newest query at which an estimate becomes too old.
    """

    measured_at_s: float
    valid_s: float


def shard_queries(
    shard: int, found: Iterable[GroupFinding], *, moment: Moment, shard_count: int
) -> ShardQueries | None:
    """Return what the shard found of each numbered query; None if there is none."""
    rows = [
        _FoundQuery(finding, finding.exact, place, index, number)
        for finding in found
        if finding.exact is not None
        for index, place in enumerate(finding.group.places.tolist())
        if (number := finding.group.samples[index].number) is not None
    ]
    # Those of tags alone come last, so that none of a band is left out for them.
    rows.sort(key=lambda one: (not one.finding.group.in_band, one.number))
    parts: list[tuple[_FoundQuery, _HitsOfQuery]] = []
    room = QUERIES_BYTES_MAX
    for row in rows:
        hits = row.hits(shard_count=shard_count)
        room -= _BYTES_PER_HIT * len(hits.scores)
        if room < 0:
            break
        parts.append((row, hits))
    if not parts:
        return None
    groups = [row.finding.group for row, _ in parts]
    unsigned = np.uint64
    return ShardQueries(
        shard=shard,
        measured_at_s=moment.measured_at_s,
        valid_s=moment.valid_s,
        numbers=np.array([row.number for row, _ in parts], dtype=unsigned),
        same=np.array([row.same for row, _ in parts], dtype=unsigned),
        ks=np.array([group.k for group in groups], dtype=np.int64),
        filters=np.array(
            [0 if one.filter is None else filter_number(one.filter) for one in groups],
            dtype=unsigned,
        ),
        own=np.array([group.has_own_setting for group in groups], dtype=np.bool_),
        objectives=np.array(
            [math.nan if one.objective is None else one.objective for one in groups]
        ),
        matches=np.array([row.finding.matches for row, _ in parts], dtype=np.int64),
        live_rows=np.array([row.finding.live_rows for row, _ in parts], dtype=np.int64),
        sampled_at_s=np.array([row.sample.sampled_at_s for row, _ in parts]),
        depths=np.array([len(hits.scores) for _, hits in parts], dtype=np.int64),
        more=np.array([hits.more for _, hits in parts], dtype=np.bool_),
        scores=np.concatenate([hits.scores for _, hits in parts]),
        marks=np.concatenate([hits.marks for _, hits in parts]),
        served=np.array([hits.is_served for _, hits in parts], dtype=np.bool_),
        cuts=np.array([hits.cut for _, hits in parts], dtype=np.float32),
        gone=np.array([len(hits.gone) for _, hits in parts], dtype=np.int64),
        gone_scores=np.concatenate([hits.gone for _, hits in parts]),
        in_band=np.array([group.in_band for group in groups], dtype=np.bool_),
        tags=np.array([tag_number(group.tag) for group in groups], dtype=unsigned),
    )


@dataclass(frozen=True, slots=True)
class _HitsOfQuery:
    """A query's part of the columns of `ShardQueries`."""

    scores: npt.NDArray[np.float32]
    marks: npt.NDArray[np.uint8]
    more: bool
    is_served: bool
    cut: float
    gone: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _FoundQuery:
    """The sample `index` of a group, whose query is at `place` among the different ones."""

    finding: GroupFinding
    exact: ExactHits
    place: int
    index: int
    number: int

    @property
    def sample(self) -> SampledQuery:
        return self.finding.group.samples[self.index]

    @property
    def same(self) -> int:
        """A number that is equal for equal queries."""
        return int(self.finding.group.identities[self.place])

    def hits(self, *, shard_count: int) -> _HitsOfQuery:
        """Return the hits that are needed to know those of the answer over all shards."""
        every = self.exact.scores[self.place]
        present = int(np.count_nonzero(~np.isneginf(every)))
        depth = min(present, depth_max(self.finding.group.k, shard_count=shard_count))
        marks = np.where(self.exact.found[self.place, :depth], FOUND, 0).astype(np.uint8)
        served = self.exact.served[self.index]
        if served is not None:
            marks |= np.where(served.known[:depth], KNOWN, 0).astype(np.uint8)
            marks |= np.where(served.served[:depth], SERVED, 0).astype(np.uint8)
        return _HitsOfQuery(
            every[:depth].astype(np.float32),
            marks,
            # An answer of k hits can need no more than k of a shard.
            more=depth < present,
            is_served=served is not None,
            cut=-math.inf if served is None else served.cut,
            gone=np.empty(0, dtype=np.float32) if served is None else served.gone,
        )
