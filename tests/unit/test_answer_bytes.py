"""Answers are measured before they are built: pages are cut, too large ones refused by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from annheal.coordinator.data_path.merge import merge_answers
from annheal.errors import InvalidArgument
from annheal.model.collection import AttributeField, AttributeType, Schema
from annheal.model.records import (
    EVERYTHING,
    IDS_ONLY,
    Projection,
    RecordBatch,
    RecordSet,
    arrow_schema,
)
from annheal.model.search import SearchAnswer, SearchOptions
from annheal.model.values.answer_size import ANSWER_TOO_LARGE
from annheal.model.write import ScanRequest, Upsert
from annheal.shard_node.search.answer_bytes import record_bytes
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.reads import get_records, scan_page
from annheal.shard_node.search.searcher import Searcher
from annheal.wire.columns import encode_record_set
from tests.support.shards import DIMENSION, Owner, shard_collection, shard_world

ALL_KINDS: Schema = tuple(AttributeField(kind.value, kind) for kind in AttributeType)
ROWS = 60


def rows_of(first: int, *, scale: int) -> RecordBatch:
    """ROWS records whose payloads grow by `scale` bytes a row; every third has no values."""
    rng = np.random.default_rng(first)
    numbers = range(ROWS)
    values: dict[str, list[Any]] = {
        "keyword": ["ü" * (n % 40) for n in numbers],
        "keyword_list": [["tag", "x" * n][: n % 3] for n in numbers],
        "int64": list(numbers),
        "float64": [n / 2 for n in numbers],
        "bool": [n % 2 == 0 for n in numbers],
        "timestamp": [datetime(2024, 1, 1, tzinfo=UTC)] * ROWS,
    }
    schema = arrow_schema(ALL_KINDS)
    columns: list[Any] = [
        pa.array(
            [None if n % 3 == 2 else value for n, value in enumerate(values[field.name])],
            type=field.type,
        )
        for field in schema
    ]
    payloads = [None if n % 3 == 2 else b'"' + b"p" * (n * scale) + b'"' for n in numbers]
    return RecordBatch(
        ids=pa.array([f"r-{first + n}" for n in numbers], type=pa.string()),
        vectors=rng.standard_normal((ROWS, DIMENSION)).astype(np.float32),
        attributes=pa.RecordBatch.from_arrays(columns, schema=schema),
        payloads=pa.array(payloads, type=pa.binary()),
    )


@pytest.fixture
async def owner(tmp_path: Path) -> AsyncIterator[Owner]:
    """A shard with a segment, and with rows in memory that came in two writes."""
    async with shard_world(tmp_path, collection=shard_collection(schema=ALL_KINDS)) as world:
        owner = await world.open()
        await owner.write(Upsert(rows_of(0, scale=100)))
        await owner.shard.flush()
        await owner.write(Upsert(rows_of(100, scale=10)))
        await owner.write(Upsert(rows_of(200, scale=1)))
        yield owner


@pytest.mark.parametrize(
    "projection",
    [
        IDS_ONLY,
        EVERYTHING,
        Projection(attributes=("keyword", "keyword_list")),
        Projection(attributes=("timestamp", "bool", "unknown"), vector=True),
        Projection(payload=True),
    ],
)
async def test_measured_bytes_hold_what_the_message_takes(
    owner: Owner, projection: Projection
) -> None:
    view = owner.shard.view
    assert view.segments
    assert view.growing
    for source in (*view.segments, *view.growing):
        holder = source.segment if hasattr(source, "segment") else source
        rows = np.random.default_rng(3).permutation(holder.rows)[:50].astype(np.int64)
        measured = record_bytes(source, rows, projection)
        for row, size in zip(rows.tolist(), measured.tolist(), strict=True):
            taken = holder.take(np.array([row], dtype=np.int64), projection)
            bare = taken.payloads.nbytes if taken.payloads is not None else 0
            assert size >= bare
        whole = encode_record_set(holder.take(rows, projection), model="m").ByteSize()
        names = 400  # those of the columns and the model, once a message
        assert whole <= measured.sum() + names
        # Missing values and small texts are estimated, and not wildly.
        assert measured.sum() <= whole + 200 * len(rows)


async def test_a_page_ends_where_its_records_are_large(owner: Owner) -> None:
    view = owner.shard.view
    seen: list[str] = []
    pages, after = 0, (-1, "")
    while True:
        request = ScanRequest("c1", 0, 50, *after)
        page = scan_page(view, request, bytes_max=8_000)
        seen += page.records.ids
        pages += 1
        sizes = record_set_bytes(page.records)
        assert len(page.records) == 1 or sizes <= 8_000
        if page.finished:
            break
        after = (page.last_hash, page.last_id)
    assert sorted(seen) == sorted(f"r-{first + n}" for first in (0, 100, 200) for n in range(ROWS))
    assert pages > 20
    # One record alone is a page, however large it is.
    assert len(scan_page(view, ScanRequest("c1", 0, 50), bytes_max=1).records) == 1


def record_set_bytes(records: RecordSet) -> int:
    payloads = records.payloads
    assert payloads is not None
    return sum(len(one) for one in payloads.to_pylist() if one is not None)


async def test_reads_by_id_that_are_too_large_are_refused_with_the_size(owner: Owner) -> None:
    view = owner.shard.view
    ids = tuple(f"r-{n}" for n in range(ROWS))
    assert len(get_records(view, ids, EVERYTHING)) == ROWS
    # What surely fits is not measured; this does not surely fit, and does.
    assert len(get_records(view, ids[:40], EVERYTHING, bytes_max=150_000)) == 40
    with pytest.raises(InvalidArgument, match="name fewer ids") as caught:
        get_records(view, ids, EVERYTHING, bytes_max=50_000)
    assert caught.value.reason == ANSWER_TOO_LARGE
    assert int(caught.value.metadata["answer_bytes"]) > 100_000
    assert caught.value.metadata["bytes_max"] == "50000"
    assert len(get_records(view, ids, IDS_ONLY, bytes_max=50_000)) == ROWS


async def test_hits_that_are_too_large_are_refused_before_they_are_copied(owner: Owner) -> None:
    queries = np.zeros((2, DIMENSION), dtype=np.float32)
    searcher = Searcher(owner.shard.collection, FilterCache(), answer_bytes_max=20_000)

    def search(projection: Projection) -> SearchAnswer:
        options = SearchOptions(k=50, exact=True, projection=projection)
        return searcher.search([(0, owner.shard.view)], queries, options)

    with pytest.raises(InvalidArgument, match=r"k: .*fewer hits") as caught:
        search(EVERYTHING)
    assert caught.value.reason == ANSWER_TOO_LARGE
    assert len(search(IDS_ONLY).records) == 100


def test_merged_hits_have_the_same_limit() -> None:
    def answer(name: str) -> SearchAnswer:
        return SearchAnswer(
            counts=np.array([1], dtype=np.int32),
            scores=np.array([1.0], dtype=np.float32),
            records=RecordSet([name], payloads=pa.array([b"p" * 600], type=pa.binary())),
        )

    assert len(merge_answers([answer("a"), answer("b")], k=2).records) == 2
    with pytest.raises(InvalidArgument, match="fewer hits"):
        merge_answers([answer("a"), answer("b")], k=2, bytes_max=1_000)
    assert len(merge_answers([answer("a"), answer("b")], k=1, bytes_max=1_000).records) == 1
