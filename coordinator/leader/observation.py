"""The states of shards, asked of all live nodes at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.router import Router
from annheal.errors import AnnhealError, DeadlineExceeded
from annheal.model.topology.shard import ShardId
from annheal.model.topology.state import ShardState


@dataclass(frozen=True, slots=True)
class Observation:
    """What the live nodes answered.

    Attributes:
        states: the state of each shard, as its owner reports it.
        by_node: all states that a node reports, by node id; nodes without an answer are missing.
        errors: the error message of each node that did not answer, by node id.
    """

    states: Mapping[ShardId, ShardState]
    by_node: Mapping[str, tuple[ShardState, ...]]
    errors: Mapping[str, str]

    def state(self, shard: ShardId) -> ShardState | None:
        """Return the state of `shard`, None when its owner did not report it."""
        return self.states.get(shard)


async def observe_shards(
    catalog: Catalog, router: Router, *, timeout_s: float, collection_id: str = ""
) -> Observation:
    """Return the shard states of all live nodes, of one collection if `collection_id` is not "".

    A node that fails or does not answer in `timeout_s` seconds is in `errors`; nothing is raised
    for it.
    """
    names = sorted(catalog.nodes())
    answers = await asyncio.gather(
        *(_ask(router, name, collection_id=collection_id, timeout_s=timeout_s) for name in names)
    )
    states: dict[ShardId, ShardState] = {}
    by_node: dict[str, tuple[ShardState, ...]] = {}
    errors: dict[str, str] = {}
    for name, answer in zip(names, answers, strict=True):
        if isinstance(answer, AnnhealError):
            errors[name] = answer.message
            continue
        by_node[name] = answer
        for state in answer:
            shard = ShardId(state.collection_id, state.shard)
            stored = catalog.assignment(shard)
            if stored is not None and stored.value.owner == name:
                states[shard] = state
    return Observation(states, by_node, errors)


async def _ask(
    router: Router, node_id: str, *, collection_id: str, timeout_s: float
) -> tuple[ShardState, ...] | AnnhealError:
    try:
        async with asyncio.timeout(timeout_s):
            return await router.link(node_id).node.shard_states(collection_id)
    except TimeoutError:
        return DeadlineExceeded(f"node {node_id!r} did not describe its shards in {timeout_s} s")
    except AnnhealError as error:
        return error
