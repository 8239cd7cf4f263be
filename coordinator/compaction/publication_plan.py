"""Which finished compactions to publish now. Pure.

A publication makes the owner load a new segment: disk, network, page cache and, at first, slower
searches. So of a node's rows only a share is replaced at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from annheal.model.topology.shard import ShardId
from annheal.model.topology.task import CompactionTask


def plan_publications(
    built: Iterable[CompactionTask],
    under_way: Iterable[CompactionTask],
    *,
    owners: Mapping[ShardId, str],
    node_rows: Mapping[str, int],
    publishes_max: int,
    reload_share_max: float,
) -> tuple[CompactionTask, ...]:
    """Return those of `built` to publish beside those `under_way`, the most urgent first.

    At most `publishes_max` together, and on a node at most `reload_share_max` of its `node_rows`;
    one always may be, whatever its size. Shards without an owner are nobody's burden.
    """
    loads: dict[str, int] = {}
    count = 0
    for task in under_way:
        count += 1
        owner = owners.get(ShardId(task.collection_id, task.shard), "")
        loads[owner] = loads.get(owner, 0) + max(task.rows_out, 1)
    chosen: list[CompactionTask] = []
    for task in sorted(built, key=lambda one: (-one.priority, one.created_at_s, one.id)):
        if count >= publishes_max:
            break
        owner = owners.get(ShardId(task.collection_id, task.shard), "")
        load = loads.get(owner, 0)
        allowed = reload_share_max * node_rows.get(owner, 0)
        if owner and load and load + task.rows_out > allowed:
            continue
        loads[owner] = load + max(task.rows_out, 1)
        chosen.append(task)
        count += 1
    return tuple(chosen)
