"""What every metadata store must do: run over each implementation by `test_metastore.py`."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest

from annheal.errors import Conflict, DeadlineExceeded, InvalidArgument, Unavailable
from annheal.metastore import limits
from annheal.metastore.lease_keeper import LeaseKeeper
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import (
    Change,
    Compare,
    Delete,
    KeyValue,
    Lease,
    LeaseExpired,
    MetaStore,
    Operation,
    Put,
    WatchCompacted,
)

DEADLINE_S = 15.0
# The least that both stores grant; etcd counts whole seconds.
TTL_S = 3.0
"""Of leases that must not end by themselves on a machine that is busy with something else."""
# etcd looks for ended leases twice a second, SQLite's watch five times.
EXPIRY_SLACK_S = 3.0

Batch = tuple[Change, ...]


class StoreUnderTest(ABC):
    """How the suite opens a store and makes it forget changes."""

    @abstractmethod
    def open(self) -> MetaStore:
        """Return one more client of the same store."""

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Make the store forget the changes before `revision`."""


async def collect(
    changes: AsyncGenerator[Batch, None], *, until: Callable[[list[Batch]], bool]
) -> list[Batch]:
    """Read batches until `until` holds, then close the watch."""
    batches: list[Batch] = []
    async with asyncio.timeout(DEADLINE_S), aclosing(changes):
        async for batch in changes:
            batches.append(batch)
            if until(batches):
                break
    return batches


