"""Pairs: records with a vector of the old and one of the new model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.errors import InvalidArgument
from annheal.model.collection import Metric

Floats = npt.NDArray[np.float32]

_TINY = np.float32(1e-30)


@dataclass(frozen=True, slots=True)
class Space:
    """The vectors of one model: `dimension` floats, compared by `metric`."""

    dimension: int
    metric: Metric

    def prepared(self, vectors: npt.ArrayLike, *, field: str) -> Floats:
        """Return `vectors` (n, dimension) as float32, of unit length where the metric is cosine.

        A zero vector stays zero. Raises `InvalidArgument`, which names `field`, for another shape
        and for NaN or infinity.
        """
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        if rows.ndim != 2 or rows.shape[1] != self.dimension:
            text = f"has the shape {rows.shape}, give (n, {self.dimension})"
            raise InvalidArgument.of(field, text)
        if not np.isfinite(rows).all():
            raise InvalidArgument.of(field, "has NaN or infinity, give finite numbers")
        return unit(rows) if self.metric is Metric.COSINE else rows

    def scores(self, queries: Floats, vectors: Floats) -> Floats:
        """Return the scores (q, n) of `vectors` (n, d) for `queries` (q, d), both prepared.

        Higher is better: cosine, inner product or the negated squared distance.
        """
        products: Floats = queries @ vectors.T
        if self.metric is not Metric.L2:
            return products
        products *= 2.0
        products -= squares(queries)[:, None]
        products -= squares(vectors)[None, :]
        return products


@dataclass(frozen=True, slots=True)
class Pairs:
    """Row i of `old` (n, d_old) and of `new` (n, d_new) belong to the same record; prepared."""

    old_space: Space
    new_space: Space
    old: Floats
    new: Floats

    @classmethod
    def of(
        cls,
        old: npt.ArrayLike,
        new: npt.ArrayLike,
        *,
        old_metric: Metric,
        new_metric: Metric,
    ) -> Pairs:
        """Return the pairs of two matrices with equally many rows, none or more.

        Raises `InvalidArgument` for different numbers of rows, another shape, NaN and infinity.
        """
        old_rows, new_rows = np.asarray(old), np.asarray(new)
        for field, rows in (("old", old_rows), ("new", new_rows)):
            if rows.ndim != 2 or rows.shape[1] == 0:
                raise InvalidArgument.of(field, f"has the shape {rows.shape}, give (n, d)")
        if len(old_rows) != len(new_rows):
            text = f"has {len(new_rows)} rows for {len(old_rows)} of old, give one for each"
            raise InvalidArgument.of("new", text)
        old_space = Space(old_rows.shape[1], old_metric)
        new_space = Space(new_rows.shape[1], new_metric)
        return cls(
            old_space,
            new_space,
            old_space.prepared(old_rows, field="old"),
            new_space.prepared(new_rows, field="new"),
        )

    def __len__(self) -> int:
        return len(self.old)

    def take(self, rows: npt.NDArray[np.int64]) -> Pairs:
        """Return the pairs with these numbers, in this order."""
        return Pairs(self.old_space, self.new_space, self.old[rows], self.new[rows])


def squares(vectors: Floats) -> Floats:
    """Return the squared lengths (n,) of `vectors` (n, d)."""
    found: Floats = np.einsum("ij,ij->i", vectors, vectors)
    return found


def unit(vectors: Floats) -> Floats:
    """Return `vectors` (n, d) at length 1; zero stays zero, and lengths do not overflow."""
    largest = np.maximum(np.abs(vectors).max(axis=1, keepdims=True, initial=0.0), _TINY)
    scaled = vectors / largest
    lengths = np.maximum(np.sqrt(squares(scaled))[:, None], _TINY)
    found: Floats = scaled / lengths
    return found
