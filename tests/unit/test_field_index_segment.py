"""Field indexes in the files of segments: format 2 has them, format 1 is evaluated."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from annheal.filters import evaluate, parse_expression, validate_filter
from annheal.model.collection import Schema
from annheal.model.topology.manifest import SegmentEntry
from annheal.segment import Segment
from annheal.segment.fields import open_fields
from annheal.segment.meta import FIELDS_FILE
from tests.support.segments import SCHEMA, open_local, sample_columns, sample_rows, write_sample

GOLDEN = Path(__file__).parents[1] / "golden"
FILTERS = [
    "colour = 'red'",
    "colour != 'red'",
    "colour starts with 'gr' or tags = 'a'",
    "tags starts with 'b' and size > 3",
    "size >= 2 and size < 11 and exists(weight)",
    "weight in (0.25, 1.5) or not weight > 2",
    "sold = false and seen < '1970-01-01T00:00:05Z'",
    "not (sold = true or exists(tags))",
]


def rows_of(segment: Segment, text: str) -> list[int]:
    bitmap = segment.matches(validate_filter(parse_expression(text), SCHEMA))
    assert bitmap.count == len(bitmap.members())
    return [int(row) for row in bitmap.members()]


def evaluated(segment: Segment, text: str) -> list[int]:
    filter = validate_filter(parse_expression(text), SCHEMA)
    mask = evaluate(filter, segment.attributes, row_count=segment.rows)
    return [int(row) for row in np.flatnonzero(mask)]


@pytest.mark.parametrize("version", [1, 2])
def test_segments_of_every_format_are_filtered(version: int) -> None:
    folder = GOLDEN / f"segment-v{version}"
    entry = msgspec.json.decode((folder / "entry.json").read_bytes(), type=SegmentEntry)
    segment = open_local(folder, entry)
    assert segment.meta.format_version == version
    red = [i for i, colour in enumerate(sample_columns(segment.rows)["colour"]) if colour == "red"]
    assert rows_of(segment, FILTERS[0]) == red
    for text in FILTERS:
        assert rows_of(segment, text) == evaluated(segment, text)


@pytest.mark.parametrize("rows", [1, 7, 64, 65, 1_000])
def test_written_segments_are_filtered_by_their_indexes(tmp_path: Path, rows: int) -> None:
    segment = open_local(tmp_path, write_sample(tmp_path, rows=sample_rows(rows)))
    for text in FILTERS:
        assert rows_of(segment, text) == evaluated(segment, text)


def test_keywords_are_stored_in_order(tmp_path: Path) -> None:
    segment = open_local(tmp_path, write_sample(tmp_path))
    colour = segment.attributes.column(0)
    assert isinstance(colour, pa.DictionaryArray)
    assert colour.dictionary.to_pylist() == ["blue", "green", "red"]
    assert colour.to_pylist() == sample_columns(20)["colour"]


def test_a_segment_without_attributes_has_no_index(tmp_path: Path) -> None:
    rows = sample_rows(5, schema=())
    segment = open_local(tmp_path, write_sample(tmp_path, rows=rows, schema=()))
    later = validate_filter(parse_expression("not exists(colour)"), SCHEMA)
    assert segment.matches(later).count == 5


def test_an_index_of_other_rows_or_fields_is_refused(tmp_path: Path) -> None:
    write_sample(tmp_path)
    path = tmp_path / FIELDS_FILE
    assert set(open_fields(path, schema=SCHEMA, rows=20)) == {
        "colour", "tags", "size", "weight", "seen",
    }  # fmt: skip
    with pytest.raises(ValueError, match="not 21"):
        open_fields(path, schema=SCHEMA, rows=21)
    fewer: Schema = SCHEMA[1:]
    with pytest.raises(ValueError, match="colour"):
        open_fields(path, schema=fewer, rows=20)
