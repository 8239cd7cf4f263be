"""Samples of the live queries of each tag, so that recall of a rare kind of query is measured too.

A client may state with a search what kind of query it is: its tag. Queries of a tag are offered to
the reservoirs of their band like all others, and to a reservoir of their tag besides. So the sample
of a band stays a random sample of its traffic, whatever the tags are, and no query counts twice in
it. Both are offered a query with the same random number, so they hold the same queries as far as
they can: those of the band that have a frequent tag cost no second measurement.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from annheal.model.measures.recall_tags import OTHER_TAGS, TAGS_MAX
from annheal.shard_node.recall.sampling.sampled_query import SampledQuery, Windows
from annheal.shard_node.recall.sampling.stratum import (
    JUDGING_QUERIES,
    JudgingReservoir,
    judging_reservoir,
)
from annheal.shard_node.recall.sampling.window_counts import WindowCounts

TAG_QUERIES_MIN = 16
"""Queries of a tag that are measured at least, if it is measured: fewer would judge nothing."""
ROOM_LOOK_S = 1.0
"""Seconds between two looks for a tag that is not used any more."""


@dataclass(slots=True)
class _Tag:
    """The reservoirs of one tag, by the dimension of the queries, and when it was used last."""

    held: dict[int, JudgingReservoir]
    used_s: float


class TagSamples:
    """The tags of one collection: at most `TAGS_MAX`, all others together are `OTHER_TAGS`.

    A tag without a query for `Windows.age_max_s` gives its place to a new one.

    Args:
        windows: the times of sampling.
        share_max: the largest share of the queries that may be kept, in (0, 1].
        draw: source of randomness.
    """

    def __init__(self, windows: Windows, *, share_max: float, draw: random.Random) -> None:
        self._windows = windows
        self._share_max = share_max
        self._draw = draw
        self._tags: dict[str, _Tag] = {}
        self._counts = WindowCounts[str](windows.window_s)
        self._looked_s = 0.0

    def __len__(self) -> int:
        """Return the number of tags."""
        return len(self._tags)

    def count(self, tag: str, dimension: int, queries: int, *, at_s: float) -> JudgingReservoir:
        """Count queries of a tag, and return the reservoir to which they are offered."""
        known = self._tags.get(tag)
        if known is None:
            tag = self._place(tag, at_s)
            known = self._tags.setdefault(tag, _Tag({}, at_s))
        known.used_s = at_s
        part = self._counts.part(at_s)
        part[tag] = part.get(tag, 0) + queries
        held = known.held.get(dimension)
        if held is None:
            held = known.held[dimension] = judging_reservoir(
                dimension,
                self._windows,
                share_max=self._share_max,
                at_s=at_s,
                draw=self._draw,
            )
        return held

    def judges(
        self, *, queries_max: int | None, turn: int, now_s: float
    ) -> dict[str, tuple[SampledQuery, ...]]:
        """Return the queries by which recall of each tag is judged now.

        All together are at most `queries_max`. If these are too few for all tags, some tags take
        their turn: others at another `turn`, the same in all nodes that have the same tags.
        """
        names = sorted(self._tags)
        each = JUDGING_QUERIES
        if queries_max is not None and names:
            each = min(each, max(TAG_QUERIES_MIN, queries_max // len(names)))
            names = list(_in_turn(names, max(1, queries_max // each), turn))
        return {
            name: tuple(
                query
                for held in self._tags[name].held.values()
                for query in held.judges(self._windows, now_s=now_s)[:each]
            )
            for name in names
        }

    def judge_since(self, since_s: float) -> None:
        """Let only queries that arrived at `since_s` or later judge."""
        for tag in self._tags.values():
            for held in tag.held.values():
                held.since_s = since_s

    def traffic(self, now_s: float) -> dict[str, tuple[int, int]]:
        """Return the queries of each tag, since it has its place and in about the last window."""
        seen, recent = self._counts.seen(), self._counts.recent(now_s)
        return {name: (seen.get(name, 0), recent.get(name, 0)) for name in self._tags}

    def _place(self, tag: str, at_s: float) -> str:
        """Return the name under which queries of a new tag are counted."""
        named = len(self._tags) - (OTHER_TAGS in self._tags)
        if named < TAGS_MAX:
            return tag
        if at_s - self._looked_s < ROOM_LOOK_S:
            return OTHER_TAGS
        self._looked_s = at_s
        oldest_s = at_s - self._windows.age_max_s
        unused = [name for name, one in self._tags.items() if one.used_s < oldest_s]
        for name in unused:
            del self._tags[name]
        self._counts.forget(unused)
        return tag if len(self._tags) - (OTHER_TAGS in self._tags) < TAGS_MAX else OTHER_TAGS


def _in_turn(names: list[str], count: int, turn: int) -> Iterator[str]:
    """Yield `count` of the names, or all: the next ones in a circle at each `turn`."""
    count = min(count, len(names))
    for place in range(count):
        yield names[(turn * count + place) % len(names)]
