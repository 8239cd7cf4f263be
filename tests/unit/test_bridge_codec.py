"""The bytes of a bridge: what is read is what was written, and damage is named."""

from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from annheal.embedding.bridge.bridge import Bridge
from annheal.embedding.bridge.choosing import choose
from annheal.embedding.bridge.codec import BRIDGE_BYTES_MAX, decode_bridge, encode_bridge
from annheal.embedding.bridge.pairs import Pairs
from annheal.embedding.bridge.ways import QueryKind
from annheal.errors import DataCorruption
from annheal.model.collection import Metric


def bridge_of(count: int = 500, metric: Metric = Metric.L2) -> Bridge:
    rng = np.random.default_rng(1)
    old = rng.standard_normal((count, 8)).astype(np.float32)
    new = np.concatenate([old[:, :5] ** 2, old], axis=1)
    pairs = Pairs.of(old, new, old_metric=metric, new_metric=Metric.INNER_PRODUCT)
    return choose(pairs, share=0.4, seed=2)


def sealed(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=16).digest()


@pytest.mark.parametrize("count", [0, 3, 500])
@pytest.mark.parametrize("metric", list(Metric))
def test_a_bridge_read_back_answers_the_same(count: int, metric: Metric) -> None:
    bridge = bridge_of(count, metric)
    stored = encode_bridge(bridge)
    assert len(stored) < BRIDGE_BYTES_MAX
    read = decode_bridge(stored, key="one")
    assert encode_bridge(read) == stored
    assert (read.share, read.pairs, read.scales) == (bridge.share, bridge.pairs, bridge.scales)
    candidates = np.random.default_rng(3).standard_normal((20, 8))
    for kind in QueryKind:
        assert read.ways[kind].join is bridge.ways[kind].join
        assert read.ways[kind].held_out == bridge.ways[kind].held_out
        assert read.ways[kind].reason == bridge.ways[kind].reason
        old = None if kind is QueryKind.NEW else np.ones(8)
        new = None if kind is QueryKind.OLD else np.ones(13)
        scores = [
            one.query(old=old, new=new).score_old(np.arange(20, 0, -1), vectors=candidates)
            for one in (bridge, read)
        ]
        np.testing.assert_array_equal(scores[0], scores[1])


def test_every_kind_of_damage_is_named() -> None:
    stored = encode_bridge(bridge_of())
    body = stored[:-16]
    version = sealed(body[:4] + b"\x02" + body[5:])
    cases = {
        b"": "checksum",
        stored[:-1]: "checksum",
        stored[:100] + b"?" + stored[101:]: "checksum",
        sealed(b"ANRM" + body[4:]): "begins with other bytes",
        version: "of version 2",
        sealed(body[:-400]): "cut off",
        sealed(body + b"\0" * 4): "more or less",
        sealed(body + b"\0"): "multiple",
        sealed(body[:-4] + np.float32(np.nan).tobytes()): "NaN",
        sealed(body.replace(b'"share"', b'"shore"')): "share",
        sealed(body[:12] + b"[" + body[13:]): "holds no bridge",
    }
    for damaged, said in cases.items():
        with pytest.raises(DataCorruption, match=f"bridges/7 holds no bridge: .*{said}|{said}"):
            decode_bridge(damaged, key="bridges/7")


def test_no_flipped_bit_is_read() -> None:
    stored = bytearray(encode_bridge(bridge_of()))
    for place in np.random.default_rng(4).integers(len(stored), size=100).tolist():
        stored[place] ^= 1
        with pytest.raises(DataCorruption, match=re.escape("k holds no bridge")):
            decode_bridge(bytes(stored), key="k")
        stored[place] ^= 1
    decode_bridge(bytes(stored), key="k")
