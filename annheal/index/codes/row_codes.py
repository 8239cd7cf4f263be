"""Vectors as 8-bit codes, and how far a product of codes may be from the true one.

Where few directions hold most of what tells vectors apart, as in those of language models, a row's
components along them come in **parts**, the strongest first, and its codes in **planes**. The first
plane holds the higher halves of the codes of the first part, and usually decides alone that the row
is not among the best; the lower halves and the other parts are read for the few that are left.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from annheal.index.codes.code_axes import AXES_ROWS, PART_VARIANCES, Axes, Doubles, Floats, axes_of
from annheal.index.codes.code_layout import (
    BEGIN,
    COLUMNS,
    HALF_CENTER,
    HALF_STEP,
    HIGH,
    KIND,
    KINDS,
    LINE_BYTES,
    LOW,
    OTHER_KINDS,
    PART,
    SCALE_KINDS,
    SEEN,
    WHOLE,
    WIDTH,
)
from annheal.index.kernels.catalog import Kernel
from annheal.index.kernels.loaded import machine_code
from annheal.model.records import Float32Matrix

CODE_MAX = 127
HALVED_CODE_MAX = 119
"""Of codes cut in halves: 16 times one of -7 to 7 plus one of -8 to 7."""
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
"""Of the weaker directions, in standard deviations: a row with a larger one gets a wider slack."""
TYPICAL_RMS = 1.5
"""A row of a rare kind is far out in directions that are weak for all others. Beyond this no slack
is safe but the largest product that there can be."""
UNTYPICAL_SHARE_MAX = 0.05
"""With more such rows codes are not cut."""
HALF_SLACK_MAX = 4 * CODE_SLACK_MIN
"""Nor where the errors of higher halves add up to more, per unit as `CODE_SLACK_MIN`."""
FACTOR_KINDS = (0.9, 0.97, 0.995)
"""Shares of rows by which kinds of factors are told apart."""
OFFSET_ERROR = 1e-6
"""Rounding of a product with the mean, by the product of their lengths."""

Codes = npt.NDArray[np.int8]
Scaled: TypeAlias = tuple[npt.NDArray[np.int16], Floats]
"""Codes of vectors (n, width) and what a code of one stands for, (n,)."""


@dataclass(frozen=True, slots=True)
class CodedQueries:
    """Queries (n, d) as codes, int16, with their scales (n,).

    `bytes` (n, 2, d) are the codes as 256 * the first + the second, `sums` (n, parts) of them. A
    score is what the codes give plus the query's offset (n,). Errors: `rests` (n, parts) of leaving
    out the parts after this one, for a row far from the query; `shares` (n, parts) more per unit of
    the whole product, because what is near the query is near it in all parts; `errors` (n, parts)
    of the codes, per unit of a row's scale.
    """

    codes: npt.NDArray[np.int16]
    bytes: Codes
    sums: npt.NDArray[np.int32]
    scales: Floats
    offsets: Floats
    rests: Floats
    shares: Floats
    errors: Floats


def size_bytes_max(rows: int, dimension: int) -> int:
    """Return the memory that `RowCodes` of so many vectors may take."""
    parts = 1 if rows < AXES_ROWS else 1 + len(PART_VARIANCES)
    return rows * (dimension + 8 * parts + 1)


class RowCodes:
    """Codes of all rows of one index.

    A row's codes are its components in units of the largest one by 127, so they are off by half a
    unit; each part has a unit of its own.

    Attributes:
        planes: codes, int8, plane after plane, row after row.
        layout: what the planes hold, (planes, COLUMNS) int64, see `code_layout`.
        scales: what a code of one stands for, (parts, rows) float32.
        factors: of the slack for the parts after this one, (parts, rows) float32.
        weights: how the squared error of a part's codes grows with each plane, (planes,) float32.
        norms: squared lengths, for squared Euclidean distances, (rows,) float32; else empty.
        kinds: uint8, (rows,), by which rows are alike.
        classes: least and largest scale of the first part, largest factor of it and least norm of
            the rows of a kind, (kinds, 4) float64.
        untypical_share: rows with an untypical rest, for which only its length bounds it.
        code_slack: error of a product of codes, as a share of scale times query length.
        half_slack: as `code_slack` of higher halves alone, by `HALF_STEP`.
        rest_slacks: of the parts after each one, in standard deviations, (parts,).
        size_bytes: memory held.
    """

    def __init__(
        self,
        vectors: Float32Matrix,
        *,
        l2: bool,
        cut: bool = True,
        checkpoint: Callable[[], None] = lambda: None,
    ) -> None:
        """Encode `vectors` (rows, d), which may be mapped and unaligned; waits for the kernels.

        Without `cut`, or where cutting does not pay, in one plane. `checkpoint` is called before
        each block of rows, and ends the work by raising.
        """
        rows, dimension = vectors.shape
        self._l2 = l2
        self._axes = axes_of(vectors) if cut else None
        self._edges = np.array(
            [0, *(self._axes.cuts if self._axes else ()), dimension], dtype=np.int64
        )
        self._parts = [slice(*edge) for edge in itertools.pairwise(self._edges.tolist())]
        self._given = _given(self._axes, dimension)
        parts = len(self._parts)
        self.layout = _layout(self._parts)
        self.planes = _aligned_codes(rows * dimension)
        self.scales = np.empty((parts, rows), dtype=np.float32)
        self.factors = np.zeros((parts, rows), dtype=np.float32)
        self.norms = np.empty(rows if l2 else 0, dtype=np.float32)
        for start in range(0, rows, ENCODE_ROWS):
            checkpoint()
            self._encode(np.array(vectors[start : start + ENCODE_ROWS]), start)
        self.code_slack = self.half_slack = CODE_SLACK_MIN
        self.rest_slacks = np.full(parts, REST_SLACK_MIN)
        self._measure_slacks(vectors)
        ratio = (HALF_STEP * self.half_slack / self.code_slack) ** 2
        added = {WHOLE: 1.0, HIGH: ratio, LOW: 1.0 - ratio}
        self.weights = np.array([added[kind] for kind in self.layout[:, KIND]], dtype=np.float32)
        untypical = self.factors < 0
        self.untypical_share = float(untypical.any(axis=0).mean()) if rows else 0.0
        lengths = -self.factors / self.rest_slacks[:, None]
        np.copyto(self.factors, lengths, where=untypical, casting="same_kind")
        self.kinds, self.classes = _kinds_of(self.scales[0], self.factors[0], self.norms)
        arrays = (self.planes, self.scales, self.factors, self.norms, self.kinds)
        self.size_bytes = sum(array.nbytes for array in arrays)

    @property
    def cut(self) -> bool:
        """Whether the codes are in several planes."""
        return len(self.layout) > 1

    def coded(self, queries: Float32Matrix) -> CodedQueries:
        """Return the codes of queries (n, d)."""
        (n, dimension), parts = queries.shape, len(self._parts)
        rests, shares, errors = np.empty((3, n, parts), dtype=np.float32)
        scales, offsets = np.empty((2, n), dtype=np.float32)
        asked = CodedQueries(
            codes=np.empty((n, dimension), dtype=np.int16),
            bytes=np.empty((n, 2, dimension), dtype=np.int8),
            sums=np.empty((n, parts), dtype=np.int32),
            scales=scales,
            offsets=offsets,
            rests=rests,
            shares=shares,
            errors=errors,
        )
        machine_code(Kernel.CODE_QUERIES)(
            queries,
            *self._given,
            self._edges,
            self.code_slack,
            self.rest_slacks,
            # Products of 8 and of up to 16 bits, as many as there are dimensions, fit in int32.
            min(QUERY_CODE_MAX, (2**31 - 1) // (CODE_MAX * dimension)),
            OFFSET_ERROR,
            self._l2,
            asked.codes,
            asked.bytes,
            asked.sums,
            scales,
            offsets,
            rests,
            shares,
            errors,
        )
        return asked

    def _encode(self, vectors: Floats, start: int) -> None:
        """Fill in the codes of the rows from `start` on."""
        some = slice(start, start + len(vectors))
        turned = self._turned(vectors)
        encoded = [self._encoded(turned, part) for part in range(len(self._parts))]
        for part, (_, scales) in enumerate(encoded):
            self.scales[part, some] = scales
        for plane, (kind, part) in enumerate(self.layout[:, [KIND, PART]].tolist()):
            codes = encoded[part][0]
            self._plane(plane)[some] = codes if kind == WHOLE else _packed(_half(codes, kind))
        self.factors[:-1, some] = self._factors(turned)
        if self._l2:
            less = vectors if self._axes is None else vectors - self._axes.mean
            self.norms[some] = np.einsum("ij,ij->i", less, less)

    def _encoded(self, turned: Floats, part: int) -> Scaled:
        """Return the codes of one part."""
        halved = self.cut and part == 0
        return _encoded(turned[:, self._parts[part]], HALVED_CODE_MAX if halved else CODE_MAX)

    def _plane(self, number: int) -> Codes:
        """Return the codes of a plane, (rows, width)."""
        rows = self.scales.shape[1]
        start, stop = (rows * int(self.layout[:n, WIDTH].sum()) for n in (number, number + 1))
        return self.planes[start:stop].reshape(rows, -1)

    def _factors(self, turned: Floats) -> Doubles:
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

    def _turned(self, vectors: Floats) -> Floats:
        axes = self._axes
        if axes is None:
            return vectors
        turned: Floats = np.matmul(vectors - axes.mean, axes.directions)
        return turned

    def _measure_slacks(self, vectors: Float32Matrix) -> None:
        """Compare products of codes, and of some parts alone, with the true ones: rows ask."""
        rng = np.random.default_rng(len(vectors))
        chosen = rng.integers(0, len(vectors), SAMPLE_ROWS)
        rows = np.array(vectors[chosen])
        queries = np.array(vectors[rng.integers(0, len(vectors), SAMPLE_ROWS)])
        turned, mean = self._turned(rows), self._given[0].astype(np.float64)
        exact = (queries - mean if self._l2 else queries) @ (rows - mean).T
        asked = self.coded(queries)
        whole = asked.codes.astype(np.float64) * asked.scales[:, None]
        squares, rest = np.zeros_like(exact), np.zeros_like(exact)
        for part, components in reversed(list(enumerate(self._parts))):
            if part < len(self._parts) - 1:
                factors = np.abs(self.factors[part, chosen])
                deviations = asked.rests[:, part, None] / REST_SLACK_MIN * factors
                self.rest_slacks[part] = max(REST_SLACK_MIN, _quantile(rest, deviations))
            codes, scales = self._encoded(turned, part)
            units = np.outer(asked.errors[:, part] / CODE_SLACK_MIN, scales.astype(np.float64))
            squares += units**2
            rest += whole[:, components] @ (codes * scales[:, None]).T
            if self.cut and part == 0:
                low = _half(codes, LOW) * scales[:, None]
                missing = _quantile(whole[:, components] @ low.T, HALF_STEP * units)
                self.half_slack = max(CODE_SLACK_MIN, missing)
        self.code_slack = max(CODE_SLACK_MIN, _quantile(rest - exact, np.sqrt(squares)))


def _given(axes: Axes | None, dimension: int) -> tuple[Floats, npt.NDArray[np.uint16], Floats]:
    """Return mean, directions as bits of halves, and deviations, as `code_queries` takes them."""
    if axes is None:
        nothing = np.zeros(dimension, dtype=np.float32)
        return nothing, np.zeros(0, dtype=np.uint16), nothing
    halves = np.ascontiguousarray(axes.directions.T).astype(np.float16)
    return axes.mean, halves.view(np.uint16).reshape(-1), axes.deviations.astype(np.float32)


def _layout(parts: list[slice]) -> npt.NDArray[np.int64]:
    """Return the planes of parts, of which the first is cut in halves unless it is the only one.

    Its lower halves tell less of a row than the second of three parts.
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


