"""Vectors as 8-bit codes, and how far a product of codes may be from the true one.

Where few directions hold most of what tells vectors apart, as in those of language models, a row's
codes are cut in two: the **head** holds its components along the strongest directions and usually
decides alone that the row is not among the best; the **tail** holds the others.
"""

from __future__ import annotations

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
"""Rows of which directions are made; an index of fewer has no tails."""
HEAD_VARIANCE = 0.96
"""Share of the variance that a head holds at least."""
HEAD_WIDTH_MAX = 0.7
"""Share of the components in a head; with more, cutting saves too little."""
SAMPLE_ROWS = 256
"""Rows, and as many in the place of queries, whose products are compared with the true ones."""
CODE_QUANTILE = 0.998
CODE_SLACK_MIN = 0.9
"""Error per unit of row scale and query length: 3.1 standard deviations of independent rounding
errors, 1 / sqrt(12) each. Data whose errors are not independent gets what is measured. Half of the
errors beyond it are in favour of the row, the others can lose it."""
TAIL_QUANTILE = 0.998
TAIL_SLACK_MIN = 3.0
"""Standard deviations of a tail's product. Half of what is beyond the quantile helps the row."""

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
QueryCodes = npt.NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class Axes:
    """Directions by which rows are cut in two: a row becomes (row - mean) @ directions.

    `variances` (d,) are those of the components; only those after the head's `head_width` are used.
    """

    mean: Floats
    directions: Floats
    variances: Floats
    head_width: int


@dataclass(frozen=True, slots=True)
class CodedQueries:
    """Queries (n, d) as codes, their scales (n,), and slacks (n, 3).

    `bytes` (n, 2, d) are the codes as 256 * the first + the second. An inner product is what the
    codes give plus the query's offset (n,). The slacks are the errors of leaving out the
    tail, and per unit of a row's head scale and tail scale.
    """

    codes: QueryCodes
    bytes: Codes
    scales: Floats
    offsets: Floats
    slacks: Floats


