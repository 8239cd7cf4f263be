"""Canonical bytes of filters: the order of operands, and the keys of caches."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Any

import msgspec

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
from annheal.model.values.moments import EPOCH, MICROSECOND

FILTER_KEY_BYTES = 16


def epoch_micros(value: datetime) -> int:
    """Return the microseconds from 1970-01-01 UTC to the aware `value`, exactly."""
    return (value - EPOCH) // MICROSECOND


def encode_filter(filter: Filter) -> bytes:
    """Return bytes that are equal exactly for equal trees; they sort leaves by field name.

    The tree must have been validated. For one version of Annheal only: not a storage format.
    """
    return msgspec.json.encode(_plain(filter))


def filter_key(filter: Filter) -> bytes:
    """Return a cache key of `FILTER_KEY_BYTES` bytes for a filter from `validate_filter`.

    Filters that mean the same up to the order of operands and values, duplicates, nesting of
    like operators and double negation share a key, because validation makes them equal.
    """
    return hashlib.blake2b(encode_filter(filter), digest_size=FILTER_KEY_BYTES).digest()


def fields_of(filter: Filter) -> frozenset[str]:
    """Return the names of the fields that the filter reads."""
    if isinstance(filter, And | Or):
        return frozenset[str]().union(*map(fields_of, filter.operands))
    if isinstance(filter, Not):
        return fields_of(filter.operand)
    return frozenset((filter.field,))


def _plain(filter: Filter) -> list[Any]:
    """Return nested lists; a leaf starts with its field, which sorts before any composite."""
    match filter:
        case Comparison(field, op, value):
            return [field, op.value, *_tagged(value)]
        case Membership(field, values, negated):
            return [field, "not in" if negated else "in", *map(_tagged, values)]
        case Exists(field):
            return [field, "exists"]
        case Prefix(field, prefix):
            return [field, "prefix", prefix]
        case And(operands):
            return [["and"], *map(_plain, operands)]
        case Or(operands):
            return [["or"], *map(_plain, operands)]
        case Not(operand):
            return [["not"], _plain(operand)]


def _tagged(value: FilterValue) -> tuple[str, str | int]:
    """Return the value with its type: 1, 1.0 and True are equal in Python and differ here."""
    if isinstance(value, bool):
        return ("b", int(value))
    if isinstance(value, str):
        return ("s", value)
    if isinstance(value, int):
        return ("i", value)
    if isinstance(value, float):
        return ("f", value.hex())
    return ("t", epoch_micros(value))
