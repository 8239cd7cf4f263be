"""Which column of a file becomes what. Pure; nothing is left out unless somebody asked for it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from annheal.cli.sources.chunk import Columns, Layout
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeType
from annheal.model.suggestions import suggestion

ATTRIBUTES_COLUMN: Final = "attributes"
"""A column of this name that holds objects holds the attributes of a record, as `scan` prints."""
PAYLOAD_COLUMN: Final = "payload"
"""A column of this name that holds JSON is the payload as it is."""
VECTOR_LENGTH_MIN: Final = 16
"""Equally long lists of at least so many numbers look like vectors."""
SAMPLE_ROWS: Final = 2_000
"""Values of a column looked at to tell keywords from free text."""
KEYWORD_MEAN_BYTES_MAX: Final = 48
KEYWORD_DISTINCT_SHARE_MAX: Final = 0.5
"""A text column is a keyword when its values are short and repeat; otherwise it is payload."""
KEYWORD_FEW: Final = 20
"""So few values say nothing about how often they repeat."""

_ID_NAMES = ("id", "_id", "ids", "key")
_VECTOR_NAMES = ("vector", "embedding", "emb", "vectors", "embeddings")


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """What a file holds under one name.

    Attributes:
        name: of the column; of the attribute where `nested`.
        described: its content, for messages.
        kind: the attribute type that holds every value; None where no type does.
        is_vector: its values are lists of numbers.
        looks_like_vector: they are long and equally long, too.
        is_free_text: its texts are long or hardly repeat.
        is_whole_payload: it is named `payload` and holds JSON.
        holds_bytes: it holds bytes, which JSON does not have.
        unfit: why nobody can say by its values alone whether it is an attribute; else empty.
        nested: it is a member of the column `attributes`.
    """

    name: str
    described: str
    kind: AttributeType | None = None
    is_vector: bool = False
    looks_like_vector: bool = False
    is_free_text: bool = False
    is_whole_payload: bool = False
    holds_bytes: bool = False
    unfit: str = ""
    nested: bool = False

    @property
    def shown(self) -> str:
        """The name as a message gives it."""
        return f"{ATTRIBUTES_COLUMN}.{self.name}" if self.nested else self.name


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """What becomes of every column.

    `nested` are the attributes to be taken from the column `attributes`. With `whole_payload` that
    one column is the payload as it is, and `payload` is empty.
    """

    id: str | None
    vector: str | None
    attributes: Mapping[str, AttributeType] = field(default_factory=dict)
    nested: frozenset[str] = frozenset()
    payload: tuple[str, ...] = ()
    whole_payload: str | None = None
    not_taken: tuple[str, ...] = ()

    @property
    def needed(self) -> list[str]:
        """The columns to read."""
        flat = [name for name in self.attributes if name not in self.nested]
        wanted = [self.id, self.vector, *flat, *self.payload, self.whole_payload]
        found = [name for name in wanted if name is not None]
        return [*found, ATTRIBUTES_COLUMN] if self.nested else found

    def layout(self, *, rows: int, dimension: int, metric: str | None = None) -> Layout:
        """Return the layout of the file."""
        payload = self.payload if self.whole_payload is None else (self.whole_payload,)
        return Layout(rows, dimension, self.attributes, payload, self.not_taken, metric)


def plan_columns(
    facts: Sequence[ColumnFacts], columns: Columns, *, with_vectors: bool = True
) -> ColumnPlan:
    """Return what becomes of every column of a file.

    Raises `InvalidArgument`, with the option that fixes it, for a column that would be lost
    although nobody asked for that, and for options that do not fit the file.
    """
    flat = {fact.name: fact for fact in facts if not fact.nested}
    _check_exist(columns.ignored, [fact.name for fact in facts], option="--ignore-columns")
    id_column = _pick_id(list(flat), columns.id)
    if columns.models:
        vector = columns.vector  # an export says what is in it
    else:
        vector = _pick_vector(flat, columns.vector) if with_vectors else None
    rest = [
        fact
        for fact in facts
        if fact.name not in columns.ignored
        and (fact.nested or fact.name not in (id_column, vector))
    ]
    attributes, nested = _pick_attributes(rest, columns)
    left = [f for f in rest if f.name not in attributes or f.nested != (f.name in nested)]
    payload, whole = _pick_payload(left, columns)
    taken = {*payload, whole}
    lost = [fact.shown for fact in left if fact.nested or fact.name not in taken]
    return ColumnPlan(
        id=id_column,
        vector=vector,
        attributes=attributes,
        nested=nested,
        payload=payload,
        whole_payload=whole,
        not_taken=(*columns.ignored, *lost),
    )


def is_keyword(values: Iterable[str]) -> bool:
    """Return whether a sample of texts is short and repeats, so that filters may want it."""
    texts = list(values)
    if not texts:
        return False
    mean_bytes = sum(len(text.encode()) for text in texts) / len(texts)
    repeats = len(set(texts)) <= KEYWORD_DISTINCT_SHARE_MAX * len(texts)
    return mean_bytes <= KEYWORD_MEAN_BYTES_MAX and (repeats or len(texts) < KEYWORD_FEW)


def _pick_id(names: Sequence[str], wanted: str | None) -> str:
    if wanted is not None:
        _check_exist([wanted], names, option="--id-column")
        return wanted
    for name in _ID_NAMES:
        if name in names:
            return name
    raise InvalidArgument.of(
        "--id-column", f"name the column that holds the ids; there are {', '.join(names)}"
    )


def _pick_vector(flat: Mapping[str, ColumnFacts], wanted: str | None) -> str:
    candidates = [name for name, fact in flat.items() if fact.is_vector]
    if wanted is not None:
        _check_exist([wanted], list(flat), option="--vector-column")
        if wanted not in candidates:
            raise InvalidArgument.of(
                "--vector-column", f"{wanted} holds {flat[wanted].described}, no list of numbers"
            )
        return wanted
    named = [name for name in _VECTOR_NAMES if name in candidates]
    if named or len(candidates) == 1:
        return (named or candidates)[0]
    if not candidates:
        raise InvalidArgument.of("--vector-column", "no column of the file is a list of numbers")
    raise InvalidArgument.of(
        "--vector-column", f"several columns could be it, name one: {', '.join(candidates)}"
    )


def _pick_attributes(
    rest: Sequence[ColumnFacts], columns: Columns
) -> tuple[dict[str, AttributeType], frozenset[str]]:
    """Return the type of each attribute, and those that are members of `attributes`."""
    names = [fact.name for fact in rest]
    if columns.attributes is not None:
        _check_exist(columns.attributes, names, option="--attributes")
        order = {name: place for place, name in enumerate(columns.attributes)}
        chosen = [fact for fact in rest if fact.name in order]
        chosen.sort(key=lambda fact: order[fact.name])
    elif columns.schema is not None:
        are_records = columns.are_records or any(fact.nested for fact in rest)
        chosen = [
            fact
            for fact in rest
            if fact.nested or (fact.name in columns.schema and not are_records)
        ]
    else:
        chosen = [fact for fact in rest if _is_attribute_by_nature(fact, columns)]
    found: dict[str, AttributeType] = {}
    for fact in chosen:
        if fact.name in found:
            raise InvalidArgument.of(
                "FILE", f"{fact.name} is a column and a member of {ATTRIBUTES_COLUMN} as well"
            )
        found[fact.name] = _attribute_type(fact, columns.schema)
    return found, frozenset(fact.name for fact in chosen if fact.nested)


def _attribute_type(fact: ColumnFacts, schema: Mapping[str, AttributeType] | None) -> AttributeType:
    if schema is not None:
        if fact.name not in schema:
            raise InvalidArgument.of(
                "--attributes",
                f"the collection declares no attribute {fact.name}; it has"
                f" {', '.join(schema) or 'none'}. --ignore-columns {fact.name} leaves it out",
            )
        return schema[fact.name]
    if fact.kind is None:
        raise InvalidArgument.of(
            "--attributes", f"{fact.shown} holds {fact.described}, no attribute type"
        )
    return fact.kind


def _is_attribute_by_nature(fact: ColumnFacts, columns: Columns) -> bool:
    if fact.nested:
        return True
    if fact.is_whole_payload or fact.name in (*columns.payload_also, *(columns.payload or ())):
        return False
    if fact.unfit:
        raise InvalidArgument.of(fact.name, fact.unfit)
    return fact.kind is not None and not fact.is_free_text


def _pick_payload(
    left: Sequence[ColumnFacts], columns: Columns
) -> tuple[tuple[str, ...], str | None]:
    """Return the columns of the payload, or the one that is the payload as it is."""
    flat = {fact.name: fact for fact in left if not fact.nested}
    if columns.payload is not None:
        _check_exist(columns.payload, list(flat), option="--payload")
        for name in columns.payload:
            _check_json(flat[name])
        return columns.payload, None
    _check_exist(columns.payload_also, list(flat), option="--payload")
    whole = flat.get(PAYLOAD_COLUMN)
    if whole is not None and whole.is_whole_payload and whole.name not in columns.payload_also:
        others = [name for name in flat if name != PAYLOAD_COLUMN]
        if others:
            raise InvalidArgument.of(
                "--payload",
                f"the column {PAYLOAD_COLUMN} is taken as the whole payload, and"
                f" {', '.join(others)} would be lost; --payload auto,{PAYLOAD_COLUMN} puts all of"
                f" them into one object, --ignore-columns {','.join(others)} leaves them out",
            )
        return (), PAYLOAD_COLUMN
    for name, fact in flat.items():
        if fact.looks_like_vector and name not in columns.payload_also:
            raise InvalidArgument.of(
                "--payload",
                f"{name} holds {fact.described}, which looks like other vectors;"
                f" --ignore-columns {name} leaves it out, --payload auto,{name} keeps it in the"
                " payload",
            )
        _check_json(fact)
    return tuple(flat), None


def _check_json(fact: ColumnFacts) -> None:
    if fact.holds_bytes:
        raise InvalidArgument.of(
            fact.name,
            f"holds {fact.described}, which JSON does not have; make it a text, or leave it out"
            f" with --ignore-columns {fact.name}",
        )


def _check_exist(wanted: Iterable[str], names: Sequence[str], *, option: str) -> None:
    for name in wanted:
        if name not in names:
            raise InvalidArgument.of(
                option, f"there is no column {name}; {suggestion(name, list(names))}"
            )
