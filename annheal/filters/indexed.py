"""Filters over indexed columns: a tree to one set of rows and its exact count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal.filters.field_index import FlagIndex, Leaf, ListIndex, ScalarIndex, Span, exists_in
from annheal.filters.postings import Postings
from annheal.filters.selection import Nothing, Selection, common, rest, united
from annheal.filters.words import count_rows, packed_bytes
from annheal.model.filter import And, Comparison, ComparisonOp, Filter, Membership, Not, Or


class _FieldIndex(Protocol):
    def selection(self, leaf: Leaf) -> Selection: ...


class IndexedColumns:
    """The attributes of a segment with the indexes of their fields; for any thread.

    Selects exactly the rows that `annheal.filters.evaluate` selects.
    """

    def __init__(
        self, columns: pa.RecordBatch, postings: Mapping[str, Postings], *, row_count: int
    ) -> None:
        """Wrap `columns` as `rows.arrow` has them and the postings of all but bool fields."""
        self._columns = columns
        self._postings = postings
        self._row_count = row_count
        self._fields: dict[str, _FieldIndex | None] = {}

    def matches(self, filter: Filter) -> tuple[npt.NDArray[np.uint8], int]:
        """Return the rows that match a filter from `validate_filter`, and how many.

        (ceil(n / 8),) uint8, bit `row % 8` of byte `row // 8`, padding zero, to be read only: it
        may be a mapped file. Raises `InvariantViolation` when the filter was validated against
        another schema.
        """
        selection = self._selection(filter)
        words = selection.words()
        exact = selection.lower == selection.upper
        count = selection.upper if exact else count_rows(words)
        return packed_bytes(words, self._row_count), count

    def _selection(self, filter: Filter) -> Selection:
        match filter:
            case And(operands):
                return self._in_all([self._selection(operand) for operand in operands])
            case Or(operands):
                parts = [self._selection(operand) for operand in operands]
                return united(parts, row_count=self._row_count)
            case Not(operand):
                return rest(self._selection(operand))
            case Comparison(field, ComparisonOp.NE, value):
                return rest(self._of_leaf(Comparison(field, ComparisonOp.EQ, value)))
            case Membership(field, values, True):
                return rest(self._of_leaf(Membership(field, values)))
        return self._of_leaf(filter)

    def _of_leaf(self, leaf: Leaf) -> Selection:
        if leaf.field not in self._fields:
            # Two threads may make the same one; either will do.
            self._fields[leaf.field] = self._open(leaf.field)
        index = self._fields[leaf.field]
        return Nothing(self._row_count) if index is None else index.selection(leaf)

    def _in_all(self, parts: list[Selection]) -> Selection:
        """Return the intersection; ranges of one field become one range first."""
        spans: dict[int, Span] = {}
        others: list[Selection] = []
        for part in parts:
            earlier = spans.pop(id(part.index), None) if isinstance(part, Span) else None
            if isinstance(part, Span) and earlier is not None:
                part = part.within(earlier)
            if isinstance(part, Span):
                spans[id(part.index)] = part
            else:
                others.append(part)
        return common([*others, *spans.values()], row_count=self._row_count)

    def _open(self, field: str) -> _FieldIndex | None:
        """Return the index of a field, or None when no row has a value."""
        position = self._columns.schema.get_field_index(field)
        column: Any = None if position < 0 else self._columns.column(position)
        if column is None or column.null_count == len(column):
            return None
        exists = exists_in(column)
        if pa.types.is_boolean(column.type):
            return FlagIndex(column, exists=exists)
        if pa.types.is_list(column.type):
            return ListIndex(self._postings[field], exists=exists)
        return ScalarIndex(column, self._postings[field], exists=exists)
