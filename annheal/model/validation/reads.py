"""Checks of searches and other reads."""

from __future__ import annotations

from annheal.errors import InvalidArgument
from annheal.model.collection import Collection, ModelSpec
from annheal.model.limits import (
    EF_MAX,
    K_MAX,
    SCAN_PAGE_ROWS_MAX,
    SEARCH_HITS_MAX,
    SEARCH_QUERIES_MAX,
    TIMEOUT_MAX_S,
)
from annheal.model.measures.recall_tags import checked_tag
from annheal.model.records import (
    Float32Matrix,
    Projection,
)
from annheal.model.search import SearchOptions
from annheal.model.suggestions import suggestion
from annheal.model.validation.ids import check_rows


def validate_search(queries: Float32Matrix, options: SearchOptions, *, model: ModelSpec) -> None:
    """Raise `InvalidArgument` unless the number of queries, k and ef are within their limits.

    The vectors themselves are for `validate_vectors`, the filter for `validate_filter`.
    """
    count = len(queries)
    check_rows(count, field="queries", rows_max=SEARCH_QUERIES_MAX)
    validate_search_options(options, model=model)
    if count * options.k > SEARCH_HITS_MAX:
        raise InvalidArgument.of(
            "k",
            f"{count} queries times k = {options.k} is more than {SEARCH_HITS_MAX} hits;"
            " send fewer queries a call",
        )


def validate_search_options(options: SearchOptions, *, model: ModelSpec) -> None:
    """Raise `InvalidArgument` unless k, ef, the objective, the tag and the model are acceptable.

    `model` is the one whose vectors are searched.
    """
    if not 1 <= options.k <= K_MAX:
        raise InvalidArgument.of("k", f"{options.k} is not between 1 and {K_MAX}")
    if options.ef is not None and not 1 <= options.ef <= EF_MAX:
        raise InvalidArgument.of("ef", f"{options.ef} is not between 1 and {EF_MAX}")
    objective = options.recall_objective
    if objective is not None and not 0.0 < objective <= 1.0:
        raise InvalidArgument.of(
            "recall_objective", f"{objective} must be greater than 0 and at most 1"
        )
    checked_tag(options.tag)
    if options.model and options.model != model.name:
        raise InvalidArgument.of(
            "model",
            f"the query is tagged with model {options.model!r}, but vectors of {model.name!r} are"
            " searched; vectors of two models cannot be compared",
        )


def validate_projection(projection: Projection, *, collection: Collection) -> None:
    """Raise `InvalidArgument` for an attribute or a model that is unknown or named twice."""
    known_models = [model.name for model in collection.usable_models]
    for number, name in enumerate(projection.models):
        if name not in known_models:
            raise InvalidArgument.of(
                f"models[{number}]", f"unknown model {name!r}; {suggestion(name, known_models)}"
            )
    if len(set(projection.models)) != len(projection.models):
        raise InvalidArgument.of("models", "names a model twice; name each once")
    if projection.models and not projection.vector:
        raise InvalidArgument.of("models", "names models, but no vectors are asked for: set vector")
    if not projection.attributes:
        return
    declared = [field.name for field in collection.schema]
    known = [*declared, "attributes", "payload", "vector", "version", "all"]
    for number, name in enumerate(projection.attributes):
        if name not in declared:
            raise InvalidArgument.of(
                f"attributes[{number}]", f"unknown attribute {name!r}; {suggestion(name, known)}"
            )
    if len(set(projection.attributes)) != len(projection.attributes):
        raise InvalidArgument.of("attributes", "names an attribute twice; name each once")


def validate_page_rows(rows_max: int) -> None:
    """Raise `InvalidArgument` unless a scan page of that many rows is allowed."""
    if not 1 <= rows_max <= SCAN_PAGE_ROWS_MAX:
        raise InvalidArgument.of(
            "rows_max", f"{rows_max} is not between 1 and {SCAN_PAGE_ROWS_MAX}"
        )


def validate_timeout(timeout_s: float) -> None:
    """Raise `InvalidArgument` unless the caller's time is positive and at most ten minutes."""
    if not 0.0 < timeout_s <= TIMEOUT_MAX_S:
        raise InvalidArgument.of(
            "timeout_s", f"{timeout_s} must be more than 0 and at most {TIMEOUT_MAX_S} seconds"
        )
