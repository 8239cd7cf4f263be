"""What can happen to a shard: the rules of the random histories."""

from __future__ import annotations

import asyncio
import contextlib

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    rule,
)

from annheal.errors import AnnhealError, Fenced
from annheal.model.records import EVERYTHING, IDS_ONLY
from annheal.model.write import ANY_VERSION, NO_RECORD, DeleteIds, Upsert
from annheal.runtime import fail_points
from annheal.runtime.fail_points import BACKFILL_POINTS, FAIL_POINTS
from annheal.shard_node.search.reads import get_records, live_sequences
from tests.support.healing_actors import (
    CHEAP,
    IDS,
    Case,
    HealingActors,
    Held,
    colour_case,
    size_case,
)
from tests.support.healing_world import ATTEMPTS_AT_ONCE, GRACE_S, Reins
from tests.support.model_checker import (
    ABSENT,
    check_no_orphans,
    check_reads,
    versions_of,
)
from tests.support.shards import (
    COLOURS,
    DeadError,
    record_batch,
)

REACHED = tuple(name for name in FAIL_POINTS if name not in BACKFILL_POINTS)
COMPACTOR_STEPS = tuple(name for name in REACHED if name.startswith("compactor."))
OWNER_STEPS = tuple(name for name in REACHED if name.startswith("shard_node."))

ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=16, unique=True)
few_ids = st.lists(st.sampled_from(IDS), min_size=1, max_size=6, unique=True)
cases = st.sampled_from(COLOURS).map(colour_case) | st.integers(0, 10).map(size_case)
calls = st.none() | st.integers(0, 24)
PLACES = ("before meta.commit", "after meta.commit", "before put_if_absent", "after fetch")
holds = st.none() | st.integers(0, 24) | st.sampled_from(PLACES) | st.sampled_from(PLACES)


