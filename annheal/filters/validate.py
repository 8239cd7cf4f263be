"""Filters against a schema: refuse what cannot mean anything, and make equal filters equal."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final, cast

from annheal.errors import FieldViolation, InvalidArgument
from annheal.filters.key import encode_filter
from annheal.filters.trees import FIELD_CHARACTERS_SHOWN_MAX, checked_tree, leaf_path
from annheal.filters.values import fit_text, fit_value
from annheal.model.collection import AttributeType, Schema
from annheal.model.filter import (
    FILTER_MEMBERSHIP_VALUES_MAX,
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
from annheal.model.values.unfit import UnfitValue

VIOLATIONS_MAX: Final = 16
"""A filter with more mistakes than this reports the first ones."""
NAMES_SHOWN_MAX: Final = 20

_EQUALITY: Final = (ComparisonOp.EQ, ComparisonOp.NE)
_ORDERED_TYPES: Final = (
    AttributeType.KEYWORD,
    AttributeType.INT64,
    AttributeType.FLOAT64,
    AttributeType.TIMESTAMP,
)
_TEXT_TYPES: Final = (AttributeType.KEYWORD, AttributeType.KEYWORD_LIST)
_COMPLEMENT: Final = {ComparisonOp.EQ: ComparisonOp.NE, ComparisonOp.NE: ComparisonOp.EQ}


def validate_filter(filter: Filter, schema: Schema, *, path: str = "filter") -> Filter:
    """Return the canonical form of `filter`, which selects the same records, or refuse it.

    Canonical: values have the type of their field; nested `and` / `or` are flattened, their
    operands sorted and free of duplicates; `not` over `=`, `!=`, `in`, `not in` and `not` is
    resolved; values of `in` are sorted and free of duplicates, a single one becomes `=`.
    Canonical filters are equal, and have equal keys, whatever order they were written in.

    Raises:
        InvalidArgument: every mistake found, up to `VIOLATIONS_MAX`, each with its path
            (`filter.and[1].year`) and its fix.
    """
    return _Validator(schema).canonical(checked_tree(filter, path=path), path)


class _Validator:
    """Walks one filter of checked size over one schema."""

    def __init__(self, schema: Schema) -> None:
        self._types = {field.name: field.type for field in schema}

    def canonical(self, filter: Filter, path: str) -> Filter:
        match filter:
            case And(operands):
                return self._junction(And, operands, f"{path}.and")
            case Or(operands):
                return self._junction(Or, operands, f"{path}.or")
            case Not(operand):
                return _complement(self.canonical(operand, f"{path}.not"))
        path = leaf_path(path, filter.field)
        type = self._type_of(filter.field, path)
        try:
            match filter:
                case Comparison():
                    return _canonical_comparison(filter, type=type)
                case Membership():
                    return _canonical_membership(filter, type=type, path=path)
                case Prefix():
                    return _canonical_prefix(filter, type=type)
                case Exists():
                    return filter
        except UnfitValue as error:
            raise InvalidArgument.of(path, str(error)) from None

    def _junction(
        self, kind: type[And] | type[Or], operands: Sequence[Filter], path: str
    ) -> Filter:
        if not operands:
            raise InvalidArgument.of(path, "no operands; give at least one, or leave it out")
        violations: list[FieldViolation] = []
        members: dict[bytes, Filter] = {}
        for position, operand in enumerate(operands):
            try:
                member = self.canonical(operand, f"{path}[{position}]")
            except InvalidArgument as error:
                violations.extend(error.violations)
                continue
            flat = member.operands if isinstance(member, kind) else (member,)
            members.update((encode_filter(part), part) for part in flat)
        if violations:
            raise _several(violations)
        unique = tuple(members[key] for key in sorted(members))
        return unique[0] if len(unique) == 1 else kind(unique)

    def _type_of(self, name: str, path: str) -> AttributeType:
        if (type := self._types.get(name)) is not None:
            return type
        if not self._types:
            raise InvalidArgument.of(path, "unknown field; the collection declares no attributes")
        known = sorted(self._types)
        listed = ", ".join(known[:NAMES_SHOWN_MAX])
        if len(known) > NAMES_SHOWN_MAX:
            listed += f" and {len(known) - NAMES_SHOWN_MAX} more"
        close = difflib.get_close_matches(name[:FIELD_CHARACTERS_SHOWN_MAX], known, n=1)
        question = f"; did you mean {close[0]}?" if close else "."
        raise InvalidArgument.of(path, f"unknown field{question} The fields are: {listed}")


def _several(violations: list[FieldViolation]) -> InvalidArgument:
    kept = violations[:VIOLATIONS_MAX]
    return InvalidArgument(
        "; ".join(f"{violation.field}: {violation.description}" for violation in kept),
        violations=kept,
    )


def _complement(filter: Filter) -> Filter:
    """Return the canonical complement of a canonical filter.

    Ordered comparisons stay under `not`: their opposites are false on missing values too.
    """
    if isinstance(filter, Not):
        return filter.operand
    if isinstance(filter, Comparison) and filter.op in _COMPLEMENT:
        return Comparison(filter.field, _COMPLEMENT[filter.op], filter.value)
    if isinstance(filter, Membership):
        return Membership(filter.field, filter.values, not filter.negated)
    return Not(filter)


def _canonical_comparison(filter: Comparison, *, type: AttributeType) -> Filter:
    if filter.op not in _EQUALITY and type not in _ORDERED_TYPES:
        allowed = "=, != and in" if type is AttributeType.BOOL else "=, !=, in and prefix"
        raise UnfitValue(f"{filter.op.value} does not apply to type {type.value}; use {allowed}")
    return Comparison(filter.field, filter.op, fit_value(filter.value, type, op=filter.op))


def _canonical_membership(filter: Membership, *, type: AttributeType, path: str) -> Filter:
    word = "not in" if filter.negated else "in"
    if not filter.values:
        raise UnfitValue(f"'{word}' has no values; give at least one")
    if len(filter.values) > FILTER_MEMBERSHIP_VALUES_MAX:
        raise UnfitValue(
            f"'{word}' has {len(filter.values)} values; the limit is "
            f"{FILTER_MEMBERSHIP_VALUES_MAX}; split it into several requests"
        )
    fitted: set[FilterValue] = set()
    violations: list[FieldViolation] = []
    for position, value in enumerate(filter.values):
        try:
            fitted.add(fit_value(value, type, op=None))
        except UnfitValue as error:
            violations.append(FieldViolation(f"{path}.in[{position}]", str(error)))
            if len(violations) >= VIOLATIONS_MAX:
                break
    if violations:
        raise _several(violations)
    if len(fitted) == 1:
        op = ComparisonOp.NE if filter.negated else ComparisonOp.EQ
        return Comparison(filter.field, op, fitted.pop())
    # They have one type, that of their field, so they do compare.
    ordered = tuple(sorted(cast("set[str]", fitted)))
    return Membership(filter.field, ordered, filter.negated)


def _canonical_prefix(filter: Prefix, *, type: AttributeType) -> Filter:
    if type not in _TEXT_TYPES:
        raise UnfitValue(
            f"prefix does not apply to type {type.value}; only to keyword and keyword_list"
        )
    return Prefix(filter.field, fit_text(filter.prefix, type=type))
