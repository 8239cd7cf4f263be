"""Leaves of filters over the index of one field: which rows, counted before they are collected."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.errors import InvariantViolation
from annheal.filters.columns import Mask
from annheal.filters.key import epoch_micros
from annheal.filters.postings import Postings, scalar_values
from annheal.filters.selection import Everything, Known, Nothing, Selection
from annheal.filters.texts import SortedTexts
from annheal.filters.words import (
    Rows,
    Words,
    count_rows,
    inverted,
    no_rows,
    words_from_arrow,
    words_from_mask,
    words_from_rows,
)
from annheal.model.filter import Comparison, ComparisonOp, Exists, FilterValue, Membership, Prefix

Leaf = Comparison | Membership | Exists | Prefix
Positions = npt.NDArray[np.int64]

# What it costs to materialise a range, in nanoseconds; measured (ADR 11), only the ratios count.
_SCATTER_NS_PER_ROW: Final = 1.5
_COMPARE_NS_PER_ROW: Final = 0.15
_BITMAP_NS_PER_ROW: Final = 0.004
_SEARCHED_AT_ONCE_MIN: Final = 64
"""Values from which on one vectorised pass is faster than a bisection for each."""


class ScalarIndex:
    """The index of a keyword, int64, float64 or timestamp field: one value a row at most."""

    def __init__(self, column: Any, postings: Postings, *, exists: Selection) -> None:
        self.exists = exists
        self.row_count = exists.row_count
        self.values = scalar_values(column)
        self.postings = postings
        self.dense_values: list[Any] = self.values[postings.dense_keys].tolist()
        self._counts_before = [0, *np.cumsum(postings.dense_counts, dtype=np.int64).tolist()]
        self.comparable = len(postings.rows) + self._counts_before[-1]
        is_text = pa.types.is_dictionary(column.type)
        self._texts = SortedTexts(column.dictionary) if is_text else None

    def selection(self, leaf: Leaf) -> Selection:
        """Return the rows that pass; negations are the caller's."""
        match leaf:
            case Exists():
                return self.exists
            case Comparison(_, op, value):
                return self._compared(op, value)
            case Prefix(_, prefix):
                return self._between_codes(*self._sorted_texts().prefix_span(prefix))
            case Membership(_, values):
                return self._one_of(values)

    def span(self, first: int, end: int, dense_first: int, dense_end: int) -> Selection:
        """Return the rows of a range of values, by positions among sparse and dense ones."""
        end, dense_end = max(first, end), max(dense_first, dense_end)
        counts = self._counts_before
        count = end - first + counts[dense_end] - counts[dense_first]
        if count == 0:
            return Nothing(self.row_count)
        if count == self.row_count:
            return Everything(self.row_count)
        return Span(self, first, end, dense_first, dense_end, count)

    def _compared(self, op: ComparisonOp, value: FilterValue) -> Selection:
        if isinstance(value, str):
            return self._between_codes(*self._sorted_texts().span(op, value))
        number = self._number(value)
        start, stop = (0, 0), (len(self.postings.rows), len(self.dense_values))
        match op:
            case ComparisonOp.EQ:
                start, stop = self._before(number), self._through(number)
            case ComparisonOp.LT:
                stop = self._before(number)
            case ComparisonOp.LE:
                stop = self._through(number)
            case ComparisonOp.GT:
                start = self._through(number)
            case ComparisonOp.GE:
                start = self._before(number)
            case ComparisonOp.NE:
                raise InvariantViolation("a leaf is never negated here")
        return self.span(start[0], stop[0], start[1], stop[1])

    def _between_codes(self, first: int, end: int) -> Selection:
        start, stop = self._before(first), self._before(end)
        return self.span(start[0], stop[0], start[1], stop[1])

    def _one_of(self, values: Sequence[FilterValue]) -> Selection:
        keys: npt.NDArray[Any]
        if isinstance(values[0], str):
            keys = self._sorted_texts().codes([str(value) for value in values])
        else:
            keys = np.unique(np.array([self._number(v) for v in values], dtype=self.values.dtype))
        if not len(keys):
            return Nothing(self.row_count)
        if self._texts is not None and len(keys) >= _SEARCHED_AT_ONCE_MIN:
            passing = np.zeros(self._texts.count, dtype=np.bool_)
            passing[keys] = True
            return self._with_codes(passing)
        firsts = self._positions(keys, through=False)
        ends = self._positions(keys, through=True)
        dense = np.flatnonzero(np.isin(np.array(self.dense_values, dtype=keys.dtype), keys))
        count = int((ends - firsts).sum()) + int(self.postings.dense_counts[dense].sum())
        return Chosen(self.postings, self.row_count, firsts, ends, dense, count, count)

    def _with_codes(self, passing: Mask) -> Selection:
        """Return the rows whose code is true in `passing` (texts,), looking up every row."""
        codes, exists = self.values, self.exists
        if exists.lower == self.row_count:
            return known(words_from_mask(passing.take(codes)), row_count=self.row_count)
        # What lies under a null is arbitrary.
        words = words_from_mask(passing.take(codes, mode="clip"))
        return known(np.bitwise_and(words, exists.words()), row_count=self.row_count)

    def _before(self, key: Any) -> tuple[int, int]:
        """Return how many sparse rows and how many dense values lie below `key`."""
        below = bisect_left(self.postings.rows, key, key=self.values.__getitem__)
        return below, bisect_left(self.dense_values, key)

    def _through(self, key: Any) -> tuple[int, int]:
        """Return how many sparse rows and how many dense values are at most `key`."""
        reached = bisect_right(self.postings.rows, key, key=self.values.__getitem__)
        return reached, bisect_right(self.dense_values, key)

    def _positions(self, keys: npt.NDArray[Any], *, through: bool) -> Positions:
        """Return for each of `keys` how many sparse rows lie below it, or up to it."""
        if len(keys) < _SEARCHED_AT_ONCE_MIN:
            side = self._through if through else self._before
            return np.array([side(key)[0] for key in keys], dtype=np.int64)
        rows = self.postings.rows
        low = np.zeros(len(keys), dtype=np.int64)
        high = np.full(len(keys), len(rows), dtype=np.int64)
        for _ in range(len(rows).bit_length()):
            middle = (low + high) >> 1
            probed = self.values[rows[np.minimum(middle, len(rows) - 1)]]
            is_left = (probed <= keys if through else probed < keys) & (low < high)
            low = np.where(is_left, middle + 1, low)
            high = np.where(is_left, high, np.maximum(low, middle))
        return low

    def _sorted_texts(self) -> SortedTexts:
        if self._texts is None:
            raise InvariantViolation(
                f"a filter compares text with a column of type {self.values.dtype}"
            )
        return self._texts

    def _number(self, value: FilterValue) -> int | float:
        if self._texts is not None or isinstance(value, str):
            raise InvariantViolation(f"a filter compares {value!r} with a column of another type")
        return as_number(value)


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one range of a field's values: sparse ones [first, end), dense ones likewise."""

    index: ScalarIndex
    first: int
    end: int
    dense_first: int
    dense_end: int
    count: int

    @property
    def row_count(self) -> int:
        """Rows to choose from."""
        return self.index.row_count

    @property
    def lower(self) -> int:
        """The exact count."""
        return self.count

    @property
    def upper(self) -> int:
        """The exact count."""
        return self.count

    def within(self, other: Span) -> Selection:
        """Return the rows in both of two ranges of one field."""
        return self.index.span(
            max(self.first, other.first),
            min(self.end, other.end),
            max(self.dense_first, other.dense_first),
            min(self.dense_end, other.dense_end),
        )

    def words(self) -> Words:
        """Collect the rows inside, or those outside, or compare every row: what costs least."""
        inside = self._cost(self.end - self.first, self.dense_end - self.dense_first)
        index, postings = self.index, self.index.postings
        outside = self._cost(
            len(postings.rows) - self.end + self.first,
            len(index.dense_values) - self.dense_end + self.dense_first,
        )
        if index.comparable < index.exists.lower:
            outside = inside  # there are NaN: outside of every range, and yet values
        comparing = self.row_count * _COMPARE_NS_PER_ROW * (1 if self._is_open() else 2)
        if comparing < min(inside, outside):
            return self._by_comparison()
        if inside <= outside:
            rows = postings.rows[self.first : self.end]
            chosen = postings.dense_words[self.dense_first : self.dense_end]
            return collected(rows, chosen, row_count=self.row_count)
        rows = np.concatenate([postings.rows[: self.first], postings.rows[self.end :]])
        others = np.concatenate(
            [postings.dense_words[: self.dense_first], postings.dense_words[self.dense_end :]]
        )
        missed = inverted(collected(rows, others, row_count=self.row_count), self.row_count)
        if index.exists.lower == self.row_count:
            return missed
        return np.bitwise_and(missed, index.exists.words())

    def _cost(self, rows: int, bitmaps: int) -> float:
        return rows * _SCATTER_NS_PER_ROW + bitmaps * self.row_count * _BITMAP_NS_PER_ROW

    def _is_open(self) -> bool:
        """Say whether the range reaches the least or the greatest value of the field."""
        starts = self.first == 0 and self.dense_first == 0
        return starts or (
            self.end == len(self.index.postings.rows)
            and self.dense_end == len(self.index.dense_values)
        )

    def _by_comparison(self) -> Words:
        index = self.index
        values, rows = index.values, index.postings.rows
        inside = index.dense_values[self.dense_first : self.dense_end]
        if self.end > self.first:
            inside += [values[rows[self.first]], values[rows[self.end - 1]]]
        mask = None
        if self.first > 0 or self.dense_first > 0:
            mask = values >= min(inside)
        if self.end < len(rows) or self.dense_end < len(index.dense_values) or mask is None:
            below = values <= max(inside)
            mask = below if mask is None else np.logical_and(mask, below, out=mask)
        words = words_from_mask(mask)
        if index.exists.lower == self.row_count:
            return words
        return np.bitwise_and(words, index.exists.words())


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows of several values: the sparse rows [firsts[i], ends[i]) and some bitmaps."""

    postings: Postings
    row_count: int
    firsts: Positions
    ends: Positions
    dense: Positions
    lower: int
    upper: int

    def words(self) -> Words:
        """Collect the rows."""
        lengths = self.ends - self.firsts
        total = int(lengths.sum())
        shifts = np.repeat(self.firsts - np.cumsum(lengths) + lengths, lengths)
        rows = self.postings.rows[np.arange(total) + shifts]
        return collected(rows, self.postings.dense_words[self.dense], row_count=self.row_count)


class ListIndex:
    """The index of a keyword_list field: any number of texts a row."""

    def __init__(self, postings: Postings, *, exists: Selection) -> None:
        self._postings = postings
        self._exists = exists
        self._texts = SortedTexts(postings.texts)

    def selection(self, leaf: Leaf) -> Selection:
        """Return the rows of which some element passes; negations are the caller's."""
        match leaf:
            case Exists():
                return self._exists
            case Comparison(_, op, value):
                return self._between(*self._texts.span(op, _text(value)))
            case Prefix(_, prefix):
                return self._between(*self._texts.prefix_span(prefix))
            case Membership(_, values):
                return self._with_any(self._texts.codes([_text(value) for value in values]))

    def _between(self, first: int, end: int) -> Selection:
        """Return the rows with a text of code [first, end)."""
        if end - first < 2:
            return self._with_any(np.arange(first, end))
        starts = self._postings.starts
        dense_first, dense_end = np.searchsorted(self._postings.dense_keys, (first, end)).tolist()
        bounds = np.array([[starts[first]], [starts[end]]], dtype=np.int64)
        return self._chosen(bounds[0], bounds[1], np.arange(dense_first, dense_end), lower=0)

    def _with_any(self, codes: Positions) -> Selection:
        starts = self._postings.starts
        firsts, ends = starts[codes].astype(np.int64), starts[codes + 1].astype(np.int64)
        dense = np.flatnonzero(np.isin(self._postings.dense_keys, codes))
        # A row is once at most among those of one text.
        return self._chosen(firsts, ends, dense, lower=int((ends - firsts).max(initial=0)))

    def _chosen(
        self, firsts: Positions, ends: Positions, dense: Positions, *, lower: int
    ) -> Selection:
        counts = self._postings.dense_counts[dense].astype(np.int64)
        row_count = self._exists.row_count
        upper = min(int((ends - firsts).sum() + counts.sum()), row_count)
        if upper == 0:
            return Nothing(row_count)
        lower = max(lower, int(counts.max(initial=0)))
        return Chosen(self._postings, row_count, firsts, ends, dense, lower, upper)


