"""Checks of what callers send, vectorised: each error names the field, the row and the fix.

Nothing here loops over values except to say which one is wrong. Payloads have their own module.
"""

from __future__ import annotations

from annheal.model.validation.collections import validate_collection, validate_settings
from annheal.model.validation.ids import id_array, validate_ids
from annheal.model.validation.reads import (
    validate_page_rows,
    validate_projection,
    validate_search,
    validate_search_options,
    validate_timeout,
)
from annheal.model.validation.records import validate_batch, validate_patch, validate_versions
from annheal.model.validation.vectors import (
    L2_SQUARE_MAX,
    check_some_vector,
    may_lack,
    usable_model,
    validate_model_vectors,
    validate_vectors,
)

__all__ = [
    "L2_SQUARE_MAX",
    "check_some_vector",
    "id_array",
    "may_lack",
    "usable_model",
    "validate_batch",
    "validate_collection",
    "validate_ids",
    "validate_model_vectors",
    "validate_page_rows",
    "validate_patch",
    "validate_projection",
    "validate_search",
    "validate_search_options",
    "validate_settings",
    "validate_timeout",
    "validate_vectors",
    "validate_versions",
]
