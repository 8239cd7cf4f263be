"""Filters: text to tree, tree against schema, tree over columns. docs/filters.md explains them."""

from __future__ import annotations

from annheal.filters.evaluate import evaluate
from annheal.filters.expression import format_expression, parse_expression
from annheal.filters.indexed import IndexedColumns
from annheal.filters.key import fields_of, filter_key
from annheal.filters.postings import INDEXED_TYPES, Postings, build_postings
from annheal.filters.texts import sorted_dictionary
from annheal.filters.trees import checked_tree
from annheal.filters.validate import validate_filter

__all__ = [
    "INDEXED_TYPES",
    "IndexedColumns",
    "Postings",
    "build_postings",
    "checked_tree",
    "evaluate",
    "fields_of",
    "filter_key",
    "format_expression",
    "parse_expression",
    "sorted_dictionary",
    "validate_filter",
]
