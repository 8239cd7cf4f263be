"""Random updates of parts of records, over growing rows and segments, against a dict."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.model.collection import AttributeField, AttributeType
from annheal.model.records import EVERYTHING, RecordBatch, RecordPatch, arrow_schema
from annheal.model.write import DeleteIds, Update, Upsert
from annheal.shard_node.search.reads import get_records
from tests.support.shards import DIMENSION, Owner, shard_collection, shard_world

SCHEMA = tuple(AttributeField(f"a_{kind.value}", kind) for kind in AttributeType)
ARROW = arrow_schema(SCHEMA)
IDS = tuple(f"r{number}" for number in range(6))
VALUES: dict[AttributeType, st.SearchStrategy[Any]] = {
    AttributeType.KEYWORD: st.sampled_from(["", "red", "grün", "x" * 300]),
    AttributeType.KEYWORD_LIST: st.lists(st.sampled_from(["a", "b", ""]), max_size=3),
    AttributeType.INT64: st.integers(-(2**63), 2**63 - 1),
    AttributeType.FLOAT64: st.floats(allow_nan=False, allow_infinity=False),
    AttributeType.BOOL: st.booleans(),
    AttributeType.TIMESTAMP: st.integers(0, 2**50).map(
        lambda us: pa.scalar(us, type=pa.timestamp("us", tz="UTC")).as_py()
    ),
}
Record = dict[str, Any]
"""The parts of a record by name; attributes under their own names."""


@st.composite
def parts(draw: st.DrawFn, *, whole: bool) -> Record:
    """Return values for all parts of a record, or for some of them."""
    found: Record = {}
    for one in SCHEMA:
        if whole or draw(st.booleans()):
            found[one.name] = draw(st.none() | VALUES[one.type])
    if whole or draw(st.booleans()):
        found["payload"] = draw(st.none() | st.sampled_from([b"1", b'{"a": [null]}']))
    if whole or not found or draw(st.booleans()):
        found["vector"] = [draw(st.integers(-9, 9)) / 2 for _ in range(DIMENSION)]
    return found


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.sampled_from(IDS), parts(whole=True)),
        st.tuples(st.just("update"), st.sampled_from(IDS), parts(whole=False)),
        st.tuples(st.just("delete"), st.sampled_from(IDS), st.just({})),
        st.tuples(st.just("flush"), st.just(""), st.just({})),
    ),
    min_size=4,
    max_size=24,
)


def columns_of(record: Record) -> pa.RecordBatch:
    fields = [one for one in ARROW if one.name in record]
    columns: list[Any] = [pa.array([record[one.name]], type=one.type) for one in fields]
    return pa.RecordBatch.from_arrays(columns, names=[one.name for one in fields])


@dataclass(slots=True)
class Story:
    """A shard and what it should hold."""

    owner: Owner
    records: dict[str, Record] = field(default_factory=dict)

    async def do(self, step: str, record_id: str, record: Record) -> None:
        """Take one step with both, and compare the answer."""
        ids = pa.array([record_id], type=pa.string())
        vector = record.get("vector")
        vectors = None if vector is None else np.array([vector], dtype=np.float32)
        payloads = pa.array([record.get("payload")], type=pa.binary())
        exists = record_id in self.records
        if step == "flush":
            await self.owner.shard.flush()
        elif step == "delete":
            answer = await self.owner.write(DeleteIds((record_id,)))
            assert answer.deleted == exists
            self.records.pop(record_id, None)
        elif step == "upsert":
            assert vectors is not None
            await self.owner.write(Upsert(RecordBatch(ids, vectors, columns_of(record), payloads)))
            self.records[record_id] = record
        else:
            patch = RecordPatch(
                ids, columns_of(record), payloads if "payload" in record else None, vectors
            )
            answer = await self.owner.write(Update(patch))
            assert (answer.upserted, len(answer.missing)) == (exists, not exists)
            if exists:
                self.records[record_id] = self.records[record_id] | record

    def check(self) -> None:
        """Compare every part of every record."""
        found = get_records(self.owner.shard.view, IDS, EVERYTHING)
        assert found.ids == [one for one in IDS if one in self.records]
        if not found.ids:
            return
        assert found.attributes is not None
        assert found.payloads is not None
        assert found.vectors is not None
        rows = zip(
            found.attributes.to_pylist(), found.payloads.to_pylist(), found.vectors, strict=True
        )
        for record_id, (attributes, payload, vector) in zip(found.ids, rows, strict=True):
            seen = {**attributes, "payload": payload, "vector": vector.tolist()}
            assert seen == self.records[record_id]


async def tell(root: Path, steps: list[tuple[str, str, Record]]) -> None:
    async with shard_world(root, collection=shard_collection(schema=SCHEMA)) as world:
        story = Story(await world.open())
        for step in steps:
            await story.do(*step)
            story.check()
        await story.owner.stop()
        story.owner = await world.open(node_id="b")
        story.check()


@given(STEPS)
@settings(max_examples=40)
def test_what_is_read_is_what_was_written_part_by_part(
    steps: list[tuple[str, str, Record]],
) -> None:
    with TemporaryDirectory() as folder:
        asyncio.run(tell(Path(folder), steps))
