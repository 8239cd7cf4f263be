"""Keys, values and limits of the metadata store; the watch's fragments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.errors import DataCorruption, InvalidArgument
from annheal.metastore import keys
from annheal.metastore.codec import decode_value, encode_value
from annheal.metastore.etcd_watch import _BatchAssembler
from annheal.metastore.etcdpb import etcd_pb2 as pb
from annheal.metastore.limits import prefix_end


@dataclass(frozen=True, slots=True)
class Thing:
    name: str
    count: int = 0


class TestKeys:
    def test_layout(self) -> None:
        assert keys.shard_key("c1", 7) == "shards/c1/00007"
        assert keys.manifest_key("c1", 99_999) == "manifests/c1/99999"
        assert keys.collected_key("c1", 7) == "collected/c1/00007"
        assert keys.collection_key("news") == "collections/news"
        assert keys.node_settings_key("n1") == "node-settings/n1"
        assert keys.claim_key("t1") == "claims/t1"

    def test_no_prefix_holds_the_keys_of_another(self) -> None:
        prefixes = [value for name, value in vars(keys).items() if name.endswith("_PREFIX")]
        assert len(prefixes) == 11
        assert not any(a != b and a.startswith(b) for a in prefixes for b in prefixes)
        assert not any(keys.LEADER_KEY.startswith(prefix) for prefix in prefixes)

    def test_shard_keys_are_parsed_back(self) -> None:
        assert keys.parse_shard_key(keys.shard_key("c1", 42)) == ("c1", 42)
        assert keys.parse_manifest_key(keys.manifest_key("c1", 0)) == ("c1", 0)
        assert keys.parse_id(keys.NODES_PREFIX, keys.node_key("n1")) == "n1"

    @pytest.mark.parametrize(
        "key", ["shards/c1/7", "shards//00007", "manifests/c1/00007", "shards/a/b/00007", "x"]
    )
    def test_other_keys_are_refused(self, key: str) -> None:
        with pytest.raises(InvalidArgument):
            keys.parse_shard_key(key)

    def test_parts_that_would_leave_their_place_are_refused(self) -> None:
        makers: list[Callable[[], object]] = [
            lambda: keys.collection_key("a/b"),
            lambda: keys.node_key(""),
            lambda: keys.shard_key("c", -1),
            lambda: keys.shard_key("c", 100_000),
            lambda: keys.parse_id(keys.NODES_PREFIX, "nodes/"),
        ]
        for make in makers:
            with pytest.raises(InvalidArgument):
                make()


class TestCodec:
    def test_values_come_back(self) -> None:
        assert decode_value(encode_value(Thing("a", 1)), Thing, key="k") == Thing("a", 1)

    def test_fields_of_newer_versions_are_ignored(self) -> None:
        assert decode_value(b'{"name":"a","new":[1]}', Thing, key="k") == Thing("a")

    @pytest.mark.parametrize("stored", [b"", b"{", b'{"name":1}', b'{"count":1}', b'"\xff"', b"[]"])
    def test_what_cannot_be_read_is_corrupt_and_named(self, stored: bytes) -> None:
        with pytest.raises(DataCorruption, match="shards/c1/00001") as raised:
            decode_value(stored, Thing, key="shards/c1/00001")
        assert raised.value.metadata == {"key": "shards/c1/00001"}


@given(st.binary(max_size=4), st.binary(max_size=4))
def test_prefix_end_bounds_exactly_the_prefix(prefix: bytes, other: bytes) -> None:
    end = prefix_end(prefix)
    assert (prefix <= other and (end is None or other < end)) == other.startswith(prefix)


class TestFragments:
    def answer(self, *revisions: int, fragment: bool) -> pb.WatchResponse:
        return pb.WatchResponse(
            fragment=fragment,
            events=[
                pb.Event(kv=pb.StoredKey(key=b"/p/k", mod_revision=revision))
                for revision in revisions
            ],
        )

    def test_a_revision_cut_in_pieces_leaves_whole(self) -> None:
        batches = _BatchAssembler(3)
        told = [
            [[change.mod_revision for change in batch] for batch in batches.add(answer)]
            for answer in (
                self.answer(1, 1, 2, fragment=True),
                self.answer(2, 2, fragment=True),
                self.answer(2, 3, fragment=False),
                self.answer(4, fragment=False),
            )
        ]
        assert told == [[[1, 1]], [], [[2, 2, 2, 2], [3]], [[4]]]
