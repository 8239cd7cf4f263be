"""Which built tasks are published now. Pure.

At a publication the shard's owner loads the new segment. This costs network, disk and page cache,
and slows searches at first. So publications replace only a share of a node's rows at a time.
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
    """Return those of `built` to publish beside those `under_way`, highest priority first.

    `owners` gives the owner of each shard, "" or nothing for a shard without one; `node_rows` the
    live rows of each node. At most `publishes_max` tasks are under way together. On one node their
    outputs have at most the share `reload_share_max` of its rows; the first task on a node is
    allowed whatever its size. A shard without an owner loads no node: only the count limits it.
    """
    loads: dict[str, int] = {}
    count = 0
    for task in under_way:
        count += 1
        owner = owners.get(ShardId(task.collection_id, task.shard), "")
        loads[owner] = loads.get(owner, 0) + max(task.rows_out, 1)
    chosen: list[CompactionTask] = []
    for task in sorted(built, key=lambda task: (-task.priority, task.created_at_s, task.id)):
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
