"""The bytes of a bridge. docs/formats/bridge.md specifies them."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from annheal.embedding.bridge.bridge import Bridge, Scales
from annheal.embedding.bridge.estimates import Weights
from annheal.embedding.bridge.fusion import Curve
from annheal.embedding.bridge.maps import AXES_MAX, LANDMARKS_MAX, Landmarks, MapKind, TargetMap
from annheal.embedding.bridge.pairs import Floats, Space
from annheal.embedding.bridge.ways import Join, QueryKind, Way
from annheal.errors import DataCorruption
from annheal.model.collection import Metric

BRIDGE_BYTES_MAX = 536_870_912
"""More than a bridge between the longest vectors with every kind of map has."""

_MAGIC = b"ANBR"
_VERSION = 1
# magic, version, two bytes of zero, bytes of the facts.
_HEADER = struct.Struct("<4sHHI")
_CHECKSUM_BYTES = 16

_MAP_ARRAYS = ("old_mean", "weights", "target_mean", "axes")
_LANDMARK_ARRAYS = ("vectors", "mean", "weights")


def encode_bridge(bridge: Bridge) -> bytes:
    """Return the bytes of a bridge: at 384 floats on both sides about 3 MB."""
    arrays: list[Floats] = []

    def store(array: Floats) -> list[int]:
        arrays.append(np.ascontiguousarray(array, dtype="<f4"))
        return list(array.shape)

    facts = {
        "old": _space_facts(bridge.old_space),
        "new": _space_facts(bridge.new_space),
        "share": bridge.share,
        "pairs": bridge.pairs,
        "scales": [bridge.scales.old, bridge.scales.new],
        "ways": {kind.value: _way_facts(way, store) for kind, way in bridge.ways.items()},
        "maps": [_map_facts(one, store) for one in bridge.maps.values()],
        "back": None if bridge.back is None else _map_facts(bridge.back, store),
    }
    text = json.dumps(facts, separators=(",", ":")).encode()
    head = _HEADER.pack(_MAGIC, _VERSION, 0, len(text))
    body = b"".join([head, text, *(array.tobytes() for array in arrays)])
    return body + _checksum(body)


def decode_bridge(stored: bytes, *, key: str) -> Bridge:
    """Return the bridge in the object `key`; raises `DataCorruption`, which names the key, when the
    bytes are damaged, of another version, longer than `BRIDGE_BYTES_MAX` or not a bridge.
    """
    if len(stored) > BRIDGE_BYTES_MAX:
        raise _damaged(key, f"it has {len(stored)} bytes, at most {BRIDGE_BYTES_MAX} are read")
    body, checksum = stored[:-_CHECKSUM_BYTES], stored[-_CHECKSUM_BYTES:]
    if len(body) < _HEADER.size or _checksum(body) != checksum:
        raise _damaged(key, "its checksum does not match")
    magic, version, _, facts_bytes = _HEADER.unpack_from(body)
    if magic != _MAGIC:
        raise _damaged(key, "it begins with other bytes")
    if version != _VERSION:
        raise _damaged(key, f"it is of version {version}, this software reads {_VERSION}")
    start = _HEADER.size + facts_bytes
    try:
        facts = json.loads(body[_HEADER.size : start])
        return _bridge(facts, np.frombuffer(body[start:], dtype="<f4"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(key, f"{type(error).__name__}: {error}") from error


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()


def _space_facts(space: Space) -> list[Any]:
    return [space.dimension, space.metric.value]


def _way_facts(way: Way, store: Callable[[Floats], list[int]]) -> dict[str, Any]:
    weights = way.weights
    return {
        "join": way.join.value,
        "weights": [weights.old_score, weights.spread, weights.offset],
        "curve": [store(way.curve.old), store(way.curve.new)],
        "held_out": {join.value: recall for join, recall in way.held_out.items()},
        "reason": way.reason,
    }


def _map_facts(map_: TargetMap, store: Callable[[Floats], list[int]]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "kind": map_.kind.value,
        "arrays": [store(getattr(map_, name)) for name in _MAP_ARRAYS],
        "landmarks": None,
    }
    if map_.landmarks is not None:
        marks = map_.landmarks
        shapes = [store(getattr(marks, name)) for name in _LANDMARK_ARRAYS]
        facts["landmarks"] = {"width_square": marks.width_square, "arrays": shapes}
    return facts


def _bridge(facts: Mapping[str, Any], floats: Floats) -> Bridge:
    old, new = (Space(int(one[0]), Metric(one[1])) for one in (facts["old"], facts["new"]))
    arrays = _Arrays(floats)
    take = arrays.take
    ways = {QueryKind(kind): _way(one, take) for kind, one in facts["ways"].items()}
    forward = [_map(one, take, old, new) for one in facts["maps"]]
    back = None if facts["back"] is None else _map(facts["back"], take, new, old)
    if arrays.left or set(ways) != set(QueryKind):
        raise ValueError("it has more or less than a bridge")
    maps = {one.kind: one for one in forward}
    missing = {way.join.map_kind for way in ways.values()} - {None, *maps}
    if missing:
        raise ValueError(f"it has no map {', '.join(sorted(map(str, missing)))}")
    return Bridge(
        old,
        new,
        share=float(facts["share"]),
        pairs=int(facts["pairs"]),
        scales=Scales(*(_finite(one) for one in facts["scales"])),
        ways=ways,
        maps=maps,
        back=back,
    )


def _way(facts: Mapping[str, Any], take: Callable[[list[int]], Floats]) -> Way:
    old, new = (take(shape) for shape in facts["curve"])
    if old.ndim != 1 or old.shape != new.shape:
        raise ValueError("a curve has two lists of equal length")
    return Way(
        Join(facts["join"]),
        Weights(*(_finite(one) for one in facts["weights"])),
        Curve(old, new),
        {Join(join): float(recall) for join, recall in facts["held_out"].items()},
        str(facts["reason"]),
    )


def _map(
    facts: Mapping[str, Any], take: Callable[[list[int]], Floats], old: Space, new: Space
) -> TargetMap:
    targets = new.dimension + 1
    arrays = [take(shape) for shape in facts["arrays"]]
    axes = arrays[3].shape[-1]
    expected = [(old.dimension,), (old.dimension, targets), (targets,), (new.dimension, axes)]
    landmarks = None
    if facts["landmarks"] is not None:
        marks = [take(shape) for shape in facts["landmarks"]["arrays"]]
        count = len(marks[1])
        width = _finite(facts["landmarks"]["width_square"])
        if count > LANDMARKS_MAX or width <= 0:
            raise ValueError(f"it has {count} landmarks of the squared width {width}")
        landmarks = Landmarks(marks[0], marks[1], marks[2], width)
        arrays += marks
        expected += [(count, old.dimension), (count,), (count, targets)]
    if [one.shape for one in arrays] != expected or axes > AXES_MAX:
        raise ValueError(f"a map has arrays of the shapes {[one.shape for one in arrays]}")
    return TargetMap(MapKind(facts["kind"]), arrays[0], arrays[1], arrays[2], arrays[3], landmarks)


class _Arrays:
    """Reads arrays one after the other."""

    def __init__(self, floats: Floats) -> None:
        if not np.isfinite(floats).all():
            raise ValueError("it has NaN or infinity")
        self._left = floats

    @property
    def left(self) -> int:
        """How many floats were not read."""
        return len(self._left)

    def take(self, shape: list[int]) -> Floats:
        """Return the next array of this shape."""
        count = math.prod(shape)
        if min(shape, default=0) < 0 or count > len(self._left):
            raise ValueError(f"an array of the shape {shape} is cut off")
        array, self._left = self._left[:count], self._left[count:]
        return array.reshape(shape).astype(np.float32)


def _finite(value: float) -> float:
    number = float(value)
    if not np.isfinite(number):
        raise ValueError(f"{number} is no finite number")
    return number


def _damaged(key: str, why: str) -> DataCorruption:
    return DataCorruption(f"{key} holds no bridge: {why}", metadata={"key": key})
