"""A mirrored prefix of the metadata store as domain objects, decoded once for each change."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from annheal.errors import DataCorruption
from annheal.metastore.codec import decode_value
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import KeyValue

_log = logging.getLogger(__name__)

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class Stored(Generic[ValueT]):
    """A value with the revision that a compare-and-swap of it must name."""

    key: str
    value: ValueT
    mod_revision: int


def readable(items: Iterable[KeyValue], as_type: type[ValueT]) -> list[Stored[ValueT]]:
    """Return what can be read of one listing; each key that cannot is named in the log."""
    found: list[Stored[ValueT]] = []
    for item in items:
        try:
            value = decode_value(item.value, as_type, key=item.key)
        except DataCorruption as error:
            _log.error("%s", error.message)
        else:
            found.append(Stored(item.key, value, item.mod_revision))
    return found


class Table(Generic[ValueT]):
    """The values under the prefix of `mirror`, by key in key order.

    A value that cannot be decoded is left out and reported once for each revision of it: one bad
    key must not take the others away.
    """

    def __init__(self, mirror: Mirror, as_type: type[ValueT]) -> None:
        self.mirror = mirror
        self._as_type = as_type
        self._version = -1
        self._entries: Mapping[str, Stored[ValueT]] = MappingProxyType({})
        self._bad: dict[str, int] = {}

    @property
    def entries(self) -> Mapping[str, Stored[ValueT]]:
        """The present entries: an immutable snapshot, the same object until something changes."""
        if self._version != self.mirror.version:
            self._decode()
        return self._entries

    def _decode(self) -> None:
        before = self._entries
        entries: dict[str, Stored[ValueT]] = {}
        for key, item in sorted(self.mirror.items.items()):
            known = before.get(key)
            if known is not None and known.mod_revision == item.mod_revision:
                entries[key] = known
                continue
            try:
                value = decode_value(item.value, self._as_type, key=key)
            except DataCorruption as error:
                if self._bad.get(key) != item.mod_revision:
                    self._bad[key] = item.mod_revision
                    _log.error("%s", error.message)
                continue
            entries[key] = Stored(key, value, item.mod_revision)
        self._bad = {key: revision for key, revision in self._bad.items() if key not in entries}
        self._entries = MappingProxyType(entries)
        self._version = self.mirror.version
