"""What can be decided: which vectors a query brings, and the ways to join its two lists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from annheal.embedding.bridge.estimates import Weights
from annheal.embedding.bridge.fusion import Curve
from annheal.embedding.bridge.maps import MapKind


class QueryKind(StrEnum):
    """Which vectors a query brings. The missing one is predicted from the other."""

    BOTH = "both"
    NEW = "new"
    OLD = "old"


class Join(StrEnum):
    """How the scores of the two lists are made comparable.

    `raw` compares them as they are (divided by the mean squared lengths of the models' vectors,
    unless the metric is cosine), `calibrated` sends old scores through a curve fitted on pairs,
    `ranks` uses no score; the others estimate scores of the new model with a map of that kind.
    """

    RANKS = "ranks"
    RAW = "raw"
    CALIBRATED = "calibrated"
    ORTHOGONAL = "orthogonal"
    LOW_RANK = "low_rank"
    AFFINE = "affine"
    LANDMARKS = "landmarks"

    @property
    def map_kind(self) -> MapKind | None:
        """The map that it needs."""
        return MapKind(self.value) if self.value in set(MapKind) else None


@dataclass(frozen=True, slots=True)
class Way:
    """A way to join with what was fitted for it.

    `held_out` has the recall@k on held-out pairs of every way that was tried, of this one too;
    empty if nothing could be measured, and `reason` says why.
    """

    join: Join
    weights: Weights = field(default_factory=Weights)
    curve: Curve = field(default_factory=Curve)
    held_out: Mapping[Join, float] = field(default_factory=dict)
    reason: str = ""
