"""Stored values as Python values; also those that versions before the present rules let in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def value_at(column: Any, row: int) -> Any:
    """Return one value of an attribute as Python has it, None where it is missing.

    A moment outside the years 1 to 9999, which no datetime holds and which was accepted once, comes
    as a numpy datetime64 in microseconds of UTC.
    """
    scalar = column[row]
    try:
        return scalar.as_py()
    except OverflowError:
        return np.datetime64(scalar.value, column.type.unit)


def rows_as_dicts(table: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Return one dict a row, with the values of `value_at`."""
    try:
        return table.to_pylist()
    except OverflowError:
        columns = list(zip(table.schema.names, table.columns, strict=True))
        return [
            {name: value_at(column, row) for name, column in columns}
            for row in range(table.num_rows)
        ]
