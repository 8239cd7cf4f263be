"""Filters over columns: which rows match, a column at a time."""

from __future__ import annotations

import operator
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from annheal.errors import InvariantViolation
from annheal.filters.columns import Mask, number_mask, present_mask, text_mask
from annheal.filters.key import epoch_micros
from annheal.model.filter import (
    And,
    Comparison,
    ComparisonOp,
    Exists,
    Filter,
    FilterValue,
    Membership,
    Not,
    Or,
    Prefix,
)

_NUMBER_TESTS: Final = {
    ComparisonOp.EQ: operator.eq,
    ComparisonOp.LT: operator.lt,
    ComparisonOp.LE: operator.le,
    ComparisonOp.GT: operator.gt,
    ComparisonOp.GE: operator.ge,
}
# Arrow compares the UTF-8 bytes, which is the order of the code points.
_TEXT_TESTS: Final[dict[ComparisonOp, Any]] = {
    ComparisonOp.EQ: pc.equal,
    ComparisonOp.LT: pc.less,
    ComparisonOp.LE: pc.less_equal,
    ComparisonOp.GT: pc.greater,
    ComparisonOp.GE: pc.greater_equal,
}


def evaluate(filter: Filter, columns: pa.RecordBatch, *, row_count: int) -> Mask:
    """Return which rows match a filter from `validate_filter`: (row_count,) bool, the caller's own.

    `columns` holds the attributes by name; a keyword column may be dictionary-encoded. A column
    that is not there is missing in every row, so that rows written before a field was declared
    can be searched. `row_count` is needed because a batch without columns has no length.

    Raises:
        InvariantViolation: the filter does not fit the columns: it was validated against another
            schema, or not at all.
    """
    if columns.num_columns and columns.num_rows != row_count:
        raise InvariantViolation(f"{columns.num_rows} rows of attributes for {row_count} rows")
    if row_count == 0:
        return np.zeros(0, dtype=np.bool_)
    return _Evaluation(columns, row_count).mask(filter)


class _Evaluation:
    """One filter over one batch; every mask it returns is new, so it may be changed in place."""

    def __init__(self, columns: pa.RecordBatch, row_count: int) -> None:
        self._columns = columns
        self._row_count = row_count

    def mask(self, filter: Filter) -> Mask:
        match filter:
            case And(operands):
                return self._all(operands)
            case Or(operands):
                return self._any(operands)
            case Not(operand):
                return _inverted(self.mask(operand))
            case Comparison(field, ComparisonOp.NE, value):
                return _inverted(self.mask(Comparison(field, ComparisonOp.EQ, value)))
            case Membership(field, values, True):
                return _inverted(self.mask(Membership(field, values)))
        column = self._column(filter.field)
        if column is None:
            return np.zeros(self._row_count, dtype=np.bool_)
        match filter:
            case Exists():
                return present_mask(column)
            case Comparison(_, op, value):
                return _compare(column, op, value)
            case Membership(_, values):
                return _member(column, values)
            case Prefix(_, prefix):
                return text_mask(column, lambda texts: pc.starts_with(texts, prefix))

    def _all(self, operands: tuple[Filter, ...]) -> Mask:
        result = self.mask(operands[0])
        for operand in operands[1:]:
            if not result.any():
                break
            result &= self.mask(operand)
        return result

    def _any(self, operands: tuple[Filter, ...]) -> Mask:
        result = self.mask(operands[0])
        for operand in operands[1:]:
            if result.all():
                break
            result |= self.mask(operand)
        return result

    def _column(self, name: str) -> Any | None:
        """Return the column, or None when it has no value in any row."""
        index = self._columns.schema.get_field_index(name)
        if index < 0:
            return None
        column = self._columns.column(index)
        return None if column.null_count == len(column) else column


def _inverted(mask: Mask) -> Mask:
    return np.logical_not(mask, out=mask)


def _compare(column: Any, op: ComparisonOp, value: FilterValue) -> Mask:
    if isinstance(value, str):
        text_test = _TEXT_TESTS[op]
        return text_mask(column, lambda texts: text_test(texts, value))
    number_test = _NUMBER_TESTS[op]
    number = _number(value)
    return number_mask(column, lambda numbers: number_test(numbers, number))


def _member(column: Any, values: tuple[FilterValue, ...]) -> Mask:
    if isinstance(values[0], str):
        wanted = pa.array(values, pa.string())
        return text_mask(column, lambda texts: pc.is_in(texts, value_set=wanted))
    wanted_numbers = [_number(value) for value in values if not isinstance(value, str)]
    return number_mask(column, lambda numbers: _is_in(numbers, wanted_numbers))


def _is_in(numbers: npt.NDArray[Any], wanted: list[int | float | bool]) -> Mask:
    """np.isin in the column's own type: int64 must not pass through float64."""
    result: Mask = np.isin(numbers, np.array(wanted, dtype=numbers.dtype))
    return result


def _number(value: int | float | bool | datetime) -> int | float | bool:
    """Return the value as columns store it: a timestamp as microseconds."""
    return epoch_micros(value) if isinstance(value, datetime) else value
