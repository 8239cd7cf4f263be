"""Vectors as 8-bit codes, and how far a product of codes may be from the true one.

Where few directions hold most of what tells vectors apart, as in those of language models, a row's
codes are cut into **planes**: the first holds its components along the strongest directions and
usually decides alone that the row is not among the best, the last those along the weakest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from annheal.model.records import Float32Matrix

CODE_MAX = 127
QUERY_CODE_MAX = 127 * 256
"""Its higher byte, rounded, is a signed one."""
LINE_BYTES = 64
ENCODE_ROWS = 8_192
"""Rows encoded at a time: 12 MiB of 384 floats."""
AXES_ROWS = 8_192
"""Rows of which directions are made; an index of fewer has one plane."""
PLANE_VARIANCES = (0.75, 0.96)
"""Share of the variance held at least by the planes up to the first cut, and up to the second."""
CUT_MAX = 0.7
"""Share of the components before a cut; with more, cutting saves too little."""
SAMPLE_ROWS = 256
"""Rows, and as many in the place of queries, whose products are compared with the true ones."""
SLACK_QUANTILE = 0.998
"""Of the absolute errors measured. Half of what is beyond it is in favour of the row."""
CODE_SLACK_MIN = 0.9
"""Error per unit of row scale and query length: 3.1 standard deviations of independent rounding
errors, 1 / sqrt(12) each. Data whose errors are not independent gets what is measured."""
REST_SLACK_MIN = 3.0
"""Standard deviations of the product of the planes that are left out."""
TYPICAL_COMPONENT = 4.0
"""Of the weaker directions, in standard deviations: a row with a larger one gets a wider slack."""
TYPICAL_RMS = 1.5
"""A row of a rare kind is far out in directions that are weak for all others. Beyond this no slack
is safe but the largest product that there can be."""
UNTYPICAL_SHARE_MAX = 0.05
"""With more such rows codes are not cut."""
VARIANCE_MIN = 1e-12
"""Of a direction, by that of the strongest; no sample says that others have none."""
OFFSET_ERROR = 1e-6
"""Rounding of a product with the mean, by the product of their lengths."""

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
QueryCodes = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Axes:
    """Directions by which rows are cut: a row becomes (row - mean) @ directions.

    `deviations` (d,) are those along the principal directions, from the strongest; the first plane
    mixes its own.
    """

    mean: Floats
    directions: Floats
    deviations: npt.NDArray[np.float64]
    cuts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CodedQueries:
    """Queries (n, d) as codes with their scales (n,).

    `bytes` (n, 2, d) are the codes as 256 * the first + the second. A score is what the codes give
    plus the query's offset (n,). Errors: `rests` (n, planes) of leaving out the planes
    after this one, for a row far from the query; `shares` (n, planes) more per unit of the whole
    product, because what is near the query is near it in all planes; `errors` (n, planes) of the
    codes, per unit of a row's scale.
    """

    codes: QueryCodes
    bytes: Codes
    scales: Floats
    offsets: Floats
    rests: Floats
    shares: Floats
    errors: Floats


def size_bytes_max(rows: int, dimension: int) -> int:
    """Return the memory that `RowCodes` of so many vectors may take."""
    planes = 1 if rows < AXES_ROWS else 1 + len(PLANE_VARIANCES)
    return rows * (dimension + 8 * planes)


class RowCodes:
    """Codes of all rows of one index.

    A row's codes are its components in units of the largest one by 127, so they are off by half a
    unit; each plane has a unit of its own.

    Attributes:
        planes: codes, int8, plane after plane, row after row.
        scales: what a code of one stands for, (planes, rows) float32.
        widths: codes of a row in each plane, (planes,) int64.
        factors: of the slack for the planes after this one, (planes, rows) float32.
        norms: squared lengths for squared Euclidean distances, (rows,) float32; else empty.
        untypical_share: rows with an untypical rest, for which only its length bounds it.
        code_slack: error of a product of codes, as a share of scale times query length.
        rest_slacks: of the planes after each one, in standard deviations, (planes,).
        size_bytes: memory held.
    """

    def __init__(self, vectors: Float32Matrix, *, l2: bool, cut: bool = True) -> None:
        """Encode `vectors` (rows, d), which may be mapped and unaligned.

        Without `cut`, or where cutting does not pay, in one plane.
        """
        rows, dimension = vectors.shape
        self._l2 = l2
        self._axes = _axes_of(vectors) if cut else None
        edges = [0, *(self._axes.cuts if self._axes else ()), dimension]
        self._parts = [slice(*edge) for edge in itertools.pairwise(edges)]
        self.widths = np.diff(np.array(edges, dtype=np.int64))
        self.planes = _aligned_codes(rows * dimension)
        self.scales = np.empty((len(self._parts), rows), dtype=np.float32)
        self.factors = np.zeros((len(self._parts), rows), dtype=np.float32)
        self.norms = np.empty(rows if l2 else 0, dtype=np.float32)
        for start in range(0, rows, ENCODE_ROWS):
            some = slice(start, min(start + ENCODE_ROWS, rows))
            turned = self._turned(np.array(vectors[some]), less_mean=True)
            for number, part in enumerate(self._parts):
                codes, self.scales[number, some] = _encoded(turned[:, part], CODE_MAX)
                self._plane(number)[some] = codes
            self.factors[:-1, some] = self._factors(turned)
            if l2:
                self.norms[some] = np.einsum("ij,ij->i", turned, turned)
        arrays = (self.planes, self.scales, self.factors, self.norms)
        self.size_bytes = sum(array.nbytes for array in arrays)
        self.code_slack = CODE_SLACK_MIN
        self.rest_slacks = np.full(len(self._parts), REST_SLACK_MIN, dtype=np.float32)
        self._measure_slacks(vectors)
        untypical = self.factors < 0
        self.untypical_share = float(untypical.any(axis=0).mean()) if rows else 0.0
        lengths = -self.factors / self.rest_slacks[:, None]
        np.copyto(self.factors, lengths, where=untypical)

    def coded(self, queries: Float32Matrix) -> CodedQueries:
        """Return the codes of queries (n, d)."""
        turned = self._turned(queries, less_mean=self._l2)
        # Products of 8 and of up to 16 bits, as many as there are dimensions, stay within int32.
        codes, scales = _encoded(turned, _query_code_max(queries.shape[1]))
        squares = np.square(turned, dtype=np.float64)
        starts = [part.start for part in self._parts]
        lengths = np.add.reduceat(squares, starts, axis=1)
        whole = np.maximum(lengths.sum(axis=1), np.finfo(np.float64).tiny)
        errors, rests, shares = (np.zeros(lengths.shape, dtype=np.float32) for _ in range(3))
        errors[:] = self.code_slack * np.sqrt(lengths)
        offsets = np.zeros(len(queries), dtype=np.float32)
        if self._axes is not None:
            spread = np.add.reduceat(squares * self._axes.deviations**2, starts, axis=1)
            rests[:] = self.rest_slacks * np.sqrt(_after(spread))
            shares[:] = _after(lengths) / whole[:, None]
            error = OFFSET_ERROR * np.sqrt(whole) * np.linalg.norm(self._axes.mean)
            offsets[:] = queries @ self._axes.mean + error
        if self._l2:
            # -|x - q|^2 = 2 x'q' - |x'|^2 - |q'|^2, with x' = x - mean.
            offsets[:] = -lengths.sum(axis=1)
        return CodedQueries(codes, bytes_of(codes), scales, offsets, rests, shares, errors)

    def _factors(self, turned: Floats) -> npt.NDArray[np.float64]:
        """Return the factors (cuts, n) of rows, and negated lengths for those that are untypical.

        A length is in standard deviations; times those of a query it is the largest product.
        """
        cuts = () if self._axes is None else self._axes.cuts
        factors = np.empty((len(cuts), len(turned)))
        for number, cut in enumerate(cuts):
            assert self._axes is not None
            rest = np.abs(turned[:, cut:] / self._axes.deviations[cut:])
            lengths = np.linalg.norm(rest, axis=1)
            factors[number] = np.maximum(1.0, rest.max(axis=1) / TYPICAL_COMPONENT)
            untypical = lengths > TYPICAL_RMS * np.sqrt(rest.shape[1])
            factors[number, untypical] = -lengths[untypical]
        return factors

    def _plane(self, number: int) -> Codes:
        """Return the codes of a plane, (rows, width)."""
        rows, part = self.scales.shape[1], self._parts[number]
        return self.planes[rows * part.start : rows * part.stop].reshape(rows, -1)

    def _turned(self, vectors: Floats, *, less_mean: bool) -> Floats:
        axes = self._axes
        if axes is None:
            return vectors
        turned: Floats = np.matmul(vectors - axes.mean if less_mean else vectors, axes.directions)
        return turned

    def _measure_slacks(self, vectors: Float32Matrix) -> None:
        """Compare products of codes, and of some planes alone, with the true ones: rows ask."""
        rng = np.random.default_rng(len(vectors))
        chosen = rng.integers(0, len(vectors), SAMPLE_ROWS)
        queries = np.array(vectors[rng.integers(0, len(vectors), SAMPLE_ROWS)])
        rows = self._turned(np.array(vectors[chosen]), less_mean=True).astype(np.float64)
        exact = self._turned(queries, less_mean=self._l2).astype(np.float64) @ rows.T
        asked = self.coded(queries)
        whole = asked.codes.astype(np.float64) * asked.scales[:, None]
        units = asked.errors @ self.scales[:, chosen] / CODE_SLACK_MIN
        rest = np.zeros_like(exact)
        for number, part in reversed(list(enumerate(self._parts))):
            if number < len(self._parts) - 1:
                factors = np.abs(self.factors[number, chosen])
                deviations = asked.rests[:, number, None] / REST_SLACK_MIN * factors
                self.rest_slacks[number] = max(REST_SLACK_MIN, _quantile(rest, deviations))
            plane = self._plane(number)[chosen] * self.scales[number, chosen, None]
            rest += whole[:, part] @ plane.T.astype(np.float64)
        self.code_slack = max(CODE_SLACK_MIN, _quantile(rest - exact, units))


def _axes_of(vectors: Float32Matrix) -> Axes | None:
    """Return directions with cuts that are worth making, or None."""
    rows, dimension = vectors.shape
    if rows < AXES_ROWS:
        return None
    chosen = np.random.default_rng(dimension).choice(rows, AXES_ROWS, replace=False)
    sample = np.array(vectors[np.sort(chosen)])
    mean = sample.mean(axis=0)
    sample -= mean
    limits = np.finfo(np.float32)
    wide = sample.astype(np.float64)
    covariance = wide.T @ wide / AXES_ROWS
    # What is so small or large has lost digits, or overflows with the next product.
    if not limits.tiny / limits.eps < np.trace(covariance) < limits.max * limits.eps:
        return None
    variances, directions = np.linalg.eigh(covariance)
    variances, directions = variances[::-1], directions[:, ::-1]
    variances = np.maximum(variances, VARIANCE_MIN * variances[0])
    total = variances.sum()
    needed = 1 + np.searchsorted(np.cumsum(variances), np.array(PLANE_VARIANCES) * total)
    lines = {-(-int(width) // LINE_BYTES) for width in needed}
    cuts = tuple(sorted(n * LINE_BYTES for n in lines if n * LINE_BYTES <= CUT_MAX * dimension))
    if not cuts:
        return None
    # The largest component of a row is the unit of all: spread rows evenly over the first plane.
    mixing, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((cuts[0], cuts[0])))
    directions = np.hstack([directions[:, : cuts[0]] @ mixing, directions[:, cuts[0] :]])
    turned = np.ascontiguousarray(directions, dtype=np.float32)
    return Axes(mean, turned, np.sqrt(variances), cuts)


def _aligned_codes(size: int) -> Codes:
    """Return memory that begins with a cache line: a row of whole lines then touches no other."""
    memory = np.empty(size + LINE_BYTES, dtype=np.int8)
    start = -memory.ctypes.data % LINE_BYTES
    return memory[start : start + size]


def _query_code_max(dimension: int) -> int:
    return min(QUERY_CODE_MAX, (2**31 - 1) // (CODE_MAX * dimension))


def _encoded(vectors: Floats, code_max: int) -> tuple[QueryCodes, Floats]:
    """Return whole numbers up to `code_max` and what one of them stands for, row by row."""
    largest = np.abs(vectors).max(axis=1)
    scales = np.where(largest > 0, largest, np.float32(1)) / np.float32(code_max)
    codes = np.rint(vectors / scales[:, None]).astype(np.int16)
    return codes, scales.astype(np.float32)


def bytes_of(codes: QueryCodes) -> Codes:
    """Return (n, 2, d) bytes of which 256 * the first + the second are the codes (n, d)."""
    found = np.empty((len(codes), 2, codes.shape[1]), dtype=np.int8)
    high = (codes + np.int16(128)) >> 8
    found[:, 0], found[:, 1] = high, codes - (high << 8)
    return found


def _after(parts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return for each column the sum of those after it."""
    sums = np.zeros_like(parts)
    sums[:, :-1] = np.cumsum(parts[:, :0:-1], axis=1)[:, ::-1]
    return sums


def _quantile(errors: npt.NDArray[np.float64], units: npt.NDArray[np.floating[Any]]) -> float:
    """Return `SLACK_QUANTILE` of absolute errors in units that may be zero."""
    tiny = np.finfo(np.float32).tiny
    return float(np.quantile(np.abs(errors) / np.maximum(units, tiny), SLACK_QUANTILE))