class FlagIndex:
    """A bool field; Arrow stores it as the two bitmaps that filters need."""

    def __init__(self, column: Any, *, exists: Selection) -> None:
        self._exists = exists
        data = words_from_arrow(
            column.buffers()[1], offset=column.offset, row_count=exists.row_count
        )
        true = np.bitwise_and(data, exists.words())
        self._true = known(true, row_count=exists.row_count)
        self._false = known(exists.words() & ~true, row_count=exists.row_count)

    def selection(self, leaf: Leaf) -> Selection:
        """Return the rows that pass; negations are the caller's."""
        match leaf:
            case Comparison(_, ComparisonOp.EQ, bool(value)):
                return self._true if value else self._false
            case Exists() | Membership():  # canonical: of two values, so both
                return self._exists
        raise InvariantViolation(f"{leaf} does not apply to a column of type bool")


def exists_in(column: Any) -> Selection:
    """Return the rows in which a column of `rows.arrow` has a value."""
    coded = column.indices if pa.types.is_dictionary(column.type) else column
    row_count = len(column)
    if coded.null_count == 0:
        return Everything(row_count)
    if coded.null_count == row_count:
        return Nothing(row_count)
    words = words_from_arrow(coded.buffers()[0], offset=coded.offset, row_count=row_count)
    return Known(row_count, row_count - coded.null_count, words)


def collected(rows: Rows, bitmaps: npt.NDArray[np.uint64], *, row_count: int) -> Words:
    """Return the given rows and those of (b, words) bitmaps, as one set."""
    if not len(rows):
        if len(bitmaps) < 2:
            only: Words = bitmaps[0] if len(bitmaps) else no_rows(row_count)
            return only
        united: Words = np.bitwise_or.reduce(bitmaps, axis=0)
        return united
    words = words_from_rows(rows, row_count)
    for bitmap in bitmaps:
        words |= bitmap
    return words


def as_number(value: int | float | bool | Any) -> int | float:
    """Return the value as columns store it: a timestamp as microseconds."""
    return value if isinstance(value, int | float) else epoch_micros(value)


def known(words: Words, *, row_count: int) -> Selection:
    """Return a set that is there, counted."""
    count = count_rows(words)
    if count == row_count:
        return Everything(row_count)
    return Known(row_count, count, words) if count else Nothing(row_count)


def _text(value: FilterValue) -> str:
    if not isinstance(value, str):
        raise InvariantViolation("a filter compares a number with a column of type list<string>")
    return value
