"""The layout of Annheal's object keys: the one place that spells them and reads them back.

=============================================================  =================================
key                                                            object
=============================================================  =================================
``wal/<collection_id>/<shard>/<slot>``                         one slot of a shard's log
``segments/<collection_id>/<shard>/<segment_id>/<file>``       one file of a segment
``vectors/<collection_id>/<shard>/<segment_id>/<part>/<file>`` one file of a vector part
``deletes/<collection_id>/<shard>/<segment_id>/<unique>.bin``  a checkpoint of a delete vector
``recall/<collection_id>/<shard>/<epoch>.<number>``            what a shard remembers of its recall
``dropped/<collection_id>``                                    a marker: dropped on purpose
``health/<process>``                                           a probe, deleted right after
=============================================================  =================================

Shards, slots, epochs and numbers are written with a fixed number of digits, so that key order is
their order. Every other key below these prefixes is foreign: a copy, an editor's or an operating
system's file. It is passed over, and never deleted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from annheal.model.names import NAME_PATTERN, SHARD_DIGITS, checked_name, checked_shard

_SLOT_DIGITS, _EPOCH_DIGITS, _NUMBER_DIGITS = 20, 20, 10


class ObjectKind(StrEnum):
    """What an object is: the first part of its key."""

    WAL = "wal"
    SEGMENT = "segments"
    VECTORS = "vectors"
    DELETES = "deletes"
    RECALL = "recall"
    DROPPED = "dropped"

    @property
    def prefix(self) -> str:
        """The prefix of every key of this kind."""
        return f"{self.value}/"


_SHARD = f"[0-9]{{{SHARD_DIGITS}}}"
_NAMES = {
    ObjectKind.WAL: f"[0-9]{{{_SLOT_DIGITS}}}",
    # The files of all format versions; `annheal.segment.meta` names those of each.
    ObjectKind.SEGMENT: f"({NAME_PATTERN})/[a-z]+\\.(?:json|faiss|arrow|npy)",
    ObjectKind.VECTORS: f"({NAME_PATTERN})/({NAME_PATTERN})/[a-z]+\\.(?:json|faiss|npy)",
    ObjectKind.DELETES: f"({NAME_PATTERN})/{NAME_PATTERN}\\.bin",
    ObjectKind.RECALL: f"[0-9]{{{_EPOCH_DIGITS}}}\\.[0-9]{{{_NUMBER_DIGITS}}}",
}
_OF_SHARD = {
    kind: re.compile(f"{kind.prefix}({NAME_PATTERN})/({_SHARD})/({name})")
    for kind, name in _NAMES.items()
}
_DROPPED = re.compile(f"{ObjectKind.DROPPED.prefix}({NAME_PATTERN})")


@dataclass(frozen=True, slots=True)
class ObjectKey:
    """A key as it is read: `name` is what follows the shard.

    `shard` is -1 and `name` empty for a marker of a dropped collection; `segment_id` is empty for
    what does not belong to a segment, `part_id` for what does not belong to a vector part.
    """

    key: str
    kind: ObjectKind
    collection_id: str
    shard: int = -1
    name: str = ""
    segment_id: str = ""
    part_id: str = ""


def parse_key(key: str) -> ObjectKey | None:
    """Return what `key` says; None when it is foreign."""
    kind = key.partition("/")[0]
    if kind == ObjectKind.DROPPED:
        marker = _DROPPED.fullmatch(key)
        return None if marker is None else ObjectKey(key, ObjectKind.DROPPED, marker[1])
    if kind not in _NAMES:
        return None
    found = _OF_SHARD[ObjectKind(kind)].fullmatch(key)
    if found is None:
        return None
    names = (*found.groups()[3:], "", "")  # of segment and vector part
    return ObjectKey(key, ObjectKind(kind), found[1], int(found[2]), found[3], *names[:2])


def parse_slot(key: str) -> int | None:
    """Return the slot of a log object's key; None when the key is foreign."""
    found = parse_key(key)
    return int(found.name) if found is not None and found.kind is ObjectKind.WAL else None


def shard_prefix(kind: ObjectKind, collection_id: str, shard: int) -> str:
    """Return the prefix of the objects of one kind and shard; raises `InvalidArgument`."""
    return f"{kind.prefix}{shard_part(collection_id, shard)}/"


def shard_part(collection_id: str, shard: int) -> str:
    """Return `<collection_id>/<shard>`, checked: also the folder of a shard's cached segments."""
    checked_name(collection_id, field="collection_id")
    return f"{collection_id}/{checked_shard(shard):0{SHARD_DIGITS}d}"


def wal_prefix(collection_id: str, shard: int) -> str:
    """Return the prefix of a shard's log objects."""
    return shard_prefix(ObjectKind.WAL, collection_id, shard)


def health_key(process: str) -> str:
    """Return the key of the object that `process` writes, reads and deletes to see how a store is.

    Of no collection, hence no `ObjectKind`: a process has one, and deletes what it left itself.
    """
    return f"health/{re.sub('[^A-Za-z0-9_-]', '-', process) or 'process'}"


def wal_key(collection_id: str, shard: int, slot: int) -> str:
    """Return the object key of one slot."""
    return f"{wal_prefix(collection_id, shard)}{slot:0{_SLOT_DIGITS}d}"


def segment_prefix(collection_id: str, shard: int, segment_id: str) -> str:
    """Return the prefix of one segment's objects, with the slash at its end."""
    checked_name(segment_id, field="segment_id")
    return f"{shard_prefix(ObjectKind.SEGMENT, collection_id, shard)}{segment_id}/"


def segment_key(collection_id: str, shard: int, segment_id: str, file: str) -> str:
    """Return the key of one file of a segment."""
    return segment_prefix(collection_id, shard, segment_id) + file


def part_prefix(collection_id: str, shard: int, segment_id: str, part_id: str) -> str:
    """Return the prefix of the objects of one vector part, with the slash at its end."""
    checked_name(segment_id, field="segment_id")
    prefix = shard_prefix(ObjectKind.VECTORS, collection_id, shard)
    return f"{prefix}{segment_id}/{checked_name(part_id, field='part_id')}/"


def part_key(collection_id: str, shard: int, segment_id: str, part_id: str, file: str) -> str:
    """Return the key of one file of a vector part."""
    return part_prefix(collection_id, shard, segment_id, part_id) + file


def delete_vector_key(collection_id: str, shard: int, segment_id: str, unique: str) -> str:
    """Return the key of one checkpoint of a segment's delete vector; `unique` is never reused."""
    checked_name(segment_id, field="segment_id")
    prefix = shard_prefix(ObjectKind.DELETES, collection_id, shard)
    return f"{prefix}{segment_id}/{checked_name(unique, field='unique')}.bin"


def memory_key(collection_id: str, shard: int, *, epoch: int, number: int) -> str:
    """Return the key of the recall memory `number` that the owner of `epoch` writes."""
    prefix = shard_prefix(ObjectKind.RECALL, collection_id, shard)
    return f"{prefix}{epoch:0{_EPOCH_DIGITS}d}.{number:0{_NUMBER_DIGITS}d}"


def dropped_key(collection_id: str) -> str:
    """Return the key of the marker that the collection was dropped on purpose."""
    return f"{ObjectKind.DROPPED.prefix}{checked_name(collection_id, field='collection_id')}"
