"""Values of every type that a caller may hold, and what it means that one came back.

`meaning` is an oracle of its own: it shares no code with `annheal.model.values`.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
from hypothesis import strategies as st

from annheal.model.collection import AttributeType

Meaning = tuple[str, Any] | None
"""None for a missing value, else the kind of a value and what can be compared exactly."""

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS: Final = {
    "W": Fraction(604_800),
    "D": Fraction(86_400),
    "h": Fraction(3_600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
}


def meaning(value: Any, kind: AttributeType) -> Meaning:
    """Return what a value means where an attribute of type `kind` is declared."""
    if value is None or value is pd.NaT or value is pd.NA or value is np.ma.masked:
        return None
    if isinstance(value, pa.Scalar):
        return _of_arrow(value, kind)
    if isinstance(value, np.datetime64):
        return None if np.isnat(value) else ("moment", _ticks(value.view("i8"), value.dtype))
    if isinstance(value, bool | np.bool_):
        return ("bool", bool(value))
    if isinstance(value, datetime):
        return ("moment", _seconds(value)) if value.tzinfo else ("naive", str(value))
    if isinstance(value, date):
        days = value.toordinal() - EPOCH.toordinal()
        return ("moment", Fraction(days * 86_400))
    if isinstance(value, int | float | np.number | Decimal):
        return _number(value)
    if isinstance(value, str):
        return _text(str(value), kind)
    if isinstance(value, list | tuple | np.ndarray):
        return ("list", [meaning(part, AttributeType.KEYWORD) for part in value])
    return ("other", repr(value))


def _number(value: Any) -> Meaning:
    if value != value or abs(value) == math.inf:
        return ("not a number", str(value))
    exact = value if isinstance(value, int | float | Decimal) else value.item()
    return ("number", Fraction(exact))


def _text(text: str, kind: AttributeType) -> Meaning:
    if kind is not AttributeType.TIMESTAMP:
        return ("text", text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return ("text", text)
    if len(text) == len("2024-01-31"):
        return ("moment", _seconds(moment.replace(tzinfo=UTC)))
    return ("moment", _seconds(moment)) if moment.tzinfo else ("naive", text)


def _seconds(moment: datetime) -> Fraction:
    past: timedelta = moment - EPOCH
    micros = (past.days * 86_400 + past.seconds) * 10**6 + past.microseconds
    return Fraction(micros, 10**6) + Fraction(getattr(moment, "nanosecond", 0), 10**9)


def _ticks(ticks: Any, dtype: Any) -> Fraction:
    unit, many = np.datetime_data(dtype)
    if unit == "Y":
        return _months(int(ticks) * many * 12)
    if unit == "M":
        return _months(int(ticks) * many)
    return int(ticks) * many * _SECONDS[unit]


def _months(months: int) -> Fraction:
    """Return the seconds to the first day of a month, in the calendar that has no end."""
    year, month = divmod(months, 12)
    # 400 years have 146,097 days, so any year can be moved next to the epoch.
    cycles, year = divmod(year + 1970 - 2000, 400)
    days = date(2000 + year, month + 1, 1).toordinal() - EPOCH.toordinal()
    return Fraction((days + cycles * 146_097) * 86_400)


def _of_arrow(value: Any, kind: AttributeType) -> Meaning:
    if not value.is_valid:
        return None
    given = value.type
    if pa.types.is_timestamp(given):
        return ("moment", value.value * _SECONDS[given.unit])
    if pa.types.is_date32(given):
        return ("moment", Fraction(value.value * 86_400))
    if pa.types.is_date64(given):
        return ("moment", Fraction(value.value, 1_000))
    if pa.types.is_dictionary(given):
        return _of_arrow(value.value, kind)
    if pa.types.is_nested(given):
        return ("list", [_of_arrow(part, AttributeType.KEYWORD) for part in value.values])
    return meaning(value.as_py(), kind)


# ------------------------------------------------------------------------------------- strategies

ZONES: Final = st.sampled_from(
    [None, UTC, timezone(timedelta(hours=9)), timezone(-timedelta(1) / 3)]
)
INTEGERS: Final = st.one_of(
    st.integers(-5, 5),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64, 1_700_000_000]),
)
TEXTS: Final = st.one_of(st.text(max_size=4), st.sampled_from(["1", "true", "0.5", "\ud800"]))
MOMENTS: Final = st.one_of(
    st.datetimes(timezones=ZONES),
    st.dates(),
    st.datetimes(timezones=st.just(UTC)).map(datetime.isoformat),
    st.dates().map(date.isoformat),
    st.sampled_from(
        ["2024-05-01T12:00:00", "12000-01-01T00:00:00Z", "2024-05-01T12:00:00.1234567Z"]
    ),
)
NUMPY: Final = st.sampled_from(
    [
        *(
            np.int8(5),
            np.uint64(2**63),
            np.float32(0.1),
            np.float16(2),
            np.bool_(True),
            np.str_("a"),
        ),
        *(np.datetime64("2024-05-01"), np.datetime64("NaT"), np.datetime64(1, "ns")),
        np.timedelta64(1, "s"),
    ]
)
PYTHON: Final = st.one_of(
    st.none(),
    st.booleans(),
    INTEGERS,
    st.floats(),
    st.decimals(max_value=10**20, min_value=-(10**20)),
    TEXTS,
    MOMENTS,
    NUMPY,
    st.lists(st.one_of(TEXTS, st.none()), max_size=3),
    st.tuples(TEXTS),
    st.sampled_from([b"a", {"a"}, {"a": 1}, object, 1j, timedelta(1), pd.NaT, pd.NA]),
)
PLAIN: Final[dict[AttributeType, Any]] = {
    AttributeType.BOOL: st.booleans(),
    AttributeType.INT64: st.integers(-(2**63), 2**63 - 1),
    AttributeType.FLOAT64: st.floats(allow_nan=False, allow_infinity=False),
    AttributeType.KEYWORD: st.text(max_size=5),
    AttributeType.KEYWORD_LIST: st.lists(st.text(max_size=3), max_size=3),
    AttributeType.TIMESTAMP: st.datetimes(
        timezones=st.sampled_from([UTC, timezone(timedelta(1) / 8)])
    ),
}
"""Values that must be taken: a property test that only refuses proves nothing."""

_NUMPY_TYPES: Final = [
    *("?", "i1", "i2", ">i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", ">f8", "c8", "U3", "S2"),
    *(f"M8[{unit}]" for unit in ("Y", "M", "W", "D", "h", "m", "s", "25s", "ms", "us", "ns")),
    "m8[s]",
]
_ARROW_INTEGERS: Final = [
    *(pa.int8(), pa.int16(), pa.int32(), pa.int64()),
    *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
]


@st.composite
def numpy_arrays(draw: st.DrawFn) -> Any:
    """Return an array of 1 to 4 numbers, texts or moments of any dtype, perhaps masked."""
    dtype = np.dtype(draw(st.sampled_from(_NUMPY_TYPES)))
    rows = draw(st.integers(1, 4))
    if dtype.kind in "US":
        array = np.array(
            draw(st.lists(st.sampled_from(["a", "1", ""]), min_size=rows, max_size=rows))
        )
        return array.astype(dtype)
    few = draw(st.booleans())
    number = st.integers(-3, 3) if few else st.integers(-(2**63), 2**63 - 1)
    ticks = draw(st.lists(number, min_size=rows, max_size=rows))
    if dtype.kind in "mM":
        array = np.array(ticks, "i8").view(dtype)
    elif dtype.kind in "fc":
        size = dtype.itemsize * 8 if dtype.kind == "f" else 32
        numbers = st.one_of(st.integers(-9, 9).map(float), st.floats(width=size))  # type: ignore[arg-type]
        array = np.array(draw(st.lists(numbers, min_size=rows, max_size=rows)), dtype)
    else:
        array = np.array(ticks, "i8").astype(dtype)
    if draw(st.booleans()):
        return array
    return np.ma.array(array, mask=draw(st.lists(st.booleans(), min_size=rows, max_size=rows)))


@st.composite
def arrow_arrays(draw: st.DrawFn) -> Any:
    """Return an array of 1 to 4 values of some Arrow type, perhaps sliced, chunked or encoded."""
    kind, values = draw(st.sampled_from(_ARROW))
    rows = draw(st.lists(st.one_of(st.none(), values), min_size=1, max_size=4))
    array: Any = pa.array(rows, kind) if kind is not None else pa.nulls(len(rows))
    form = draw(st.sampled_from(["plain", "slice", "chunks", "dictionary"]))
    if form == "slice" and len(array) > 1:
        return array[1:]
    if form == "chunks":
        return pa.chunked_array([array[:1], array[1:]])
    if form == "dictionary" and not pa.types.is_nested(array.type):
        return array.dictionary_encode()
    return array


def _ticks_of(unit: str) -> Any:
    return st.one_of(st.integers(-(10**6), 10**6), st.integers(-(2**62), 2**62))


_ARROW: Final[list[tuple[Any, Any]]] = [
    (None, st.none()),
    (pa.bool_(), st.booleans()),
    *(
        (
            kind,
            st.integers(
                int(np.iinfo(kind.to_pandas_dtype()).min), int(np.iinfo(kind.to_pandas_dtype()).max)
            ),
        )
        for kind in _ARROW_INTEGERS
    ),
    (pa.float32(), st.one_of(st.floats(width=32), st.integers(-9, 9).map(float))),
    (pa.float64(), st.one_of(st.floats(), st.integers(-9, 9).map(float))),
    (pa.decimal128(20, 2), st.decimals(-(10**9), 10**9, places=2)),
    (pa.string(), st.text(max_size=4)),
    (pa.large_string(), st.text(max_size=4)),
    (pa.string_view(), st.text(max_size=4)),
    (pa.string(), MOMENTS.filter(lambda one: isinstance(one, str))),
    (pa.binary(), st.binary(max_size=3)),
    (pa.list_(pa.string()), st.lists(st.one_of(st.none(), st.text(max_size=2)), max_size=3)),
    (pa.large_list(pa.large_string()), st.lists(st.text(max_size=2), max_size=3)),
    (pa.list_(pa.string(), 2), st.lists(st.text(max_size=2), min_size=2, max_size=2)),
    (pa.list_view(pa.string()), st.lists(st.text(max_size=2), max_size=3)),
    (pa.list_(pa.int64()), st.lists(st.integers(0, 9), max_size=3)),
    (pa.struct([("a", pa.int64())]), st.just({"a": 1})),
    (pa.duration("s"), st.integers(0, 9)),
    (pa.time32("s"), st.integers(0, 9)),
    (pa.date32(), st.integers(-(10**6), 10**7)),
    (pa.date64(), st.integers(-(10**6), 10**7).map(lambda days: days * 86_400_000)),
    *((pa.timestamp(unit), _ticks_of(unit)) for unit in ("s", "ms", "us", "ns")),
    *((pa.timestamp(unit, "UTC"), _ticks_of(unit)) for unit in ("s", "us", "ns")),
    (pa.timestamp("us", "Asia/Tokyo"), _ticks_of("us")),
]


@st.composite
def pandas_series(draw: st.DrawFn) -> Any:
    """Return a Series of some dtype, with missing values where it has any."""
    made = [
        pd.Series([1, None], dtype="Int64"),
        pd.Series([1.0, math.nan]),
        pd.Series([True, None], dtype="boolean"),
        pd.Series(["a", None], dtype="category"),
        pd.Series(["a", None], dtype="string"),
        pd.Series(["a", math.nan, 5], dtype=object),
        pd.Series([EPOCH, None]),
        pd.Series(np.array(["2024-05-01", "NaT"], "M8[ns]")),
        pd.Series([pd.Timestamp("2024-05-01T00:00:00.000000001Z")]),
        pd.Series([["a"], None]),
        pd.Series([pd.Timedelta(1)]),
        pd.Series([1, 2], dtype="uint8"),
    ]
    return draw(st.sampled_from(made))


def elements(column: Any) -> list[Any]:
    """Return the values of a column as its library has them, missing ones as they are marked."""
    if isinstance(column, pa.ChunkedArray):
        return [column[row] for row in range(len(column))]
    if isinstance(column, pd.Series):
        gone = column.isna().tolist()
        # A column without a zone is numpy's; its single values would be naive Timestamps.
        numpy = isinstance(column.dtype, np.dtype) and column.dtype.kind == "M"
        values = column.to_numpy() if numpy else column.tolist()
        return [None if gone[row] else value for row, value in enumerate(values)]
    if isinstance(column, np.ma.MaskedArray):
        gone = np.ma.getmaskarray(column).tolist()
        return [None if gone[row] else column.data[row] for row in range(len(column))]
    return [column[row] for row in range(len(column))]


COLUMNS: Final = st.one_of(
    st.lists(PYTHON, min_size=1, max_size=4),
    st.sampled_from(list(PLAIN.values())).flatmap(
        lambda values: st.lists(st.one_of(st.none(), values), min_size=1, max_size=4)
    ),
    numpy_arrays(),
    arrow_arrays(),
    pandas_series(),
)
