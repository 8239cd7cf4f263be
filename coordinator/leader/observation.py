"""The states of shards, asked of all live nodes at the same time."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.ask_nodes import ask_nodes
from annheal.coordinator.data_path.router import Router
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


class WriteWatch:
    """Since when each shard has had no write, as far as one leader has seen.

    A new leader has seen no pause yet: it counts from its first look at a shard, so at first it
    takes every shard for busy, and merges that wait for a pause begin later than they could.
    """

    def __init__(self) -> None:
        self._seen: dict[ShardId, tuple[int, float]] = {}

    def quiet_s(
        self, states: Mapping[ShardId, ShardState], *, present: Set[ShardId], now_s: float
    ) -> dict[ShardId, float]:
        """Return the seconds since the sequence of each shard in `states` last grew.

        A shard whose node did not answer this time keeps its count as long as it is `present`: an
        equal sequence later shows that it had no write in between. `now_s` is of a monotonic clock.
        """
        for gone in [shard for shard in self._seen if shard not in present]:
            del self._seen[gone]
        for shard, state in states.items():
            known = self._seen.get(shard)
            if known is None or known[0] != state.applied_sequence:
                self._seen[shard] = (state.applied_sequence, now_s)
        return {shard: now_s - self._seen[shard][1] for shard in states}


async def observe_shards(
    catalog: Catalog, router: Router, *, timeout_s: float, collection_id: str = ""
) -> Observation:
    """Return the shard states of all live nodes, of one collection if `collection_id` is not "".

    A node that fails or does not answer in `timeout_s` seconds is in `errors`; nothing is raised
    for it.
    """
    asked = await ask_nodes(
        router,
        catalog.nodes(),
        lambda node: node.shard_states(collection_id),
        timeout_s=timeout_s,
        what="describe its shards",
    )
    states: dict[ShardId, ShardState] = {}
    for name, answer in asked.answers.items():
        for state in answer:
            shard = ShardId(state.collection_id, state.shard)
            stored = catalog.assignment(shard)
            if stored is not None and stored.value.owner == name:
                states[shard] = state
    return Observation(states, asked.answers, asked.errors)
