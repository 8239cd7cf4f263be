"""Payloads are JSON that reads back as what was given: well formed, shallow, nothing rounded."""

from __future__ import annotations

import math
import re
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from annheal.errors import InvalidArgument
from annheal.model.limits import PAYLOAD_BYTES_MAX, PAYLOAD_DEPTH_MAX
from annheal.model.values.rows import listed, rows_of
from annheal.model.values.unfit import UnfitValue, shown

# The decoder with which the SDK reads payloads. One that only skips over them takes half the time
# (0.2 against 0.4 us for 300 bytes), and accepts numbers that are too large for a float64; looking
# for those first, in any way that was tried, costs more than building the values.
_READ = msgspec.json.Decoder()
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


def payload_column(values: Any) -> pa.BinaryArray:
    """Return n values as JSON, null where a row has none (None).

    Each is None, a bool, a number, a text, or a list, tuple (it becomes a list) or dict with text
    keys of such values; `bytes`, or an Arrow column of binary, is JSON already and stays as it is.
    Raises `UnfitValue` with the row and the place inside for everything else: what JSON can only
    approximate (NaN, sets, dates, dataclasses) is not written.
    """
    given = rows_of(values)
    if isinstance(given, pa.Array):
        types: Any = pa.types
        is_json = types.is_binary(given.type) or types.is_large_binary(given.type)
        if is_json or types.is_binary_view(given.type):
            return cast("pa.BinaryArray", given.cast(pa.binary()))
        if not pa.types.is_null(given.type):
            raise UnfitValue(
                f"has the Arrow type {given.type}; JSON is binary (column.cast(pa.binary())),"
                " values are a list (column.to_pylist())"
            )
    texts = []
    for row, value in enumerate(listed(given)):
        try:
            known = value is None or isinstance(value, bytes)
            texts.append(value if known else encode_payload(value))
        except UnfitValue as error:
            raise error.in_row(row) from None
    return pa.array(texts, type=pa.binary())


def encode_payload(value: Any) -> bytes:
    """Return one value as JSON that reads back as it; raises `UnfitValue` with the place inside."""
    try:
        text = msgspec.json.encode(value)
        if _READ.decode(text) == value:  # sets, dates, NaN and keys that are numbers are not equal
            return text
    except (TypeError, ValueError, RecursionError, OverflowError, msgspec.MsgspecError):
        pass  # the walk below names the place
    return msgspec.json.encode(_plain(value, "", 0))


def _plain(value: Any, part: str, depth: int) -> Any:
    """Return `value` in JSON's own types, or say where it cannot be."""
    if depth > PAYLOAD_DEPTH_MAX:
        raise UnfitValue(
            f"is nested too deeply; the limit is {PAYLOAD_DEPTH_MAX} arrays and objects in one"
            " another"
        )
    if value is None or isinstance(value, bool):
        return value
    if type(value) in (list, tuple):
        return [
            _plain(item, f"{part}[{position}]", depth + 1) for position, item in enumerate(value)
        ]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise UnfitValue(
                    f"has the key {shown(key)}, and JSON has texts only; send str(key)", part=part
                )
        return {
            _text(key, part): _plain(item, f"{part}.{key}", depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, str):
        return _text(value, part)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UnfitValue(f"is {value}, which JSON cannot hold; send None or text", part=part)
        return float(value)
    hint = "send value.item()" if isinstance(value, np.generic) else "send a list, dict or text"
    raise UnfitValue(
        f"is {shown(value)} of Python type {type(value).__name__}, which JSON cannot hold; {hint}",
        part=part,
    )


def _text(text: str, part: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnfitValue("holds half of a surrogate pair; send valid Unicode", part=part) from None
    return str.__str__(text)


def validate_payloads(payloads: pa.BinaryArray) -> None:
    """Raise `InvalidArgument` for a payload that is too large or that the SDK could not read."""
    if payloads.null_count == len(payloads):
        return
    lengths = _byte_lengths(payloads)
    if int(lengths.max()) > PAYLOAD_BYTES_MAX:
        row = int(lengths.argmax())
        raise InvalidArgument.of(
            f"payloads[{row}]",
            f"has {int(lengths[row])} bytes; a payload has at most {PAYLOAD_BYTES_MAX}",
        )
    try:
        payloads.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise InvalidArgument.of("payloads", f"payloads are JSON in UTF-8: {error}") from error
    decode = _READ.decode
    for row, payload in enumerate(payloads.to_pylist()):
        if payload is None:
            continue
        try:
            decode(payload)
        except msgspec.DecodeError as error:
            raise _unreadable(payload, error, field=f"payloads[{row}]") from error
        except RecursionError as error:
            raise _too_deep(row) from error
        # So deep a nesting takes so many bytes; most payloads are shorter.
        if len(payload) > 2 * PAYLOAD_DEPTH_MAX and _depth(payload) > PAYLOAD_DEPTH_MAX:
            raise _too_deep(row)


def _byte_lengths(column: Any) -> npt.NDArray[np.int32]:
    return np.asarray(pc.fill_null(pc.binary_length(column), 0))


def _unreadable(payload: bytes, error: msgspec.DecodeError, *, field: str) -> InvalidArgument:
    if isinstance(error, msgspec.ValidationError):
        text = f"holds a number that no float64 can hold ({error}); send it as text or null"
    else:
        text = f"is not valid JSON: {error}"
        if b"NaN" in payload or b"Infinity" in payload:
            text += "; it has no NaN and no Infinity, send null or text"
    return InvalidArgument.of(field, text)


def _too_deep(row: int) -> InvalidArgument:
    return InvalidArgument.of(
        f"payloads[{row}]",
        f"is nested too deeply; the limit is {PAYLOAD_DEPTH_MAX} arrays and objects in one another",
    )


def _depth(payload: bytes) -> int:
    """Return how deeply the arrays and objects of valid JSON are nested, or 0 for little."""
    if payload.count(b"[") + payload.count(b"{") <= PAYLOAD_DEPTH_MAX:
        return 0
    content = np.frombuffer(_STRING.sub(b"", payload), dtype=np.uint8)
    opens = (content == ord("[")) | (content == ord("{"))
    closes = (content == ord("]")) | (content == ord("}"))
    return int(np.cumsum(opens.astype(np.int32) - closes).max(initial=0))
