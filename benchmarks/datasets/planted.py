"""Rows and pools of queries of the planted conditions, made from real embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.model.collection import Metric
from benchmarks.harness.dataset import Dataset

Float32Matrix = npt.NDArray[np.float32]

PLAIN, NEGATED, BLENDED, STORED, OUTSIDE = "plain", "negated", "blended", "stored", "outside"
"""Pools of queries: those of the data set; their negatives; means of two of them that have nothing
in common; rows that are stored; of a part of the space where no row is stored (`split` only)."""
CLUSTER = "cluster"
"""Queries near the rows that are written during a phase."""

STORED_QUERIES = 1_000
SPLIT_SHARE = 0.75
"""Share of the rows that `split` stores: those lowest on the first principal axis."""
GROUP_COPIES, GROUPED_SHARE = 25, 0.2
BLIND_SPREAD = 200.0
OFFSET = 10.0
NORM_SIGMA = 1.0
WIDE_DIMENSION, NARROW_DIMENSION = 1_536, 8
CLUSTER_NOISE = 0.3
"""Length of the noise around the centre of a cluster; the centre has length 1."""
CLUSTER_QUERIES = 300
_SEED = 20


@dataclass(frozen=True, slots=True)
class Planted:
    """What a condition stores and asks: `vectors` (n, d), and pools of queries (q, d) by name.

    `centre` (d,) is where the rows of a hot cluster are written.
    """

    vectors: Float32Matrix
    pools: Mapping[str, Float32Matrix]
    metric: Metric = Metric.COSINE

    @property
    def centre(self) -> npt.NDArray[np.float32]:
        """The first plain query: rows that are written near it are found by its neighbours."""
        centre: npt.NDArray[np.float32] = self.pools[PLAIN][0]
        return centre

    def clustered(self, rows: int, *, random: np.random.Generator) -> Float32Matrix:
        """Return vectors around the centre, (rows, d)."""
        return _around(self.centre, rows, random)


def plant(data: str, dataset: Dataset) -> Planted:
    """Return the planted data called `data`, one of `DATA`."""
    return DATA[data](dataset, np.random.default_rng(_SEED))


def _pools(queries: Float32Matrix, vectors: Float32Matrix) -> dict[str, Float32Matrix]:
    """Return the pools that every data has; all transformations of them are linear or by row."""
    random = np.random.default_rng(_SEED + 1)
    others = np.roll(random.permutation(len(queries)), 1)
    stored = random.permutation(len(vectors))[:STORED_QUERIES]
    return {
        PLAIN: queries,
        NEGATED: -queries,
        BLENDED: _unit(queries + queries[others] * random.uniform(0.8, 1.25, (len(queries), 1))),
        STORED: vectors[stored],
        CLUSTER: _around(queries[0], CLUSTER_QUERIES, random),
    }


def _plain(dataset: Dataset, random: np.random.Generator) -> Planted:
    return Planted(dataset.vectors, _pools(dataset.queries, dataset.vectors))


def _split(dataset: Dataset, random: np.random.Generator) -> Planted:
    """Store the rows on one side of the first principal axis; the pool OUTSIDE is of the other."""
    axis = _principal_axes(dataset.vectors, 1)[0]
    along, asked = dataset.vectors @ axis, dataset.queries @ axis
    border = float(np.quantile(along, SPLIT_SHARE))
    stored = dataset.vectors[along < border]
    inside = dataset.queries[asked < border]
    left_out = dataset.vectors[along >= border]
    some = random.permutation(len(left_out))[:STORED_QUERIES]
    outside = np.concatenate([dataset.queries[asked >= border], left_out[some]])
    return Planted(stored, {**_pools(inside, stored), OUTSIDE: outside})


def _groups(dataset: Dataset, random: np.random.Generator) -> Planted:
    """Replace a fifth of the rows by copies of others, in groups."""
    rows = dataset.rows
    grouped = random.permutation(rows)[: int(rows * GROUPED_SHARE)]
    source = grouped[np.arange(len(grouped)) // GROUP_COPIES * GROUP_COPIES]
    vectors = dataset.vectors.copy()
    vectors[grouped] = dataset.vectors[source]
    return Planted(vectors, _pools(dataset.queries, vectors))


def _blind(dataset: Dataset, random: np.random.Generator) -> Planted:
    """Add a dimension with 200 times the spread of the others, of which queries know nothing."""
    spread = BLIND_SPREAD * float(dataset.vectors.std())
    extra = random.normal(0.0, spread, (dataset.rows, 1)).astype(np.float32)
    vectors = np.hstack([dataset.vectors, extra])
    pools = _pools(dataset.queries, dataset.vectors)
    wide = {
        name: np.hstack([pool, np.zeros((len(pool), 1), dtype=np.float32)])
        for name, pool in pools.items()
    }
    return Planted(vectors, wide, Metric.INNER_PRODUCT)


def _heavy_tailed(dataset: Dataset, random: np.random.Generator) -> Planted:
    """Scale the rows by log-normal factors: a few long rows are near every query."""
    norms = random.lognormal(0.0, NORM_SIGMA, (dataset.rows, 1)).astype(np.float32)
    vectors = dataset.vectors * norms
    pools = _pools(dataset.queries, dataset.vectors)
    return Planted(vectors, pools, Metric.INNER_PRODUCT)


def _far_offset(dataset: Dataset, random: np.random.Generator) -> Planted:
    """Move everything far from the origin, and compare by Euclidean distance."""
    pools = _pools(dataset.queries, dataset.vectors)
    moved = {name: pool + np.float32(OFFSET) for name, pool in pools.items()}
    return Planted(dataset.vectors + np.float32(OFFSET), moved, Metric.L2)


def _narrow(dataset: Dataset, random: np.random.Generator) -> Planted:
    """Project onto the first 8 principal axes."""
    axes = _principal_axes(dataset.vectors, NARROW_DIMENSION)

    def projected(vectors: Float32Matrix) -> Float32Matrix:
        return _unit(vectors @ axes.T)

    vectors = projected(dataset.vectors)
    return Planted(vectors, _pools(projected(dataset.queries), vectors))


def _wide(dataset: Dataset, random: np.random.Generator) -> Planted:
    """Map to 1,536 dimensions by random rectified features, which keep what is near near."""
    weights = random.standard_normal((dataset.dimension, WIDE_DIMENSION)).astype(np.float32)

    def mapped(vectors: Float32Matrix) -> Float32Matrix:
        return _unit(np.maximum(vectors @ weights, 0.0))

    vectors = mapped(dataset.vectors)
    return Planted(vectors, _pools(mapped(dataset.queries), vectors))


def _around(
    centre: npt.NDArray[np.float32], rows: int, random: np.random.Generator
) -> Float32Matrix:
    noise = random.standard_normal((rows, len(centre))) * (CLUSTER_NOISE / np.sqrt(len(centre)))
    return _unit(centre + noise)


def _principal_axes(vectors: Float32Matrix, count: int) -> Float32Matrix:
    """Return the first principal axes, (count, d)."""
    centred = vectors - vectors.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    first: Float32Matrix = np.ascontiguousarray(axes[:, ::-1][:, :count].T, dtype=np.float32)
    return first


def _unit(vectors: npt.NDArray[np.floating]) -> Float32Matrix:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Float32Matrix = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


DATA: Mapping[str, Callable[[Dataset, np.random.Generator], Planted]] = {
    "plain": _plain,
    "split": _split,
    "groups": _groups,
    "blind": _blind,
    "heavy-tailed": _heavy_tailed,
    "far-offset": _far_offset,
    "narrow": _narrow,
    "wide": _wide,
}