class HealingMachine(HealingActors):
    """One shard: owners one after another and at once, compactors, a leader, a collector.

    Nothing is drawn from what there is: flushes race, and what was drawn must not depend on them.
    """

    # ------------------------------------------------------------------------------ writes

    @rule(changed=ids)
    def upsert(self, changed: list[str]) -> None:
        self.do(self.write(changed))

    @rule(gone=few_ids)
    def delete(self, gone: list[str]) -> None:
        existing = self.model.live().keys() & set(gone)
        answer = self.do(self.owner.delete(*gone))
        assert answer.deleted == len(existing)
        self.model.acknowledge(dict.fromkeys(gone, ABSENT))

    @rule(case=cases)
    def delete_where(self, case: Case) -> None:
        gone = [i for i, v in self.model.live().items() if case.matches(i, v)]
        answer = self.do(self.owner.delete_where(case.filter))
        assert answer.deleted == len(gone)
        self.model.acknowledge(dict.fromkeys(gone, ABSENT))

    @rule(changed=ids, condition=st.sampled_from(["none", "present", "stale"]))
    def update(self, changed: list[str], condition: str) -> None:
        """Replace all parts of the records that exist and have the wanted versions."""
        self.version += 1
        existing = [one for one in changed if one in self.model.live()]
        wanted = None
        if condition != "none":
            present = live_sequences(self.owner.shard.view, changed)
            wanted = np.where(present > 0, present + (condition == "stale"), ANY_VERSION)
        answer = self.do(self.owner.update(*changed, version=self.version, if_versions=wanted))
        assert answer.missing == tuple(one for one in changed if one not in existing)
        if condition == "stale":
            assert [one.id for one in answer.conflicts] == existing
            assert answer.upserted == 0
            return
        assert (answer.upserted, answer.conflicts) == (len(existing), ())
        self.model.acknowledge(dict.fromkeys(existing, self.version))

    @rule(changed=few_ids, gone=few_ids)
    def insert_and_delete_on_condition(self, changed: list[str], gone: list[str]) -> None:
        """Write only what does not exist; delete only what still has its version."""
        self.version += 1
        live = self.model.live()
        batch = record_batch(changed, version=self.version)
        none = np.zeros(len(changed), dtype=np.int64)
        answer = self.do(self.owner.write(Upsert(batch, none)))
        added = [one for one in changed if one not in live]
        assert [one.id for one in answer.conflicts] == [one for one in changed if one in live]
        assert answer.upserted == len(added)
        self.model.acknowledge(dict.fromkeys(added, self.version))
        present = np.maximum(live_sequences(self.owner.shard.view, gone), 1)
        ended = self.do(self.owner.write(DeleteIds(tuple(gone), present)))
        existing = [one for one in gone if one in self.model.live()]
        assert {one.id: one.version for one in ended.conflicts} == {
            one: NO_RECORD for one in gone if one not in existing
        }
        assert ended.deleted == len(existing)
        self.model.acknowledge(dict.fromkeys(existing, ABSENT))

    @rule(first=ids, second=ids, case=cases)
    def write_at_once(self, first: list[str], second: list[str], case: Case) -> None:
        """Several writes in one group, ordered as they came."""
        one, two, three = (self.version + number for number in (1, 2, 3))
        self.version = three

        async def together() -> None:
            await asyncio.gather(
                self.owner.upsert(*first, version=one),
                self.owner.delete_where(case.filter),
                self.owner.upsert(*second, version=two),
                self.owner.update(*first, version=three),
            )

        self.do(together())
        self.model.acknowledge(dict.fromkeys(first, one))
        gone = [i for i, v in self.model.live().items() if case.matches(i, v)]
        self.model.acknowledge(dict.fromkeys(gone, ABSENT))
        self.model.acknowledge(dict.fromkeys(second, two))
        left = [record_id for record_id in first if record_id in self.model.live()]
        self.model.acknowledge(dict.fromkeys(left, three))

    # ------------------------------------------------------------------------------- reads

    @rule(
        k=st.integers(1, 15),
        case=st.none() | cases,
        exact=st.booleans(),
        cheap=st.sampled_from(sorted(CHEAP)),
    )
    def search(self, k: int, case: Case | None, exact: bool, cheap: str) -> None:
        self.find(k, case, exact=exact, cheap=cheap)

    @rule(asked=ids, everything=st.booleans())
    def get(self, asked: list[str], everything: bool) -> None:
        live = self.model.live()
        wanted = {record_id: live[record_id] for record_id in asked if record_id in live}
        found = get_records(
            self.owner.shard.view, tuple(asked), EVERYTHING if everything else IDS_ONLY
        )
        assert found.ids == [record_id for record_id in asked if record_id in wanted]
        if everything and wanted:
            assert versions_of(found) == wanted

    # ------------------------------------------------------------------------ seal and flush

    @rule()
    def seal(self) -> None:
        async def seal() -> None:
            self.owner.shard._shard.seal()

        self.do(seal())

    @rule(hold=holds, fail=calls, racing=st.none() | ids, upserts=st.booleans())
    def flush(
        self, hold: int | str | None, fail: int | None, racing: list[str] | None, upserts: bool
    ) -> None:
        async def flush() -> None:
            with contextlib.suppress(AnnhealError, DeadError):
                await self.owner.shard.flush()

        async def flush_and_race() -> None:
            await self.owner_does(flush, hold=hold, fail=fail)
            if racing is not None:
                await self.race(racing, upserts=upserts)
            if hold is None and fail is None:
                await self.owner.shard.flush()
                assert self.owner.shard.state().wal_slots == 0

        self.do(flush_and_race())

    # --------------------------------------------------------------------------- compaction

    @rule(full=st.booleans(), quiet=st.booleans())
    def plan(self, full: bool, quiet: bool) -> None:
        self.do(self.world.plan(self.owner, full=full, quiet=quiet))

    @rule(
        hold=calls,
        fail=calls,
        dies=st.none() | st.sampled_from(COMPACTOR_STEPS),
        plans=st.booleans(),
    )
    def compact(self, hold: int | None, fail: int | None, dies: str | None, plans: bool) -> None:
        """A compactor claims and builds; it may wait, fail or die on its way."""
        if sum(one.owner is None for one in self.held) >= ATTEMPTS_AT_ONCE:
            return
        reins = Reins()
        reins.hold_at(hold)
        reins.fail_in(fail)

        async def compact() -> None:
            if plans:
                await self.world.plan(self.owner, full=True, quiet=True)
            work = await self.world.attempt(reins)
            if work is not None:
                await self.until_held(Held(work, reins))

        if dies is not None:
            fail_points.arm(dies, die=reins.die_here)
        self.do(compact())
        fail_points.disarm()

    @rule(which=st.integers(0, 1), dies=st.booleans())
    def compactor_goes_on(self, which: int, dies: bool) -> None:
        working = [one for one in self.held if one.owner is None]
        if not working:
            return
        chosen = working[which % len(working)]
        if dies:
            chosen.reins.kill()
        self.do(self.resume([chosen]))

    @rule(
        which=st.integers(0, 3),
        hold=holds,
        fail=calls,
        reported=st.booleans(),
        racing=ids,
        upserts=st.booleans(),
        goes_on=st.booleans(),
    )
    def publish(
        self,
        which: int,
        hold: int | str | None,
        fail: int | None,
        reported: bool,
        racing: list[str],
        upserts: bool,
        goes_on: bool,
    ) -> None:
        """The leader proposes what was built, while rows of its sources are written."""

        async def publish() -> None:
            if not await self.world.built():
                await self.resume([one for one in self.held if one.owner is self.owner])
                await self.owner.shard.flush()
                await self.world.plan(self.owner, full=True, quiet=True)
                work = await self.world.attempt(Reins())
                if work is not None:
                    await work
            built = await self.world.built()
            if not built:
                return
            owner, task = self.owner, built[which % len(built)]
            await self.owner_does(
                lambda: self.world.publish(owner, task.id, reported=reported), hold=hold, fail=fail
            )
            await self.race(racing, upserts=upserts)
            if goes_on:
                await self.resume([one for one in self.held if one.owner is owner])

        self.do(publish())

    @rule()
    def owner_goes_on(self) -> None:
        self.do(self.resume([one for one in self.held if one.owner is not None]))

    # -------------------------------------------------------------------- ends and takeovers

    @rule(orderly=st.booleans())
    def restart(self, orderly: bool) -> None:
        """The owner ends, in order or with all its memory lost, and opens the shard again."""

        async def restart() -> None:
            if orderly:
                await self.resume([one for one in self.held if one.owner is self.owner])
                await self.owner.shard.flush()
            await self.owner_ends()
            await self.open()

        self.do(restart())

    @rule(
        steps=st.integers(0, 30) | st.sampled_from(OWNER_STEPS),
        changed=ids,
        flushes=st.booleans(),
        compactors_too=st.booleans(),
    )
    def die(
        self, steps: int | str, changed: list[str], flushes: bool, compactors_too: bool
    ) -> None:
        """Die at a store call or a fail point, while writing, flushing and publishing."""
        self.version += 1

        async def work() -> None:
            await self.owner.upsert(*changed, version=self.version)
            if flushes:
                await self.owner.shard.flush()
            for task in await self.world.built():
                await self.world.publish(self.owner, task.id, reported=False)
            await self.owner.shard.flush()

        async def live_and_die() -> None:
            await self.resume([one for one in self.held if one.owner is self.owner])
            if isinstance(steps, str):
                fail_points.arm(steps, die=self.reins.die_here)
            else:
                self.reins.die_in(steps)
            with contextlib.suppress(AnnhealError, DeadError):
                await work()
            fail_points.disarm()
            if compactors_too:
                self.world.new_leader()
                for one in [one for one in self.held if one.owner is None]:
                    one.reins.kill()
                    await self.resume([one])
            await self.owner_ends()
            await self.open()

        self.model.attempt(dict.fromkeys(changed, self.version))
        self.do(live_and_die())

    @rule(racing=st.none() | ids, goes_on=st.booleans())
    def take_over(self, racing: list[str] | None, goes_on: bool) -> None:
        """Another node takes the shard; the former owner does not know yet, and goes on."""
        former = self.owner

        async def race() -> None:
            if racing is None:
                return
            self.version += 1
            changes = dict.fromkeys(racing, self.version)
            self.model.attempt(changes)
            try:
                await former.upsert(*racing, version=self.version)
            except Fenced:
                return
            self.model.acknowledge(changes)

        async def both() -> None:
            async with asyncio.TaskGroup() as group:
                group.create_task(race())
                await self.open()
            if goes_on:  # before a check tells it that it is deposed
                await self.resume([one for one in self.held if one.owner is former])
                with contextlib.suppress(Fenced):
                    await former.shard.flush()
                for task in await self.world.built():
                    await self.world.publish(former, task.id, reported=False)

        self.do(both())
        self.formers.append(former)

    @rule(which=st.integers(0, 3), task=st.integers(0, 3))
    def former_goes_on(self, which: int, task: int) -> None:
        """A former owner flushes and is handed a compaction: both change nothing."""
        if not self.formers:
            return
        former = self.formers[which % len(self.formers)]

        async def go_on() -> None:
            await self.resume([one for one in self.held if one.owner is former])
            with contextlib.suppress(Fenced):  # it may have nothing to flush
                await former.shard.flush()
            built = await self.world.built()
            if built:
                await self.world.publish(former, built[task % len(built)].id, reported=False)
            await self.check_stores()  # INV-4: what there is is the owner's

        self.do(go_on())

    @rule(changed=ids, flushes=st.booleans())
    def metadata_goes_away(self, changed: list[str], flushes: bool) -> None:
        """INV-8: without the metadata store writes and reads go on, and no data is lost."""

        async def go_on() -> None:
            await self.resume([one for one in self.held if one.owner is self.owner])
            self.reins.metadata_away = True
            await self.write(changed)
            flushing = asyncio.create_task(self.owner.shard.flush())
            await asyncio.sleep(0.005 if flushes else 0)
            check_reads(self.owner.shard.view, self.model)
            await self.owner.shard.verify_owner()
            await self.check_stores()
            self.reins.metadata_away = False
            await flushing

        self.do(go_on())

    # --------------------------------------------------------------------- time and garbage

    @rule(passes_s=st.sampled_from([5.0, 100.0, GRACE_S / 2, GRACE_S + 10.0]))
    def time_passes(self, passes_s: float) -> None:
        self.do(self.passes(passes_s))

    async def passes(self, passes_s: float) -> None:
        """Let time pass. No change of an owner lasts as long as the grace period.

        In the product `PUBLISH_WITHIN_S` sees to that, by a clock of its own.
        """
        await self.resume([one for one in self.held if one.owner is not None])
        while changes := self.owner.shard._publishing:
            await asyncio.wait(set(changes))
        self.world.clock.passed_s += passes_s

    @rule(leaders=st.booleans(), waits=st.booleans())
    def collect(self, leaders: bool, waits: bool) -> None:
        """The leader collects; when it `waits`, also what is unreferenced now."""

        async def collect() -> None:
            if leaders:
                self.world.new_leader()
            await self.world.collect()
            if waits:
                await self.passes(GRACE_S + 10.0)
                await self.world.collect()

        self.do(collect())

    @rule()
    def settle(self) -> None:
        """Everything comes to rest; then nothing is left that nothing names."""

        async def settle() -> None:
            for one in list(self.held):
                await self.resume([one])
            await self.owner.shard.flush()
            await self.world.settle(self.owner)
            await self.world.collect()
            await self.passes(GRACE_S + 10.0)
            await self.world.collect()
            check_no_orphans(await self.world.listing(), await self.world.manifest())
            assert not any(self.world.compactor_dir.glob("*/*")), "a build left files behind"

        self.do(settle())
