"""Checks of ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from annheal.errors import InvalidArgument
from annheal.model.limits import (
    GET_IDS_MAX,
    ID_BYTES_MAX,
)
from annheal.model.validation.attributes import byte_lengths, first


def validate_ids(
    ids: pa.StringArray | Sequence[str], *, field: str = "ids", rows_max: int = GET_IDS_MAX
) -> None:
    """Raise `InvalidArgument` unless there are 1 to `rows_max` ids of 1 to 512 bytes of UTF-8."""
    column = ids if isinstance(ids, pa.Array) else id_array(ids, field=field)
    check_rows(len(column), field=field, rows_max=rows_max)
    if column.null_count:
        row = first(np.asarray(column.is_null()))
        raise InvalidArgument.of(f"{field}[{row}]", "is missing; every record needs an id")
    lengths = byte_lengths(column)
    wrong = (lengths < 1) | (lengths > ID_BYTES_MAX)
    if wrong.any():
        row = first(wrong)
        length = int(lengths[row])
        text = "is empty" if length == 0 else f"has {length} bytes of UTF-8"
        raise InvalidArgument.of(f"{field}[{row}]", f"{text}; an id has 1 to {ID_BYTES_MAX} bytes")


def id_array(ids: Sequence[str], *, field: str = "ids") -> pa.StringArray:
    """Return `ids` as an Arrow column; raises `InvalidArgument` for what is not valid text."""
    try:
        return pa.array(ids, type=pa.string())
    except (UnicodeEncodeError, pa.ArrowInvalid, pa.ArrowTypeError, TypeError) as error:
        raise InvalidArgument.of(field, f"ids are valid Unicode text: {error}") from error


def check_rows(rows: int, *, field: str, rows_max: int) -> None:
    """Raise `InvalidArgument` unless there are 1 to `rows_max` rows."""
    if not 1 <= rows <= rows_max:
        fix = "send at least one" if rows < 1 else f"send at most {rows_max} a call"
        raise InvalidArgument.of(field, f"{rows} given; {fix}")