def _kinds_of(
    scales: Floats, factors: Floats, norms: Floats
) -> tuple[npt.NDArray[np.uint8], Doubles]:
    """Sort rows into kinds: by scale, and by norm where there are norms, else by factor."""
    if len(norms):
        counts, others = (OTHER_KINDS, SCALE_KINDS), norms
    else:
        counts, others = (SCALE_KINDS, OTHER_KINDS), factors
    kinds = np.zeros(len(scales), dtype=np.int64)
    for values, count in zip((scales, others), counts, strict=True):
        # Most factors are 1: the kinds are for the rest of them.
        shares = FACTOR_KINDS if values is factors else np.arange(1, count) / count
        kinds = kinds * count + np.searchsorted(np.quantile(values, shares), values)
    classes = np.array([[np.inf, 0.0, 0.0, np.inf if len(norms) else 0.0]] * KINDS)
    np.minimum.at(classes[:, 0], kinds, scales)
    np.maximum.at(classes[:, 1], kinds, scales)
    np.maximum.at(classes[:, 2], kinds, factors)
    if len(norms):
        np.minimum.at(classes[:, 3], kinds, norms)
    classes[np.isinf(classes[:, 0])] = 1.0  # no row is of this kind
    return kinds.astype(np.uint8), classes


def _aligned_codes(size: int) -> Codes:
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


def _half(codes: npt.NDArray[np.int16], kind: int) -> npt.NDArray[np.int16]:
    """Return the higher or lower halves of codes."""
    high = (codes + np.int16(HALF_CENTER)) // np.int16(HALF_STEP)
    return high if kind == HIGH else codes - high * np.int16(HALF_STEP)


def _packed(halves: npt.NDArray[np.int16]) -> Codes:
    """Return halves (n, width), of which the width is one of `HALF_LINE`s, as bytes."""
    raised = (halves + np.int16(HALF_CENTER)).reshape(len(halves), -1, 2, LINE_BYTES)
    both = raised[:, :, 0] | raised[:, :, 1] << 4
    return both.astype(np.uint8).view(np.int8).reshape(len(halves), -1)


def _quantile(errors: npt.NDArray[np.float64], units: npt.NDArray[np.floating[Any]]) -> float:
    """Return `SLACK_QUANTILE` of absolute errors in units that may be zero."""
    tiny = np.finfo(np.float32).tiny
    return float(np.quantile(np.abs(errors) / np.maximum(units, tiny), SLACK_QUANTILE))
