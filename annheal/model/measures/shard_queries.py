"""What one shard found of each measured query: parts from which merged answers are rebuilt."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]

FOUND: Final = 1
"""Mark of an exact hit that the shard would find now."""
KNOWN: Final = 2
"""Mark of an exact hit that was visible to the answer that was given, and is not replaced since."""
SERVED: Final = 4
"""Mark of an exact hit that was in the answer that was given."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardQueries:
    """The sampled queries that one shard measured last: position i of each column is one query.

    A query over several shards has one number, which its coordinator drew, so the parts of its
    shards are found by it. A shard's part has the scores of its own exact hits, best first. They
    say which of them belong into the merged answer, and the marks say which of these were found.

    Attributes:
        shard: number of the shard.
        measured_at_s: when the measurement ended, seconds since the epoch.
        valid_s: the age of the newest query at which a measurement says nothing about now.
        numbers: (n,) uint64.
        same: (n,) uint64, equal for queries with the same vector, k and filter.
        ks: (n,) int64, hits that the client asked for.
        filters: (n,) uint64, `filter_number` of the filter; 0: there is none.
        own: (n,) bool, whether the client set an objective or an ef.
        objectives: (n,) float64, the objective that it set; NaN: none.
        matches, live_rows: (n,) int64, rows of the shard that match, and all.
        sampled_at_s: (n,) float64, seconds since the epoch.
        depths: (n,) int64, exact hits of the shard in `scores`, at most `depth_max`.
        more: (n,) bool, whether the shard has further exact hits, of lower or equal scores.
        scores: (sum(depths),) float32, query by query, best first.
        marks: (sum(depths),) uint8: `FOUND`, `KNOWN` and `SERVED` of each exact hit.
        served: (n,) bool, whether the answer that was given is known.
        cuts: (n,) float32, the lowest score of it that is known; -inf: it is known whole.
        gone: (n,) int64, hits of the shard in it whose rows were replaced or deleted since.
        gone_scores: (sum(gone),) float32, their scores.
        in_band: (n,) bool, whether the query is of the sample of its band; else only of its tag's.
        tags: (n,) uint64, `tag_number` of the tag of whose sample it is; 0: of none.
    """

    shard: int
    measured_at_s: float
    valid_s: float
    numbers: Numbers
    same: Numbers
    ks: npt.NDArray[np.int64]
    filters: Numbers
    own: npt.NDArray[np.bool_]
    objectives: npt.NDArray[np.float64]
    matches: npt.NDArray[np.int64]
    live_rows: npt.NDArray[np.int64]
    sampled_at_s: npt.NDArray[np.float64]
    depths: npt.NDArray[np.int64]
    more: npt.NDArray[np.bool_]
    scores: npt.NDArray[np.float32]
    marks: npt.NDArray[np.uint8]
    served: npt.NDArray[np.bool_]
    cuts: npt.NDArray[np.float32]
    gone: npt.NDArray[np.int64]
    gone_scores: npt.NDArray[np.float32]
    in_band: npt.NDArray[np.bool_]
    tags: Numbers

    def __eq__(self, other: object) -> bool:
        """Return whether all columns have equal values; NaN equals NaN."""
        if not isinstance(other, ShardQueries):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, one.name), getattr(other, one.name), equal_nan=True)
            for one in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]  # it holds arrays