class RowCodes:
    """Codes of all rows of one index.

    A row's codes are its components in units of the largest one by 127, so they are off by half a
    unit; head and tail have a unit each.

    Attributes:
        head, tail: codes, int8, row after row; the tail may be empty.
        head_scales, tail_scales: what a code of one stands for, (rows,) float32.
        widths: codes in a head and in a tail.
        code_slack: error of a product of codes, as a share of scale times query length.
        tail_slack: product of a tail that is expected at most, in standard deviations.
        size_bytes: memory held.
    """

    def __init__(self, vectors: Float32Matrix) -> None:
        """Encode `vectors` (rows, d), which may be mapped and unaligned."""
        rows, dimension = vectors.shape
        self._axes = _axes_of(vectors)
        cut = dimension if self._axes is None else self._axes.head_width
        self.widths = (cut, dimension - cut)
        self.head, self.tail = (_aligned_codes(rows * width) for width in self.widths)
        self.head_scales = np.empty(rows, dtype=np.float32)
        self.tail_scales = np.zeros(rows, dtype=np.float32)
        heads, tails = self.head.reshape(rows, cut), self.tail.reshape(rows, dimension - cut)
        for start in range(0, rows, ENCODE_ROWS):
            part = slice(start, min(start + ENCODE_ROWS, rows))
            turned = self._turned(np.array(vectors[part]), less_mean=True)
            heads[part], self.head_scales[part] = _encoded(turned[:, :cut], CODE_MAX)
            if cut < dimension:
                tails[part], self.tail_scales[part] = _encoded(turned[:, cut:], CODE_MAX)
        arrays = (self.head, self.tail, self.head_scales, self.tail_scales)
        self.size_bytes = sum(array.nbytes for array in arrays)
        self.code_slack, self.tail_slack = CODE_SLACK_MIN, TAIL_SLACK_MIN
        self._measure_slacks(vectors)

    def coded(self, queries: Float32Matrix) -> CodedQueries:
        """Return the codes of queries (n, d)."""
        cut = self.widths[0]
        turned = self._turned(queries, less_mean=False)
        # Products of 8 and of up to 16 bits, as many as there are dimensions, stay within int32.
        codes, scales = _encoded(turned, _query_code_max(queries.shape[1]))
        slacks = np.zeros((len(queries), 3), dtype=np.float32)
        offsets = np.zeros(len(queries), dtype=np.float32)
        squares = turned * turned
        if self._axes is not None:
            offsets[:] = queries @ self._axes.mean
            tails = np.sqrt(squares[:, cut:] @ self._axes.variances[cut:])
            slacks[:, 0] = self.tail_slack * tails
        slacks[:, 1] = self.code_slack * np.sqrt(squares[:, :cut].sum(axis=1))
        slacks[:, 2] = self.code_slack * np.sqrt(squares[:, cut:].sum(axis=1))
        return CodedQueries(codes, bytes_of(codes), scales, offsets, slacks)

    def _turned(self, vectors: Floats, *, less_mean: bool) -> Floats:
        axes = self._axes
        if axes is None:
            return vectors
        turned: Floats = np.matmul(vectors - axes.mean if less_mean else vectors, axes.directions)
        return turned

    def _measure_slacks(self, vectors: Float32Matrix) -> None:
        """Compare products of codes, and of heads alone, with the true ones, on rows as queries."""
        cut = self.widths[0]
        rng = np.random.default_rng(len(vectors))
        chosen = rng.integers(0, len(vectors), SAMPLE_ROWS)
        queries = np.array(vectors[rng.integers(0, len(vectors), SAMPLE_ROWS)])
        rows = self._turned(np.array(vectors[chosen]), less_mean=True).astype(np.float64)
        asked = self.coded(queries)
        exact = self._turned(queries, less_mean=False).astype(np.float64) @ rows.T
        whole = asked.codes.astype(np.float64) * asked.scales[:, None]
        head_scales, tail_scales = self.head_scales[chosen], self.tail_scales[chosen]
        heads = self.head.reshape(-1, cut)[chosen] * head_scales[:, None].astype(np.float64)
        coded = whole[:, :cut] @ heads.T
        if cut < vectors.shape[1]:
            tails = self.tail.reshape(len(vectors), -1)[chosen] * tail_scales[:, None]
            tail_products = whole[:, cut:] @ tails.astype(np.float64).T
            coded = coded + tail_products
            deviations = asked.slacks[:, :1] / TAIL_SLACK_MIN
            product = _quantile(tail_products, deviations, TAIL_QUANTILE)
            self.tail_slack = max(TAIL_SLACK_MIN, product)
        units = asked.slacks[:, 1:2] * head_scales + asked.slacks[:, 2:] * tail_scales
        error = _quantile(coded - exact, units / CODE_SLACK_MIN, CODE_QUANTILE)
        self.code_slack = max(CODE_SLACK_MIN, error)


def _axes_of(vectors: Float32Matrix) -> Axes | None:
    """Return directions with a head that is worth cutting off, or None."""
    rows, dimension = vectors.shape
    if rows < AXES_ROWS:
        return None
    chosen = np.random.default_rng(dimension).choice(rows, AXES_ROWS, replace=False)
    sample = np.array(vectors[np.sort(chosen)])
    mean = sample.mean(axis=0)
    sample -= mean
    variances, directions = np.linalg.eigh((sample.T @ sample).astype(np.float64) / AXES_ROWS)
    variances, directions = np.maximum(variances[::-1], 0.0), directions[:, ::-1]
    total = variances.sum()
    if not 0 < total < np.inf:
        return None
    needed = 1 + int(np.searchsorted(np.cumsum(variances), HEAD_VARIANCE * total))
    width = -(-needed // LINE_BYTES) * LINE_BYTES
    if width > HEAD_WIDTH_MAX * dimension:
        return None
    # Equal spread within the head: the largest component of a row is the unit of all.
    mixing, _ = np.linalg.qr(np.random.default_rng(width).standard_normal((width, width)))
    directions = np.hstack([directions[:, :width] @ mixing, directions[:, width:]])
    return Axes(
        mean, np.ascontiguousarray(directions, np.float32), variances.astype(np.float32), width
    )


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


def _quantile(
    errors: npt.NDArray[np.float64], units: npt.NDArray[np.floating[Any]], quantile: float
) -> float:
    """Return the quantile of absolute errors in units that may be zero."""
    tiny = np.finfo(np.float32).tiny
    return float(np.quantile(np.abs(errors) / np.maximum(units, tiny), quantile))
