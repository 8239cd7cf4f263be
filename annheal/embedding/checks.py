"""Whether what a collection says about its texts can be used."""

from __future__ import annotations

from annheal.errors import FieldViolation, InvalidArgument
from annheal.model.collection import Collection
from annheal.model.texts.spec import TextModel, embedder_violations
from annheal.model.texts.template import parse_template


def validate_text_models(collection: Collection) -> None:
    """Raise `InvalidArgument` with every violation of `collection.text_models`.

    Whether the embedders can be made is for `annheal.embedding.registry` to say.
    """
    places = {model.name: number for number, model in enumerate(collection.models)}
    found: list[FieldViolation] = []
    for one in collection.text_models:
        number = places.get(one.model)
        if number is None:
            text = f"{one.model!r} is no model of the collection"
            found.append(FieldViolation("text_models", text))
        else:
            found += _violations(one, field=f"models[{number}]")
    if found:
        text = "; ".join(f"{one.field}: {one.description}" for one in found)
        raise InvalidArgument(text, violations=found)


def _violations(text_model: TextModel, *, field: str) -> list[FieldViolation]:
    if not text_model.embedder.kind:
        text = "is not set; a source needs an embedder for its text"
        return [FieldViolation(f"{field}.embedder", text)]
    found = embedder_violations(text_model.embedder, field=f"{field}.embedder")
    if text_model.source:
        try:
            parse_template(text_model.source, field=f"{field}.source")
        except InvalidArgument as error:
            found += error.violations
    return found
