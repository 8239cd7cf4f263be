"""Object keys are spelled and read in one place, and what is not ours is never taken for ours."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.errors import InvalidArgument
from annheal.model.names import NAME_PATTERN, SHARDS_MAX, checked_name
from annheal.segment.meta import DATA_FILES_LOSSY, META_FILE
from annheal.shards.object_keys import (
    ObjectKey,
    ObjectKind,
    delete_vector_key,
    dropped_key,
    memory_key,
    parse_key,
    parse_slot,
    segment_key,
    segment_prefix,
    wal_key,
)

ROOT = Path(__file__).resolve().parents[2]
FOREIGN = (
    ".DS_Store",
    ".nfs000000000001",
    "core.1",
    "x.bak",
    "1",
    "00000000000000000001.tmp",
    "00000000000000000001.0000000001.bak",
    "u1.bin.bak",
)
BAD_NAMES = ("", ".", "..", "../x", "a/b", "a b", "a.b", "-a", "é", "a\n", "a\x00", "x" * 65)
names = st.from_regex(NAME_PATTERN, fullmatch=True)
shards = st.integers(0, SHARDS_MAX - 1)
numbers = st.integers(0, 10**10 - 1)


@given(names, shards, numbers)
def test_log_keys_are_read_as_they_were_spelled(collection: str, shard: int, slot: int) -> None:
    key = wal_key(collection, shard, slot)
    found = parse_key(key)
    assert found is not None
    assert (found.kind, found.collection_id, found.shard) == (ObjectKind.WAL, collection, shard)
    assert parse_slot(key) == slot


@given(names, shards, names, names, numbers)
def test_other_keys_are_read_as_they_were_spelled(
    collection: str, shard: int, segment: str, unique: str, number: int
) -> None:
    for file in (META_FILE, *DATA_FILES_LOSSY):
        key = segment_key(collection, shard, segment, file)
        assert parse_key(key) == ObjectKey(
            key, ObjectKind.SEGMENT, collection, shard, f"{segment}/{file}", segment
        )
    key = delete_vector_key(collection, shard, segment, unique)
    assert parse_key(key) == ObjectKey(
        key, ObjectKind.DELETES, collection, shard, f"{segment}/{unique}.bin", segment
    )
    key = memory_key(collection, shard, epoch=number, number=7)
    assert parse_key(key) is not None
    assert parse_key(dropped_key(collection)) == ObjectKey(
        dropped_key(collection), ObjectKind.DROPPED, collection
    )


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_names_are_read_as_none(name: str) -> None:
    folders = [f"{kind}/c1/00000" for kind in ObjectKind]
    folders += [f"{kind}" for kind in ObjectKind if kind is not ObjectKind.DROPPED]
    folders += ["segments/c1/00000/s1", "deletes/c1/00000/s1", "segments/c1/00000/s1/x", "other"]
    for folder in folders:
        assert parse_key(f"{folder}/{name}") is None
        assert parse_slot(f"{folder}/{name}") is None


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_none_makes_no_key(name: str) -> None:
    with pytest.raises(InvalidArgument, match="segment_id"):
        segment_prefix("c1", 0, name)
    with pytest.raises(InvalidArgument, match="segment_id"):
        delete_vector_key("c1", 0, name, "u")
    with pytest.raises(InvalidArgument, match="collection_id"):
        wal_key(name, 0, 1)
    with pytest.raises(InvalidArgument, match="here"):
        checked_name(name, field="here")


@pytest.mark.parametrize("shard", [-1, SHARDS_MAX])
def test_a_shard_that_is_none_makes_no_key(shard: int) -> None:
    with pytest.raises(InvalidArgument, match="shard"):
        wal_key("c1", shard, 1)


def test_no_other_module_spells_a_prefix_of_the_object_store() -> None:
    prefixes = tuple(kind.prefix for kind in ObjectKind)
    found = []
    for folder in ("annheal", "coordinator", "shard_node", "compactor", "cli"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name in ("object_keys.py",) or "v1" in path.parts:
                continue
            found += [(path, line) for line in _literals(path) if line.startswith(prefixes)]
    assert not found


def _literals(path: Path) -> list[str]:
    tree = ast.parse(path.read_text())
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
