"""Filters: text to tree, tree against schema, tree over columns. docs/filters.md explains them."""

from __future__ import annotations

from annheal.filters.evaluate import evaluate
from annheal.filters.expression import format_expression, parse_expression
from annheal.filters.key import fields_of, filter_key
from annheal.filters.validate import validate_filter

__all__ = [
    "evaluate",
    "fields_of",
    "filter_key",
    "format_expression",
    "parse_expression",
    "validate_filter",
]
