"""Lists a tree of objects in key order, one directory at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from annheal.objectstore.keys import Selection
from annheal.objectstore.protocol import ObjectStat


@dataclass(frozen=True, slots=True)
class Level:
    """What lies directly in one directory, in any order.

    `directories` are full keys without a slash at the end. Entries that the selection does not
    want may be left out or left in.
    """

    objects: Sequence[ObjectStat]
    directories: Sequence[str]


ReadLevel = Callable[[str, Selection], Awaitable[Level]]


def plan_level(level: Level, selection: Selection) -> list[ObjectStat | str]:
    """Return the selected objects and the directories to enter, in key order.

    A directory sorts as its name with the slash: "a-b/x" comes before "a/x" because "-" is less
    than "/". File systems, and some S3 servers, order by the bare name instead.
    """
    entries: list[tuple[str, ObjectStat | str]] = [
        (stat.key, stat) for stat in level.objects if selection.takes(stat.key)
    ]
    entries += [(name + "/", name) for name in level.directories if selection.enters(name)]
    return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]


async def walk(read_level: ReadLevel, selection: Selection) -> AsyncIterator[ObjectStat]:
    """Yield the selected objects in key order; memory is that of the directories on one path."""
    pending = plan_level(await read_level(selection.start, selection), selection)
    pending.reverse()
    while pending:
        entry = pending.pop()
        if isinstance(entry, ObjectStat):
            yield entry
        else:
            pending.extend(reversed(plan_level(await read_level(entry, selection), selection)))
