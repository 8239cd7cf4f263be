"""Checks of vectors and their models: each error names the row and the fix."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from annheal.errors import InvalidArgument
from annheal.model.collection import Collection, Metric, ModelSpec
from annheal.model.records import (
    Float32Matrix,
    ModelVectors,
    lacking,
)
from annheal.model.validation.attributes import first

# A vector whose squared length differs from 1 by no more than this is taken as it is, so that what
# was read back can be written again without changing a bit.
UNIT_TOLERANCE = 1e-6

L2_SQUARE_MAX = float(np.finfo(np.float32).max) / 4.1
"""Squared length up to which the squared distance of any two vectors is finite in float32."""


def usable_model(name: str, *, collection: Collection, field: str = "model") -> ModelSpec:
    """Return the model `name`, the serving one for an empty name.

    Raises `InvalidArgument` for a model that is unknown or was removed, with those that there are.
    """
    if not name:
        return collection.model
    found = next((one for one in collection.usable_models if one.name == name), None)
    if found is None:
        there = ", ".join(
            f"{one.name!r} ({one.dimension} floats)" for one in collection.usable_models
        )
        raise InvalidArgument.of(
            field,
            f"is {name[:80]!r}, but the models of collection {collection.name!r} are {there};"
            " vectors of two models cannot be compared",
        )
    return found


def validate_vectors(
    vectors: Float32Matrix, *, model: ModelSpec, field: str = "vectors"
) -> Float32Matrix:
    """Return `vectors` (n, d) as they are stored: C-contiguous float32, unit for cosine.

    Raises `InvalidArgument` for a wrong dimension, a value that is not finite, a zero vector under
    cosine, and a vector so long that its squared length overflows float32 under the other metrics.
    A cosine vector that already has unit length is returned bit for bit.
    """
    if vectors.ndim != 2 or vectors.shape[1] != model.dimension:
        given = vectors.shape[1] if vectors.ndim == 2 else vectors.shape
        raise InvalidArgument.of(
            field,
            f"dimension {given}, but model {model.name!r} has dimension {model.dimension};"
            " embed with that model",
        )
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows)
    odd = ~np.isfinite(squares)
    if model.metric is Metric.L2:
        odd |= squares > L2_SQUARE_MAX
    if odd.any():
        _check_finite(rows, odd, field=field)
        if model.metric is not Metric.COSINE:
            raise InvalidArgument.of(
                f"{field}[{first(odd)}]",
                "is so long that its squared length or distance overflows float32;"
                " scale the vectors down",
            )
    if model.metric is not Metric.COSINE:
        return rows
    return _unit(rows, squares, field=field)


def _unit(rows: Float32Matrix, squares: npt.NDArray[np.float32], *, field: str) -> Float32Matrix:
    change = ~(np.abs(squares - 1.0) <= UNIT_TOLERANCE)
    if not change.any():
        return rows
    # In float64 neither the square of 1e38 overflows nor that of 1e-38 vanishes.
    wide = rows[change].astype(np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", wide, wide))
    if not lengths.all():
        row = int(np.flatnonzero(change)[first(lengths == 0.0)])
        raise InvalidArgument.of(
            f"{field}[{row}]",
            "is the zero vector, which has no direction for cosine to compare;"
            " leave the record out or use inner_product or l2",
        )
    unit = rows.copy() if not change.all() else np.empty_like(rows)
    unit[change] = wide / lengths[:, None]
    return unit


def _check_finite(rows: Float32Matrix, suspects: npt.NDArray[np.bool_], *, field: str) -> None:
    for row in np.flatnonzero(suspects):
        wrong = ~np.isfinite(rows[row])
        if wrong.any():
            position = first(wrong)
            raise InvalidArgument.of(
                f"{field}[{row}]",
                f"holds {rows[row, position]} at position {position}; every value must be finite",
            )


def may_lack(one: ModelVectors) -> bool:
    """Return whether some row has no vector."""
    return bool(one.vectors.size) and bool(lacking(one.vectors).any())


def validate_model_vectors(
    given: Sequence[ModelVectors], *, collection: Collection
) -> tuple[ModelVectors, ...]:
    """Return the vectors of several models as they are stored, rows of NaN as they are.

    Raises `InvalidArgument` for an unknown model and one that comes twice, and as
    `validate_vectors` does.
    """
    found: dict[str, ModelVectors] = {}
    for one in given:
        name = one.model or collection.models[0].name
        field = f"vectors[{name!r}]"
        model = usable_model(name, collection=collection, field=f"{field}.model")
        if name in found:
            raise InvalidArgument.of(field, "is given twice; give the vectors of a model once")
        present = one.vectors
        absent = lacking(present) if may_lack(one) else None
        if absent is not None:
            present = present[~absent]
        stored = validate_vectors(present, model=model, field=field)
        if absent is not None:
            whole = np.full(one.vectors.shape, np.nan, dtype=np.float32)
            whole[~absent] = stored
            stored = whole
        found[name] = ModelVectors(collection.tag_of(model), stored)
    return tuple(found.values())


def check_some_vector(
    given: Sequence[ModelVectors],
    *,
    collection: Collection,
    place: Callable[[int], str] = "vectors[{}]".format,
) -> None:
    """Raise `InvalidArgument` unless each row has a vector of at least one model."""
    without = np.logical_and.reduce([lacking(one.vectors) for one in given if one.vectors.size])
    if np.any(without):
        names = ", ".join(repr(one.name) for one in collection.usable_models)
        raise InvalidArgument.of(
            place(first(without)),
            f"there is none; send a vector of at least one model of {names}",
        )