async def eventually(holds: Callable[[], bool], *, timeout_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():  # noqa: ASYNC110 - the state lies in another process
            await asyncio.sleep(0.01)


async def eventually_gone(store: MetaStore, key: str) -> None:
    async with asyncio.timeout(TTL_S + EXPIRY_SLACK_S):
        while await store.get(key) is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(mirror: Mirror) -> AsyncIterator[Mirror]:
    task = asyncio.create_task(mirror.run())
    try:
        yield mirror
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()


@dataclass
class LosingStore:
    """Passes lease calls on, until told to fail them: what a cut network does to a holder."""

    inner: MetaStore
    away: bool = False

    async def renew_lease(self, lease: Lease) -> None:
        if self.away:
            raise Unavailable("cut off")
        await self.inner.renew_lease(lease)

    async def grant_lease(self, ttl_s: float) -> Lease:
        return await self.inner.grant_lease(ttl_s)

    async def revoke_lease(self, lease: Lease) -> None:
        await self.inner.revoke_lease(lease)


class MetaStoreContract:
    """Subclasses give the fixtures `target` (a fresh store) and `store` (opened, closed after)."""

    # ------------------------------------------------------------------- reads and commits

    async def test_a_missing_key_is_none(self, store: MetaStore) -> None:
        assert await store.get("a") is None

    async def test_a_put_is_read_back(self, store: MetaStore) -> None:
        revision = await store.commit([Put("a/ü", b"\x00\xff")])
        assert await store.get("a/ü") == KeyValue("a/ü", b"\x00\xff", revision)

    async def test_another_client_sees_a_commit_at_once(
        self, target: StoreUnderTest, store: MetaStore
    ) -> None:
        other = target.open()
        for round_ in range(20):
            await store.commit([Put("a", b"%d" % round_)])
            found = await other.get("a")
            assert found is not None
            assert found.value == b"%d" % round_
        await other.close()

    async def test_a_list_holds_the_prefix_in_key_order(self, store: MetaStore) -> None:
        keys = ["b/2", "b/10", "b/ü", "b/", "a/1", "b", "b0", "c/1"]
        for key in keys:
            await store.commit([Put(key, key.encode())])
        snapshot = await store.list("b/")
        assert [item.key for item in snapshot.items] == ["b/", "b/10", "b/2", "b/ü"]
        assert [item.value.decode() for item in snapshot.items] == ["b/", "b/10", "b/2", "b/ü"]
        assert len((await store.list("")).items) == len(keys)
        assert (await store.list("none/")).items == ()

    async def test_a_list_is_of_one_revision_whatever_its_length(
        self, target: StoreUnderTest, store: MetaStore
    ) -> None:
        # Longer than one page of etcd's; every commit rewrites all of one group.
        written = [
            await store.commit([Put(f"g/{group}/{n:03d}", b"0") for n in range(100)])
            for group in range(5)
        ]

        async def rewrite() -> None:
            client = target.open()
            for version in range(1, 15):
                for group in range(5):
                    value = b"%d" % version
                    written.append(
                        await client.commit([Put(f"g/{group}/{n:03d}", value) for n in range(100)])
                    )
            await client.close()

        writing = asyncio.create_task(rewrite())
        snapshots = [await store.list("g/")]
        while not writing.done():
            snapshots.append(await store.list("g/"))
        await writing
        assert len(snapshots) > 2
        for snapshot in snapshots:
            assert len(snapshot.items) == 500
            held = {item.mod_revision for item in snapshot.items}
            # The last commit to each of the five groups up to the list's revision, and no other.
            assert held == set([r for r in written if r <= snapshot.revision][-5:])

    async def test_a_commit_is_all_or_nothing(self, store: MetaStore) -> None:
        revision = await store.commit([Put("a", b"1"), Put("b", b"1")])
        with pytest.raises(Conflict):
            await store.commit(
                [Put("a", b"2"), Delete("b"), Put("c", b"2")],
                compares=[Compare("a", revision), Compare("b", revision - 1)],
            )
        assert {(item.key, item.value) for item in (await store.list("")).items} == {
            ("a", b"1"),
            ("b", b"1"),
        }
        await store.commit(
            [Put("a", b"2"), Delete("b"), Put("c", b"2")],
            compares=[Compare("a", revision), Compare("b", revision), Compare("c", 0)],
        )
        assert {(item.key, item.value) for item in (await store.list("")).items} == {
            ("a", b"2"),
            ("c", b"2"),
        }

    async def test_zero_compares_with_absence(self, store: MetaStore) -> None:
        await store.commit([Put("a", b"1")], compares=[Compare("a", 0)])
        with pytest.raises(Conflict):
            await store.commit([Put("a", b"2")], compares=[Compare("a", 0)])
        await store.commit([Delete("a")])
        await store.commit([Put("a", b"3")], compares=[Compare("a", 0)])

    async def test_revisions_grow_and_a_commit_without_effect_leaves_them(
        self, store: MetaStore
    ) -> None:
        first = await store.commit([Put("a", b"1")])
        second = await store.commit([Put("a", b"1")])
        third = await store.commit([Delete("a")])
        assert first < second < third
        assert await store.commit([Delete("a")]) == third
        assert await store.commit([]) == third
        assert (await store.list("")).revision == third

    async def test_one_winner_per_round_of_concurrent_writers(
        self, target: StoreUnderTest, store: MetaStore
    ) -> None:
        clients = [target.open() for _ in range(6)]
        for round_ in range(5):

            async def create(client: MetaStore, key: str) -> bool:
                try:
                    await client.commit([Put(key, b"")], compares=[Compare(key, 0)])
                except Conflict:
                    return False
                return True

            won = await asyncio.gather(*(create(client, f"{round_}") for client in clients))
            assert won.count(True) == 1
        for client in clients:
            await client.close()

    async def test_a_counter_loses_no_update(
        self, target: StoreUnderTest, store: MetaStore
    ) -> None:
        await store.commit([Put("n", b"0")])

        async def increment(times: int) -> None:
            client = target.open()
            done = 0
            while done < times:
                now = await client.get("n")
                assert now is not None
                try:
                    await client.commit(
                        [Put("n", b"%d" % (int(now.value) + 1))],
                        compares=[Compare("n", now.mod_revision)],
                    )
                except Conflict:
                    continue
                done += 1
            await client.close()

        await asyncio.gather(*(increment(10) for _ in range(5)))
        counted = await store.get("n")
        assert counted is not None
        assert counted.value == b"50"

    async def test_limits(self, store: MetaStore) -> None:
        value = b"v" * limits.VALUE_BYTES_MAX
        await store.commit([Put("k" * limits.KEY_BYTES_MAX, value)])
        many = [Put(f"{n}", b"") for n in range(limits.COMMIT_OPERATIONS_MAX)]
        await store.commit(many, compares=[Compare(put.key, 0) for put in many])
        refusals: list[list[Operation]] = [
            [Put("k" * (limits.KEY_BYTES_MAX + 1), b"")],
            [Put("", b"")],
            [Put("\ud800", b"")],
            [Put("k", value + b"v")],
            [Put("a", value), Put("b", value)],
            [Put("a", b"1"), Delete("a")],
            [*many, Put("one more", b"")],
        ]
        for refused in refusals:
            before = (await store.list("")).revision
            with pytest.raises(InvalidArgument):
                await store.commit(refused)
            assert (await store.list("")).revision == before
        with pytest.raises(InvalidArgument):
            await store.commit([], compares=[Compare(f"{n}", 0) for n in range(101)])
        with pytest.raises(InvalidArgument):
            await store.grant_lease(0)

    # ------------------------------------------------------------------------------- watch

    async def test_a_watch_tells_every_change_once_in_order(self, store: MetaStore) -> None:
        before = await store.commit([Put("w/old", b"0")])
        first = await store.commit([Put("w/a", b"1"), Put("x", b"1"), Put("w/b", b"1")])
        second = await store.commit([Put("w/a", b"2")])
        watch = store.watch("w/", after_revision=before)

        async def write_more() -> int:
            await store.commit([Put("x", b"2")])
            return await store.commit([Delete("w/b"), Put("w/c", b"3")])

        writing = asyncio.create_task(write_more())
        batches = await collect(watch, until=lambda got: len(got) == 3)
        third = await writing
        assert [sorted(batch, key=lambda change: change.key) for batch in batches] == [
            [Change("w/a", b"1", first), Change("w/b", b"1", first)],
            [Change("w/a", b"2", second)],
            [Change("w/b", None, third), Change("w/c", b"3", third)],
        ]

    async def test_a_watch_from_the_middle_starts_after_its_revision(
        self, store: MetaStore
    ) -> None:
        revisions = [await store.commit([Put(f"w/{n}", b"")]) for n in range(10)]
        watch = store.watch("w/", after_revision=revisions[6])
        batches = await collect(watch, until=lambda got: len(got) == 3)
        assert [batch[0].mod_revision for batch in batches] == revisions[7:]

    async def test_list_then_watch_leaves_no_gap_under_load(
        self, target: StoreUnderTest, store: MetaStore
    ) -> None:
        listed = asyncio.Event()
        written: list[int] = []
        final: list[int] = []

        async def write() -> None:
            client = target.open()
            after_listing = 100
            while after_listing:
                n = len(written)
                after_listing -= listed.is_set()
                written.append(n)
                if not after_listing:
                    final.append(n)  # before its commit, so that the watch knows it as the last
                await client.commit([Put(f"w/{n:04d}/a", b""), Put(f"w/{n:04d}/b", b"")])
            await client.close()

        writing = asyncio.create_task(write())
        await eventually_listed(store, "w/", at_least=40)
        snapshot = await store.list("w/")
        listed.set()
        batches = await collect(
            store.watch("w/", after_revision=snapshot.revision),
            until=lambda got: bool(final) and got[-1][-1].key.startswith(f"w/{final[0]:04d}"),
        )
        await writing
        assert all(len(batch) == 2 for batch in batches)
        seen = [item.key for item in snapshot.items]
        seen += [change.key for batch in batches for change in sorted(batch, key=lambda c: c.key)]
        assert seen == [f"w/{n:04d}/{part}" for n in written for part in "ab"]

    async def test_large_revisions_are_never_split(self, store: MetaStore) -> None:
        # 12 revisions of 1 MiB: etcd sends what a late watch missed in fragments.
        value = b"v" * (1 << 15)
        start = (await store.list("")).revision
        for _ in range(12):
            await store.commit([Put(f"w/{n:02d}", value) for n in range(32)])
        batches = await collect(
            store.watch("w/", after_revision=start), until=lambda got: len(got) == 12
        )
        assert [len(batch) for batch in batches] == [32] * 12
        assert all(len({change.mod_revision for change in batch}) == 1 for batch in batches)

    async def test_a_watch_of_compacted_changes_says_so(
        self, target: StoreUnderTest, store: MetaStore
    ) -> None:
        start = await store.commit([Put("w/a", b"0")])
        for n in range(5):
            await store.commit([Put("w/a", b"%d" % n)])
        last = await store.commit([Put("w/a", b"last")])
        await target.compact(last)
        with pytest.raises(WatchCompacted):
            await collect(store.watch("w/", after_revision=start), until=bool)
        # What follows the compaction is still told.
        after = await store.commit([Put("w/a", b"after")])
        batches = await collect(store.watch("w/", after_revision=last), until=bool)
        assert batches == [(Change("w/a", b"after", after),)]

    async def test_closing_the_store_ends_its_watches(self, target: StoreUnderTest) -> None:
        store = target.open()
        revision = await store.commit([Put("w/a", b"")])
        got: list[Batch] = []
        watch = store.watch("w/", after_revision=revision - 1)
        watching = asyncio.create_task(collect(watch, until=lambda batches: _copy(batches, got)))
        await eventually(lambda: len(got) == 1)
        await store.close()
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(Unavailable):
                await watching

    # ------------------------------------------------------------------------------ leases

    async def test_the_end_of_a_lease_deletes_its_keys_and_is_watched(
        self, store: MetaStore
    ) -> None:
        lease = await store.grant_lease(TTL_S)
        assert lease.ttl_s >= TTL_S
        revision = await store.commit(
            [Put("l/a", b"1", lease_id=lease.id), Put("l/b", b"1", lease_id=lease.id)]
        )
        await store.commit([Put("l/kept", b"1")])
        found = await store.get("l/a")
        assert found == KeyValue("l/a", b"1", revision, lease.id)
        batches = await collect(
            store.watch("l/", after_revision=revision - 1), until=lambda got: len(got) == 3
        )
        assert {change.lease_id for change in batches[0]} == {lease.id}
        assert {(change.key, change.value) for change in batches[2]} == {
            ("l/a", None),
            ("l/b", None),
        }
        assert [item.key for item in (await store.list("l/")).items] == ["l/kept"]
        with pytest.raises(LeaseExpired):
            await store.renew_lease(lease)
        with pytest.raises(LeaseExpired):
            await store.commit([Put("l/a", b"2", lease_id=lease.id)])
        await store.commit([Put("l/a", b"3")], compares=[Compare("l/a", 0)])

    async def test_a_renewed_lease_lives_on(self, store: MetaStore) -> None:
        lease = await store.grant_lease(TTL_S)
        await store.commit([Put("l/a", b"", lease_id=lease.id)])
        started = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() - started < lease.ttl_s + 1.0:
            await asyncio.sleep(lease.ttl_s / 4)
            await store.renew_lease(lease)
        assert await store.get("l/a") is not None
        await eventually_gone(store, "l/a")

    async def test_a_key_put_again_without_its_lease_outlives_it(self, store: MetaStore) -> None:
        lease = await store.grant_lease(60)
        await store.commit([Put("l/a", b"", lease_id=lease.id), Put("l/b", b"", lease.id)])
        await store.commit([Put("l/a", b"mine")])
        await store.revoke_lease(lease)
        assert [item.key for item in (await store.list("l/")).items] == ["l/a"]

    async def test_revoking_ends_a_lease_at_once(self, store: MetaStore) -> None:
        lease = await store.grant_lease(60)
        revision = await store.commit([Put("l/a", b"", lease_id=lease.id)])
        await store.revoke_lease(lease)
        assert await store.get("l/a") is None
        batches = await collect(store.watch("l/", after_revision=revision), until=bool)
        assert batches[0][0].value is None
        await store.revoke_lease(lease)
        with pytest.raises(LeaseExpired):
            await store.renew_lease(lease)
        with pytest.raises(LeaseExpired):
            await store.commit([Put("l/a", b"", lease_id=lease.id)])

    # ------------------------------------------------------------------------------ mirror

    async def test_a_mirror_follows(self, store: MetaStore) -> None:
        await store.commit([Put("m/a", b"1"), Put("m/b", b"1")])
        mirror = Mirror(store, "m/")
        await mirror.start()
        assert {key: item.value for key, item in mirror.items.items()} == {
            "m/a": b"1",
            "m/b": b"1",
        }
        async with running(mirror):
            version = mirror.version
            last = await store.commit([Put("m/c", b"2"), Delete("m/a")])
            async with asyncio.timeout(DEADLINE_S):
                assert await mirror.wait_change(version) > version
            await mirror.wait_for(lambda items: "m/c" in items, timeout_s=DEADLINE_S)
            assert set(mirror.items) == {"m/b", "m/c"}
            assert mirror.revision == last
            assert mirror.items["m/c"] == await store.get("m/c")
            with pytest.raises(DeadlineExceeded):
                await mirror.wait_for(lambda items: "m/never" in items, timeout_s=0.05)

    async def test_a_mirror_survives_a_compaction(
        self, target: StoreUnderTest, store: MetaStore
    ) -> None:
        await store.commit([Put("m/a", b"1"), Put("m/b", b"1")])
        mirror = Mirror(store, "m/")
        await mirror.start()
        await store.commit([Delete("m/a")])
        last = 0
        for n in range(5):
            last = await store.commit([Put("m/b", b"%d" % n)])
        await target.compact(last)
        async with running(mirror):
            await mirror.wait_for(lambda items: "m/a" not in items, timeout_s=DEADLINE_S)
            assert mirror.items["m/b"].value == b"4"
            await store.commit([Put("m/c", b"")])
            await mirror.wait_for(lambda items: "m/c" in items, timeout_s=DEADLINE_S)

    # ------------------------------------------------------------------------ lease keeper

    async def test_a_kept_lease_outlives_its_time_and_ends_with_its_keeper(
        self, store: MetaStore
    ) -> None:
        loop = asyncio.get_running_loop()
        async with LeaseKeeper(store, ttl_s=TTL_S) as keeper:
            await store.commit([Put("l/a", b"", lease_id=keeper.lease.id)])
            first_valid_until = keeper.valid_until
            until = loop.time() + keeper.lease.ttl_s + 0.7
            while loop.time() < until:
                await asyncio.sleep(0.05)
                assert keeper.is_valid()
            assert keeper.valid_until > first_valid_until
            assert not keeper.lost.is_set()
            assert await store.get("l/a") is not None
        assert await store.get("l/a") is None
        assert not keeper.is_valid()
        with pytest.raises(LeaseExpired):
            _ = keeper.lease

    async def test_a_keeper_notices_that_its_lease_was_ended(self, store: MetaStore) -> None:
        losses: list[str] = []
        keeper = LeaseKeeper(store, ttl_s=TTL_S, on_loss=lambda: losses.append("lost"))
        async with keeper:
            old = keeper.lease
            await store.revoke_lease(old)
            async with asyncio.timeout(DEADLINE_S):
                await keeper.lost.wait()
            assert losses == ["lost"]
            assert not keeper.is_valid()
            new = await keeper.regrant()
            assert new.id != old.id
            assert keeper.is_valid()
            assert not keeper.lost.is_set()
            await store.commit([Put("l/a", b"", lease_id=new.id)])

    async def test_a_keeper_gives_up_before_the_store_does(self, store: MetaStore) -> None:
        cut = LosingStore(store)
        async with LeaseKeeper(cut, ttl_s=TTL_S) as keeper:  # type: ignore[arg-type]
            await store.commit([Put("l/a", b"", lease_id=keeper.lease.id)])
            granted_until, held_s = keeper.valid_until, keeper.lease.ttl_s
            await eventually(lambda: keeper.valid_until > granted_until)
            cut.away = True
            cut_off_at = time.monotonic()
            assert keeper.valid_until <= cut_off_at + held_s
            async with asyncio.timeout(DEADLINE_S):
                await keeper.lost.wait()
            assert time.monotonic() < cut_off_at + held_s + EXPIRY_SLACK_S
            # Lost by the keeper's own clock, although the store still has the key or just lost it.
            assert not keeper.is_valid()
            cut.away = False
            await eventually_gone(store, "l/a")


async def eventually_listed(store: MetaStore, prefix: str, *, at_least: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len((await store.list(prefix)).items) < at_least:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def _copy(batches: list[Batch], seen: list[Batch]) -> bool:
    """Show what a watch has told so far, and let it go on."""
    seen[:] = batches
    return False
