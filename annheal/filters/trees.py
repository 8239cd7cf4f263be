"""Trees as callers build them: of bounded size, of the known nodes, with plain values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from datetime import date
from decimal import Decimal
from typing import Any, Final

import numpy as np

from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.filter import (
    FILTER_DEPTH_MAX,
    FILTER_NODES_MAX,
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
from annheal.model.values.moments import moment_of, moment_us
from annheal.model.values.rows import listed, rows_of
from annheal.model.values.scalars import exact_number, is_whole_number
from annheal.model.values.unfit import UnfitValue, shown

FIELD_CHARACTERS_SHOWN_MAX: Final = 64
_LEAVES: Final = (Comparison, Membership, Exists, Prefix)
_NODES: Final = "Comparison, Membership, Exists, Prefix, And, Or and Not of annheal.model.filter"


def checked_tree(filter: Any, *, path: str = "filter") -> Filter:
    """Return the tree that a caller built, with tuples of operands and plain Python values.

    Values become str, bool, int, float or an aware datetime in UTC, exactly; what they are compared
    with is for `validate_filter`. Raises `InvalidArgument` with the path of what is no node or no
    value, and for a tree that is too deep or too large.
    """
    _check_size(filter, path=path)
    return _plain(filter, path)


def leaf_path(path: str, field: str) -> str:
    """Return the path of a leaf, for messages."""
    return f"{path}.{field[:FIELD_CHARACTERS_SHOWN_MAX]}"


def _check_size(filter: Any, *, path: str) -> None:
    """Refuse trees too deep or too large before anything walks them recursively."""
    nodes = 0
    waiting: list[tuple[Any, int]] = [(filter, 1)]
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        if depth > FILTER_DEPTH_MAX:
            raise InvalidArgument.of(
                path, f"the filter is nested more than {FILTER_DEPTH_MAX} levels deep; flatten it"
            )
        if nodes > FILTER_NODES_MAX:
            raise InvalidArgument.of(
                path,
                f"the filter has more than {FILTER_NODES_MAX} nodes; "
                "use 'in' instead of many comparisons, or split the request",
            )
        if isinstance(node, Not):
            waiting.append((node.operand, depth + 1))
        elif isinstance(node, And | Or):
            operands = _operands(node, path)
            waiting.extend((operand, depth + 1) for operand in operands)


def _operands(node: And | Or, path: str) -> tuple[Any, ...]:
    given: Any = node.operands
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        kind = type(node).__name__
        raise InvalidArgument.of(
            path, f"the operands of {kind} are a tuple of filters, not {shown(given)}"
        )
    return tuple(given)


def _plain(filter: Any, path: str) -> Filter:
    match filter:
        case And() | Or():
            path = f"{path}.{type(filter).__name__.lower()}"
            kind = type(filter)
            return kind(
                tuple(
                    _plain(operand, f"{path}[{position}]")
                    for position, operand in enumerate(_operands(filter, path))
                )
            )
        case Not(operand):
            return Not(_plain(operand, f"{path}.not"))
    if not isinstance(filter, _LEAVES):
        raise InvalidArgument.of(
            path,
            f'a filter is text such as "year >= 2024" or a tree of {_NODES}, not {shown(filter)}',
        )
    if not isinstance(filter.field, str):
        raise InvalidArgument.of(path, f"the name of a field is text, not {shown(filter.field)}")
    where = leaf_path(path, filter.field)
    match filter:
        case Comparison(field, op, value):
            return Comparison(field, _op(op, where), plain_value(value, where))
        case Membership(field, values, negated):
            return Membership(field, _values(values, where), bool(negated))
        case Prefix(field, prefix):
            if not isinstance(prefix, str):
                raise InvalidArgument.of(where, f"a prefix is text, not {shown(prefix)}")
            return Prefix(field, prefix)
    return filter


def _op(op: Any, where: str) -> ComparisonOp:
    try:
        return ComparisonOp(op)
    except ValueError:
        known = " ".join(ComparisonOp)
        raise InvalidArgument.of(where, f"{shown(op)} is no comparison; one of {known}") from None


def _values(values: Any, where: str) -> tuple[FilterValue, ...]:
    if isinstance(values, tuple) and set(map(type, values)) <= {str}:
        return values
    try:
        given = listed(rows_of(list(values) if isinstance(values, Set) else values))
    except UnfitValue as error:
        raise InvalidArgument.of(where, f"the values of 'in': {error.reason}") from None
    return tuple(
        plain_value(value, f"{where}.in[{position}]") for position, value in enumerate(given)
    )


def plain_value(value: Any, where: str) -> FilterValue:
    """Return a value of Python or numpy as a plain one that equals it."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool | np.bool_):
        return bool(value)
    try:
        if isinstance(value, date | np.datetime64):
            return moment_of(moment_us(value))
        if isinstance(value, float | np.floating | Decimal) or is_whole_number(value):
            return exact_number(value, AttributeType.FLOAT64)
    except UnfitValue as error:
        raise InvalidArgument.of(where, error.reason) from None
    raise InvalidArgument.of(
        where, f"a value is text, a number, a bool or a datetime, not {shown(value)}"
    )
