"""Filters: typed tree on the wire, typed tree in the domain."""

from __future__ import annotations

import math
from datetime import datetime

from annheal.errors import InvalidArgument
from annheal.model.filter import (
    And,
    Comparison,
    Exists,
    Filter,
    FilterValue,
    Membership,
    Not,
    Or,
    Prefix,
)
from annheal.model.values.scalars import INT64_MAX, INT64_MIN, fit_float64
from annheal.model.values.unfit import UnfitValue
from annheal.v1 import filter_pb2
from annheal.wire.enums import COMPARISON_OP
from annheal.wire.timestamps import decode_datetime, encode_datetime


def encode_filter(tree: Filter) -> filter_pb2.Filter:
    """Return `tree` as a message; raises `InvalidArgument` for an integer that none can hold."""
    match tree:
        case Comparison(field, op, value):
            return filter_pb2.Filter(
                comparison=filter_pb2.Comparison(
                    field=field,
                    op=COMPARISON_OP.encode(op),
                    value=_encode_value(value),
                )
            )
        case Membership(field, values, negated):
            return filter_pb2.Filter(
                membership=filter_pb2.Membership(
                    field=field, values=[_encode_value(v) for v in values], negated=negated
                )
            )
        case Exists(field):
            return filter_pb2.Filter(exists=filter_pb2.Exists(field=field))
        case Prefix(field, prefix):
            return filter_pb2.Filter(prefix=filter_pb2.Prefix(field=field, prefix=prefix))
        case And(operands):
            return filter_pb2.Filter(all_of=_encode_list(operands))
        case Or(operands):
            return filter_pb2.Filter(any_of=_encode_list(operands))
        case Not(operand):
            return filter_pb2.Filter(negation=encode_filter(operand))


def decode_filter(message: filter_pb2.Filter, *, field: str = "filter") -> Filter:
    """Return the tree of `message`, not yet checked against a schema.

    Raises `InvalidArgument` that names the node, for example `filter.all_of[2].comparison.value`.
    The depth is bounded by what protobuf parses (100 messages).
    """
    match message.WhichOneof("node"):
        case "comparison":
            comparison = message.comparison
            where = f"{field}.comparison"
            return Comparison(
                comparison.field,
                COMPARISON_OP.decode(comparison.op, field=f"{where}.op"),
                _decode_value(comparison.value, field=f"{where}.value"),
            )
        case "membership":
            membership = message.membership
            values = tuple(
                _decode_value(value, field=f"{field}.membership.values[{number}]")
                for number, value in enumerate(membership.values)
            )
            return Membership(membership.field, values, membership.negated)
        case "exists":
            return Exists(message.exists.field)
        case "prefix":
            return Prefix(message.prefix.field, message.prefix.prefix)
        case "all_of":
            return And(_decode_list(message.all_of, field=f"{field}.all_of"))
        case "any_of":
            return Or(_decode_list(message.any_of, field=f"{field}.any_of"))
        case "negation":
            return Not(decode_filter(message.negation, field=f"{field}.negation"))
        case _:
            raise InvalidArgument.of(
                field,
                "holds no condition that this server knows; set one of comparison, membership,"
                " exists, prefix, all_of, any_of, negation",
            )


def _encode_list(operands: tuple[Filter, ...]) -> filter_pb2.FilterList:
    return filter_pb2.FilterList(operands=[encode_filter(operand) for operand in operands])


def _decode_list(message: filter_pb2.FilterList, *, field: str) -> tuple[Filter, ...]:
    if not message.operands:
        raise InvalidArgument.of(field, "has no operands; give it at least one")
    return tuple(
        decode_filter(operand, field=f"{field}[{number}]")
        for number, operand in enumerate(message.operands)
    )


def _encode_value(value: FilterValue) -> filter_pb2.FilterValue:
    # bool before int: True is an int.
    if isinstance(value, bool):
        return filter_pb2.FilterValue(bool_value=value)
    if isinstance(value, int):
        if INT64_MIN <= value <= INT64_MAX:
            return filter_pb2.FilterValue(int64_value=value)
        return filter_pb2.FilterValue(float64_value=_float_of(value))
    if isinstance(value, float):
        return filter_pb2.FilterValue(float64_value=value)
    if isinstance(value, datetime):
        return filter_pb2.FilterValue(timestamp_value=encode_datetime(value))
    try:
        return filter_pb2.FilterValue(string_value=value)
    except UnicodeEncodeError as error:
        text = f"holds no valid Unicode text: {error}"
        raise InvalidArgument.of("filter", text) from error


def _float_of(value: int) -> float:
    try:
        return fit_float64(value)
    except UnfitValue as error:
        raise InvalidArgument.of("filter", f"does not fit into 64 bits: {error.reason}") from None


def _decode_value(message: filter_pb2.FilterValue, *, field: str) -> FilterValue:
    match message.WhichOneof("value"):
        case "string_value":
            return message.string_value
        case "int64_value":
            return message.int64_value
        case "float64_value":
            if math.isnan(message.float64_value):
                raise InvalidArgument.of(field, "is NaN, which no value equals; use a number")
            return message.float64_value
        case "bool_value":
            return message.bool_value
        case "timestamp_value":
            return decode_datetime(message.timestamp_value, field=field)
        case _:
            raise InvalidArgument.of(
                field,
                "is not set; set one of string_value, int64_value, float64_value, bool_value,"
                " timestamp_value",
            )
