"""The texts of records, by a template over their attributes and payloads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
import pyarrow as pa

from annheal.model.texts.template import Placeholder, Template
from annheal.model.values.reading import rows_as_dicts


class NoSource(Exception):
    """A record has no text; `reason` says what is missing or does not fit."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def render_records(
    template: Template, *, attributes: pa.RecordBatch, payloads: pa.BinaryArray
) -> list[str | NoSource]:
    """Return the text of every record, or why it has none.

    `attributes` has the declared columns, `payloads` UTF-8 JSON or null, both n rows (`attributes`
    has none where no attribute is declared).
    """
    declared = set(attributes.schema.names)
    from_payload = any(
        part.path[0] not in declared for part in template if isinstance(part, Placeholder)
    )
    rows = rows_as_dicts(attributes) if declared else [{} for _ in range(len(payloads))]
    documents: Sequence[bytes | None] = payloads.to_pylist() if from_payload else [None] * len(rows)
    return [
        _rendered(template, row, document, declared)
        for row, document in zip(rows, documents, strict=True)
    ]


def _rendered(
    template: Template, attributes: Mapping[str, Any], payload: bytes | None, declared: set[str]
) -> str | NoSource:
    try:
        fields = {} if payload is None else msgspec.json.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return NoSource(f"the payload cannot be read: {error}")
    try:
        return "".join(
            part
            if isinstance(part, str)
            else _filled(part, attributes if part.path[0] in declared else fields)
            for part in template
        )
    except NoSource as error:
        return error


def _filled(part: Placeholder, values: object) -> str:
    for key in part.path:
        values = values.get(key) if isinstance(values, Mapping) else None
    if values is None or values == []:
        if part.optional:
            return ""
        raise NoSource(
            f"{part.name!r} of its source is missing; write {{{part.name}?}} in the template if"
            " records may lack it"
        )
    text = _text(values)
    if text is None and isinstance(values, list):
        parts = [_text(value) for value in values]
        if None not in parts:
            return ", ".join(str(one) for one in parts)
    if text is None:
        raise NoSource(f"{part.name!r} of its source is no text, number or list of them")
    return text


def _text(value: object) -> str | None:
    match value:
        case str():
            return value
        case bool():
            return "true" if value else "false"
        case int() | float():
            return str(value)
        case datetime():
            return value.isoformat()
    return None
