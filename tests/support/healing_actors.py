"""Who takes part in a random history of one shard, and what is checked after every step of it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
)

from annheal.errors import NotFound
from annheal.index import VectorIndex, WalkCosts
from annheal.model.collection import Metric
from annheal.model.filter import Comparison, ComparisonOp, Filter
from annheal.model.topology.manifest import IndexKind, Manifest
from annheal.runtime import fail_points
from annheal.shard_node.search.costs import DEFAULT_COSTS, MeasuredCosts
from annheal.shard_node.search.filter_cache import FilterCache
from annheal.shard_node.search.searcher import Searcher
from tests.support.healing_world import HealingWorld, Reins, ended
from tests.support.model_checker import (
    ABSENT,
    Predicate,
    ShardModel,
    check_deposed,
    check_durable,
    check_epochs,
    check_limits,
    check_log,
    check_manifest,
    check_outputs,
    check_reads,
    check_search,
)
from tests.support.shards import (
    COLOURS,
    DIMENSION,
    Owner,
    colour_of,
    shard_collection,
    size_of,
)

FILTERS_MAX = 12
IDS = [f"r{number}" for number in range(40)]
STEP_TIMEOUT_S = 60.0
CHEAP = {
    "usual": DEFAULT_COSTS,
    "in-graph": WalkCosts(exact_row_ns=1e9, walk_row_ns=1.0, check_ns=1.0, call_ns=1.0),
    "selector": WalkCosts(exact_row_ns=1e9, walk_row_ns=1.0, check_ns=1e9, call_ns=1.0),
}
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Case:
    """A filter and the same in Python."""

    filter: Filter
    matches: Predicate


def colour_case(colour: str) -> Case:
    return Case(
        Comparison("colour", ComparisonOp.EQ, colour), lambda i, v: colour_of(i, v) == colour
    )


def size_case(limit: int) -> Case:
    def matches(record_id: str, version: int) -> bool:
        size = size_of(record_id, version)
        return size is not None and size < limit

    return Case(Comparison("size", ComparisonOp.LT, limit), matches)


class Preferring(MeasuredCosts):
    """Costs that make one way of answering the cheapest."""

    def __init__(self, costs: WalkCosts) -> None:
        super().__init__()
        self._costs = costs

    def costs_of(self, index: VectorIndex) -> WalkCosts:
        return self._costs


@dataclass(slots=True)
class Held:
    """Something under way that waits at a store call; of an owner, or (None) of a compactor."""

    work: asyncio.Task[None]
    reins: Reins
    owner: Owner | None = None


class HealingActors(RuleBasedStateMachine):
    """The actors, the model, and the check after every step; `HealingMachine` says what happens."""

    steps: ClassVar[int] = 0
    plans: ClassVar[set[str]] = set()

    def __init__(self) -> None:
        super().__init__()
        base = "/dev/shm" if Path("/dev/shm").is_dir() else None
        self.root = Path(tempfile.mkdtemp(prefix="annheal-stateful-", dir=base))
        self.runner = asyncio.Runner()
        self.model = ShardModel()
        self.version = 0
        self.epochs: list[int] = []
        self.formers: list[Owner] = []
        self.held: list[Held] = []
        self.queries = np.random.default_rng(0).standard_normal((2, DIMENSION)).astype(np.float32)
        self.filters = FilterCache(entries_max=FILTERS_MAX)
        self.checked = 0

    @initialize(
        metric=st.sampled_from([Metric.L2, Metric.INNER_PRODUCT]),
        seal_rows=st.sampled_from([6, 20, 999]),
        graph_rows=st.sampled_from([0, 15, 30]),
    )
    def begin(self, metric: Metric, seal_rows: int, graph_rows: int) -> None:
        self.collection = shard_collection(
            metric=metric,
            seal_rows_max=seal_rows,
            recall_k=3,
            recall_objective=0.9,
            tombstone_rows_min=2,
        )

        async def make() -> HealingWorld:
            world = HealingWorld(self.root, collection=self.collection)
            await world.start()
            return world

        self.world = self.do(make())
        self.searchers = {
            name: Searcher(self.collection, self.filters, costs=Preferring(costs))
            for name, costs in CHEAP.items()
        }
        self.do(self.open())
        if graph_rows:
            self.do(self.begin_with_graph(IDS[:graph_rows]))

    async def begin_with_graph(self, present: list[str]) -> None:
        await self.write(present)
        await self.owner.shard.flush()
        await self.world.plan(self.owner, full=True, quiet=True)
        await self.world.settle(self.owner)
        assert IndexKind.HNSW in {one.segment.kind for one in self.owner.shard.view.segments}

    def do(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        async def in_time() -> ResultT:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                return await work

        return self.runner.run(in_time())

    async def open(self) -> None:
        self.reins = Reins()
        self.owner = await self.world.open(hook=self.reins, node_id=f"n{len(self.epochs)}")
        self.epochs.append(self.owner.shard.epoch)

    async def write(self, changed: list[str]) -> None:
        self.version += 1
        answer = await self.owner.upsert(*changed, version=self.version)
        assert answer.upserted == len(changed)
        self.model.acknowledge(dict.fromkeys(changed, self.version))

    def find(self, k: int, case: Case | None, *, exact: bool, cheap: str) -> None:
        options: dict[str, Any] = {}
        if case is not None:
            options = {"filter": case.filter, "matches": case.matches}
        answer = check_search(
            self.owner.shard,
            self.model,
            self.queries,
            k=k,
            exact=exact,
            searcher=self.searchers[cheap],
            **options,
        )
        self.plans.update(one.plan for one in answer.explain)

    async def owner_does(
        self, work: Any, *, hold: int | str | None, fail: int | None = None
    ) -> None:
        """Let the owner begin a change of the manifest, and perhaps wait at a store call of it."""
        await self.resume([one for one in self.held if one.owner is self.owner])
        self.reins.hold_at(hold)
        self.reins.fail_in(fail)
        await self.until_held(Held(asyncio.create_task(work()), self.reins, self.owner))

    async def race(self, racing: list[str], *, upserts: bool) -> None:
        """Write rows that something under way has read already."""
        if upserts:
            await self.write(racing)
        else:
            await self.owner.delete(*racing)
            self.model.acknowledge(dict.fromkeys(racing, ABSENT))

    async def until_held(self, begun: Held) -> None:
        holding = asyncio.create_task(begun.reins.held.wait())
        await asyncio.wait({begun.work, holding}, return_when=asyncio.FIRST_COMPLETED)
        holding.cancel()
        begun.reins.hold_at(None)
        begun.reins.fail_in(None)  # whatever is called while this waits is not meant
        if begun.work.done():
            begun.work.result()
        else:
            self.held.append(begun)

    async def resume(self, chosen: list[Held]) -> None:
        """Let what is held go on to its end."""
        for one in chosen:
            self.held.remove(one)
            one.reins.free()
            await one.work
            one.reins.renew()

    async def owner_ends(self) -> None:
        self.reins.kill()
        for one in [one for one in self.held if one.owner is self.owner]:
            self.held.remove(one)
            await ended(one.work)
        await self.owner.stop()

    # ------------------------------------------------------------------------------ checks

    @invariant()
    def check(self) -> None:
        """Every invariant, after every step."""
        if not self.epochs:
            return
        type(self).steps += 1
        self.checked += 1
        check_reads(self.owner.shard.view, self.model)
        case = colour_case(COLOURS[self.checked % len(COLOURS)]) if self.checked % 2 else None
        self.find(5, case, exact=False, cheap=sorted(CHEAP)[self.checked % len(CHEAP)])
        self.find(5, case, exact=True, cheap="usual")
        check_epochs(self.epochs)
        check_limits(self.owner.shard, self.filters, entries_max=FILTERS_MAX)
        self.do(self.check_stores())

    async def check_stores(self) -> None:
        """Check what is durable; again if the owner flushed by itself meanwhile."""
        while True:
            manifest = await self.world.manifest()
            try:
                await self.check_durable(manifest)
            except (AssertionError, NotFound):
                if await self.world.manifest() == manifest:
                    raise
                continue
            break
        for former in self.formers[-1:]:
            await check_deposed(former.shard)

    async def check_durable(self, manifest: Manifest) -> None:
        durable = self.world.durable
        built = await self.world.built()
        durable.look()
        await check_log(durable, manifest, epoch=self.owner.shard.epoch)
        await check_manifest(durable, manifest)
        await check_outputs(durable, built)
        check_durable(await self.world.replayed(manifest), self.model)

    def teardown(self) -> None:
        fail_points.disarm()
        if hasattr(self, "world"):
            for one in self.held:
                one.reins.kill()
            self.do(self.close())
        self.runner.close()
        shutil.rmtree(self.root)

    async def close(self) -> None:
        for one in self.held:
            await ended(one.work)
        await self.world.close()
