"""Vectors as 8-bit codes, and how far a product of codes may be from the true one.

Where a few principal axes hold most of the variance, as in embeddings of language models, a row's
components along them come in **parts**, the axes with the largest variance first, and its codes in
**planes**. The first plane holds the higher nibbles of the codes of the first part, and rules most
rows out alone; the lower nibbles and the other parts are read for the few rows that are left.
docs/internals/codes.md explains layout, bounds and constants.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from annheal.index.codes.code_axes import AXES_ROWS, PART_VARIANCES, Axes, Doubles, Floats, axes_of
from annheal.index.codes.code_layout import (
    BEGIN,
    COLUMNS,
    GROUPS,
    HIGH,
    KIND,
    LINE_BYTES,
    LOW,
    NIBBLE_CENTER,
    NIBBLE_STEP,
    OTHER_GROUPS,
    PART,
    SCALE_GROUPS,
    SEEN,
    WHOLE,
    WIDTH,
)
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.code_arrays import CodedQueries, RowCodeArrays
from annheal.index.kernels.loaded import machine_code
from annheal.model.records import Float32Matrix

CODE_MAX = 127
NIBBLES_CODE_MAX = 119
"""Largest code of two nibbles: 16 times one of -7 to 7 plus one of -8 to 7."""
QUERY_CODE_MAX = 127 * 256
"""Its higher byte, rounded, is a signed one."""
ENCODE_ROWS = 8_192
"""Rows encoded at a time: 12 MiB of 384 floats."""
SAMPLE_ROWS = 256
"""Rows, and as many in the place of queries, whose products are compared with the true ones."""
SLACK_QUANTILE = 0.998
"""Of the absolute errors measured. Half of what is beyond it is in favour of the row."""
CODE_SLACK_MIN = 0.9
"""Error per unit of row scale and query length: 3.1 standard deviations of independent rounding
errors, 1 / sqrt(12) each. Data whose errors are not independent gets what is measured."""
REST_SLACK_MIN = 4.2
"""Standard deviations of the product of the parts that are left out. With 3.0, or the 3.5 that
were measured at random, far filters lost 11 of 10,000 rows, with 4.2 five, in the same time."""
TYPICAL_COMPONENT = 4.0
"""Of the axes with less variance, in standard deviations: a row with a larger component gets a
wider slack."""
TYPICAL_RMS = 1.5
"""Length of a row's rest by the usual one beyond which the row is an outlier. Its slack is the
largest product that there can be: a rare row may lie far out along axes with little variance."""
OUTLIER_SHARE_MAX = 0.05
"""With a larger share of outliers codes are not cut."""
HIGH_SLACK_MAX = 4 * CODE_SLACK_MIN
"""Nor where the errors of higher nibbles alone add up to more, per unit as `CODE_SLACK_MIN`."""
FACTOR_GROUPS = (0.9, 0.97, 0.995)
"""Shares of the rows, by rising factor, at which a new group of factors begins."""
OFFSET_ERROR = 1e-6
"""Rounding of a product with the mean, by the product of their lengths."""

Int8s = npt.NDArray[np.int8]
Scaled: TypeAlias = tuple[npt.NDArray[np.int16], Floats]
"""Int8s of vectors (n, width) and what a code of one stands for, (n,)."""


def size_bytes_max(rows: int, dimension: int, *, l2: bool) -> int:
    """Return the memory that `RowCodes` of so many vectors may take."""
    parts = 1 if rows < AXES_ROWS else 1 + len(PART_VARIANCES)
    return rows * (dimension + 8 * parts + 1 + (4 if l2 else 0))


class RowCodes:
    """Int8s of all rows of one index.

    A row's codes are its components in units of the largest one by 127, so they are off by half a
    unit; each part has a unit of its own.

    Attributes:
        planes: codes, int8, plane after plane, row after row.
        layout: what the planes hold, (planes, COLUMNS) int64, see `code_layout`.
        scales: what a code of one stands for, (parts, rows) float32.
        factors: of the slack for the parts after this one, (parts, rows) float32.
        weights: how the squared error of a part's codes grows with each plane, (planes,) float32.
        norms: squared lengths, for squared Euclidean distances, (rows,) float32; else empty.
        groups: the group of each row, uint8, (rows,): its rows share a threshold.
        group_bounds: least and largest scale of the first part, largest factor of it and least
            norm of the rows of a group, (groups, 4) float64.
        arrays: the arrays above, as kernels take them.
        outlier_share: share of the rows whose rest is so long that only its length bounds it.
        code_slack: error of a product of codes, as a share of scale times query length.
        high_slack: as `code_slack` of higher nibbles alone, by `NIBBLE_STEP`.
        rest_slacks: of the parts after each one, in standard deviations, (parts,).
        size_bytes: memory held.
    """

    def __init__(
        self,
        vectors: Float32Matrix,
        *,
        l2: bool,
        cut: bool = True,
        yield_point: Callable[[], None] = lambda: None,
    ) -> None:
        """Encode `vectors` (rows, d), which may be mapped and unaligned; waits for the kernels.

        Without `cut`, or where cutting does not pay, in one plane. `yield_point` is called before
        each block of rows, and ends the work by raising.
        """
        rows, dimension = vectors.shape
        self._l2 = l2
        self._axes = axes_of(vectors) if cut else None
        self._edges = np.array(
            [0, *(self._axes.cuts if self._axes else ()), dimension], dtype=np.int64
        )
        self._parts = [slice(*edge) for edge in itertools.pairwise(self._edges.tolist())]
        self._query_axes = _query_axes(self._axes, dimension)
        parts = len(self._parts)
        self.layout = _layout(self._parts)
        self.planes = _aligned_codes(rows * dimension)
        self.scales = np.empty((parts, rows), dtype=np.float32)
        self.factors = np.zeros((parts, rows), dtype=np.float32)
        self.norms = np.empty(rows if l2 else 0, dtype=np.float32)
        for start in range(0, rows, ENCODE_ROWS):
            yield_point()
            self._encode(np.array(vectors[start : start + ENCODE_ROWS]), start)
        self.code_slack = self.high_slack = CODE_SLACK_MIN
        self.rest_slacks = np.full(parts, REST_SLACK_MIN)
        self._measure_slacks(vectors)
        ratio = (NIBBLE_STEP * self.high_slack / self.code_slack) ** 2
        added = {WHOLE: 1.0, HIGH: ratio, LOW: 1.0 - ratio}
        self.weights = np.array([added[kind] for kind in self.layout[:, KIND]], dtype=np.float32)
        outliers = self.factors < 0
        self.outlier_share = float(outliers.any(axis=0).mean()) if rows else 0.0
        lengths = -self.factors / self.rest_slacks[:, None]
        np.copyto(self.factors, lengths, where=outliers, casting="same_kind")
        self.groups, self.group_bounds = _groups_of(self.scales[0], self.factors[0], self.norms)
        self.arrays = RowCodeArrays(
            planes=self.planes,
            layout=self.layout,
            scales=self.scales,
            factors=self.factors,
            weights=self.weights,
            norms=self.norms,
            groups=self.groups,
            group_bounds=self.group_bounds,
        )
        large = (self.planes, self.scales, self.factors, self.norms, self.groups)
        self.size_bytes = sum(array.nbytes for array in large)

    @property
    def cut(self) -> bool:
        """Whether the codes are in several planes."""
        return len(self.layout) > 1

    def coded(self, queries: Float32Matrix) -> CodedQueries:
        """Return the codes of queries (n, d)."""
        (n, dimension), parts = queries.shape, len(self._parts)
        rests, shares, errors = np.empty((3, n, parts), dtype=np.float32)
        scales, offsets = np.empty((2, n), dtype=np.float32)
        coded = CodedQueries(
            vectors=queries.reshape(-1),
            codes=np.empty(n * dimension, dtype=np.int16),
            bytes=np.empty(n * 2 * dimension, dtype=np.int8),
            sums=np.empty((n, parts), dtype=np.int32),
            scales=scales,
            offsets=offsets,
            rests=rests,
            shares=shares,
            errors=errors,
        )
        _, codes, bytes_, *others = coded
        machine_code(Kernel.CODE_QUERIES)(
            queries,
            *self._query_axes,
            self._edges,
            self.code_slack,
            self.rest_slacks,
            # Products of 8 and of up to 16 bits, as many as there are dimensions, fit in int32.
            min(QUERY_CODE_MAX, (2**31 - 1) // (CODE_MAX * dimension)),
            OFFSET_ERROR,
            self._l2,
            codes.reshape(n, dimension),
            bytes_.reshape(n, 2, dimension),
            *others,
        )
        return coded

    def _encode(self, vectors: Floats, start: int) -> None:
        """Fill in the codes of the rows from `start` on."""
        block = slice(start, start + len(vectors))
        rotated = self._rotated(vectors)
        encoded = [self._encoded(rotated, part) for part in range(len(self._parts))]
        for part, (_, scales) in enumerate(encoded):
            self.scales[part, block] = scales
        for plane, (kind, part) in enumerate(self.layout[:, [KIND, PART]].tolist()):
            codes = encoded[part][0]
            self._plane(plane)[block] = codes if kind == WHOLE else _packed(_nibbles(codes, kind))
        self.factors[:-1, block] = self._factors(rotated)
        if self._l2:
            less = vectors if self._axes is None else vectors - self._axes.mean
            self.norms[block] = np.einsum("ij,ij->i", less, less)

    def _encoded(self, rotated: Floats, part: int) -> Scaled:
        """Return the codes of one part."""
        in_nibbles = self.cut and part == 0
        return _encoded(rotated[:, self._parts[part]], NIBBLES_CODE_MAX if in_nibbles else CODE_MAX)

    def _plane(self, number: int) -> Int8s:
        """Return the codes of a plane, (rows, width)."""
        rows = self.scales.shape[1]
        start, stop = (rows * int(self.layout[:n, WIDTH].sum()) for n in (number, number + 1))
        return self.planes[start:stop].reshape(rows, -1)

    def _factors(self, rotated: Floats) -> Doubles:
        """Return the factors (cuts, n) of rows, and the negated lengths of outliers.

        A length is in standard deviations; its product with the length of a query, whose components
        are multiplied with the deviations, is the largest product that there can be.
        """
        cuts = () if self._axes is None else self._axes.cuts
        factors = np.empty((len(cuts), len(rotated)))
        for number, cut in enumerate(cuts):
            assert self._axes is not None
            rest = np.abs(rotated[:, cut:] / self._axes.deviations[cut:])
            lengths = np.linalg.norm(rest, axis=1)
            factors[number] = np.maximum(1.0, rest.max(axis=1) / TYPICAL_COMPONENT)
            outliers = lengths > TYPICAL_RMS * np.sqrt(rest.shape[1])
            factors[number, outliers] = -lengths[outliers]
        return factors

    def _rotated(self, vectors: Floats) -> Floats:
        axes = self._axes
        if axes is None:
            return vectors
        rotated: Floats = np.matmul(vectors - axes.mean, axes.principal)
        return rotated

    def _measure_slacks(self, vectors: Float32Matrix) -> None:
        """Measure slacks on products of codes, whole and of some parts, with rows as queries."""
        rng = np.random.default_rng(len(vectors))
        chosen = rng.integers(0, len(vectors), SAMPLE_ROWS)
        rows = np.array(vectors[chosen])
        queries = np.array(vectors[rng.integers(0, len(vectors), SAMPLE_ROWS)])
        rotated, mean = self._rotated(rows), self._query_axes[0].astype(np.float64)
        exact = (queries - mean if self._l2 else queries) @ (rows - mean).T
        coded = self.coded(queries)
        whole = coded.codes.reshape(queries.shape).astype(np.float64) * coded.scales[:, None]
        squares, rest = np.zeros_like(exact), np.zeros_like(exact)
        for part, components in reversed(list(enumerate(self._parts))):
            if part < len(self._parts) - 1:
                factors = np.abs(self.factors[part, chosen])
                deviations = coded.rests[:, part, None] / REST_SLACK_MIN * factors
                self.rest_slacks[part] = max(REST_SLACK_MIN, _quantile(rest, deviations))
            codes, scales = self._encoded(rotated, part)
            units = np.outer(coded.errors[:, part] / CODE_SLACK_MIN, scales.astype(np.float64))
            squares += units**2
            rest += whole[:, components] @ (codes * scales[:, None]).T
            if self.cut and part == 0:
                low = _nibbles(codes, LOW) * scales[:, None]
                missing = _quantile(whole[:, components] @ low.T, NIBBLE_STEP * units)
                self.high_slack = max(CODE_SLACK_MIN, missing)
        self.code_slack = max(CODE_SLACK_MIN, _quantile(rest - exact, np.sqrt(squares)))


def _query_axes(axes: Axes | None, dimension: int) -> tuple[Floats, npt.NDArray[np.uint16], Floats]:
    """Return mean, axes as bits of float16, and deviations, as `code_queries` takes them."""
    if axes is None:
        nothing = np.zeros(dimension, dtype=np.float32)
        return nothing, np.zeros(0, dtype=np.uint16), nothing
    small = np.ascontiguousarray(axes.principal.T).astype(np.float16)
    return axes.mean, small.view(np.uint16).reshape(-1), axes.deviations.astype(np.float32)


def _layout(parts: list[slice]) -> npt.NDArray[np.int64]:
    """Return the planes of parts, of which the first is cut in nibbles unless it is the only one.

    Its lower nibbles tell less of a row than the second of three parts.
    """
    widths = [part.stop - part.start for part in parts]
    planes = [(widths[part], WHOLE, part) for part in range(1, len(parts))]
    if not planes:
        planes = [(widths[0], WHOLE, 0)]
    else:
        planes.insert(len(planes) - 1, (widths[0] // 2, LOW, 0))
        planes.insert(0, (widths[0] // 2, HIGH, 0))
    seen = np.maximum.accumulate([part for _, _, part in planes]).tolist()
    layout = np.zeros((len(planes), COLUMNS), dtype=np.int64)
    for number, (width, kind, part) in enumerate(planes):
        layout[number, [WIDTH, KIND, PART, BEGIN, SEEN]] = (
            *(width, kind, part),
            *(parts[part].start, seen[number]),
        )
    return layout


def _groups_of(
    scales: Floats, factors: Floats, norms: Floats
) -> tuple[npt.NDArray[np.uint8], Doubles]:
    """Sort rows into groups: by scale, and by norm where there are norms, else by factor."""
    if len(norms):
        counts, others = (OTHER_GROUPS, SCALE_GROUPS), norms
    else:
        counts, others = (SCALE_GROUPS, OTHER_GROUPS), factors
    groups = np.zeros(len(scales), dtype=np.int64)
    for values, count in zip((scales, others), counts, strict=True):
        # Most factors are 1: the groups are for the rest of them.
        shares = FACTOR_GROUPS if values is factors else np.arange(1, count) / count
        groups = groups * count + np.searchsorted(np.quantile(values, shares), values)
    group_bounds = np.array([[np.inf, 0.0, 0.0, np.inf if len(norms) else 0.0]] * GROUPS)
    np.minimum.at(group_bounds[:, 0], groups, scales)
    np.maximum.at(group_bounds[:, 1], groups, scales)
    np.maximum.at(group_bounds[:, 2], groups, factors)
    if len(norms):
        np.minimum.at(group_bounds[:, 3], groups, norms)
    group_bounds[np.isinf(group_bounds[:, 0])] = 1.0  # no row is in this group
    return groups.astype(np.uint8), group_bounds


def _aligned_codes(size: int) -> Int8s:
    """Return memory that begins with a cache line: a row of whole lines then touches no other."""
    memory = np.empty(size + LINE_BYTES, dtype=np.int8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + size]


def _encoded(vectors: Floats, code_max: int) -> Scaled:
    """Return whole numbers up to `code_max` and what one of them stands for, row by row."""
    largest = np.abs(vectors).max(axis=1)
    scales = np.where(largest > 0, largest, np.float32(1)) / np.float32(code_max)
    codes = np.rint(vectors / scales[:, None]).astype(np.int16)
    return codes, scales.astype(np.float32)


def _nibbles(codes: npt.NDArray[np.int16], kind: int) -> npt.NDArray[np.int16]:
    """Return the higher or lower nibbles of codes."""
    high = (codes + np.int16(NIBBLE_CENTER)) // np.int16(NIBBLE_STEP)
    return high if kind == HIGH else codes - high * np.int16(NIBBLE_STEP)


def _packed(nibbles: npt.NDArray[np.int16]) -> Int8s:
    """Return nibbles (n, width), of which the width is one of `NIBBLE_LINE`s, as bytes."""
    raised = (nibbles + np.int16(NIBBLE_CENTER)).reshape(len(nibbles), -1, 2, LINE_BYTES)
    both = raised[:, :, 0] | raised[:, :, 1] << 4
    return both.astype(np.uint8).view(np.int8).reshape(len(nibbles), -1)


def _quantile(errors: npt.NDArray[np.float64], units: npt.NDArray[np.floating[Any]]) -> float:
    """Return `SLACK_QUANTILE` of absolute errors in units that may be zero."""
    tiny = np.finfo(np.float32).tiny
    return float(np.quantile(np.abs(errors) / np.maximum(units, tiny), SLACK_QUANTILE))
