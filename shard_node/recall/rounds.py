"""Which queries all shards of a collection are measured with at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from annheal.shard_node.recall.sampler import RecallSampler
from annheal.shard_node.recall.sampling.sampled_query import FRESH_QUERIES, Sample


@dataclass(frozen=True, slots=True)
class _Round:
    """The queries of one interval."""

    number: int
    began_s: float
    sample: Sample


class Rounds:
    """Chooses the queries with which all shards of a collection are measured in one interval.

    Rounds begin at multiples of the interval since the epoch, so that nodes choose theirs at the
    same time. What a shard measures again in a round is measured with the queries of that time: the
    same ones would be no new evidence.
    """

    def __init__(self, sampler: RecallSampler, *, interval_s: float) -> None:
        self._sampler = sampler
        self._interval_s = interval_s
        self._rounds: dict[str, _Round] = {}

    def begin(
        self, collection_id: str, *, wall_s: float, at_s: float, queries_max: int | None
    ) -> None:
        """Begin the round of `wall_s`, seconds since the epoch, unless it has begun.

        `at_s` is the same time by a clock that never goes back.
        """
        number = int(wall_s // self._interval_s)
        present = self._rounds.get(collection_id)
        if present is None or present.number != number:
            sample = self._sampler.draw(collection_id, queries_max=queries_max, turn=number)
            self._rounds[collection_id] = _Round(number, at_s, sample)

    def began_after(self, collection_id: str, at_s: float) -> bool:
        """Return whether the present round began after `at_s`."""
        present = self._rounds.get(collection_id)
        return present is not None and at_s < present.began_s

    def end(self, collection_id: str) -> None:
        """End the present round: its queries are no longer like those of now."""
        present = self._rounds.get(collection_id)
        if present is not None:
            self._rounds[collection_id] = replace(present, began_s=-math.inf, sample=Sample(()))

    def sample(
        self, collection_id: str, *, measured_s: float, wall_s: float, queries_max: int | None
    ) -> Sample:
        """Return the queries of the round for a shard that was last measured at `measured_s`.

        Those of now, `wall_s` as above, if it was measured in this round, or if the round has few
        queries or has ended.
        """
        present = self._rounds.get(collection_id)
        is_first = present is not None and measured_s < present.began_s
        if present is not None and is_first and len(present.sample.queries) >= FRESH_QUERIES:
            return present.sample
        turn = int(wall_s // self._interval_s)
        return self._sampler.draw(collection_id, queries_max=queries_max, turn=turn)

    def forget_all_but(self, collection_ids: Iterable[str]) -> None:
        """Drop the rounds of all other collections."""
        present = set(collection_ids)
        for gone in [one for one in self._rounds if one not in present]:
            del self._rounds[gone]
