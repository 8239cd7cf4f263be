"""The contract over both metadata stores, and what is particular to each."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme

from annheal.errors import (
    AnnhealError,
    Conflict,
    DataCorruption,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore import etcd_channel
from annheal.metastore.etcd import EtcdMetaStore, EtcdTls, EtcdUser
from annheal.metastore.factory import open_meta_store
from annheal.metastore.mirror import Mirror
from annheal.metastore.protocol import (
    Compare,
    LeaseExpired,
    MetaStore,
    Put,
    WatchCompacted,
)
from annheal.metastore.sqlite import SqliteMetaStore
from tests.contract.metastore_contract import (
    DEADLINE_S,
    MetaStoreContract,
    StoreUnderTest,
    collect,
    eventually,
    running,
)
from tests.support.etcd_server import EtcdServer
from tests.support.ports import LOOPBACK, free_port

_prefixes = itertools.count()


class SqliteUnderTest(StoreUnderTest):
    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self) -> SqliteMetaStore:
        return SqliteMetaStore(self.path)

    async def compact(self, revision: int) -> None:
        store = self.open()
        await store.compact(revision)
        await store.close()


class EtcdUnderTest(StoreUnderTest):
    def __init__(self, server: EtcdServer) -> None:
        self.server = server
        self.prefix = f"t{next(_prefixes)}"

    def open(self) -> MetaStore:
        return open_meta_store(self.server.url(self.prefix))

    async def compact(self, revision: int) -> None:
        await asyncio.to_thread(self.server.compact, revision)


@pytest.fixture(scope="module")
def etcd() -> Iterator[EtcdServer]:
    with EtcdServer() as server:
        yield server


@pytest.fixture
async def store(target: StoreUnderTest) -> AsyncIterator[MetaStore]:
    store = target.open()
    yield store
    await store.close()


class TestSqliteContract(MetaStoreContract):
    @pytest.fixture
    def target(self, tmp_path: Path) -> SqliteUnderTest:
        return SqliteUnderTest(tmp_path / "meta.db")


@pytest.mark.etcd
class TestEtcdContract(MetaStoreContract):
    @pytest.fixture
    def target(self, etcd: EtcdServer) -> EtcdUnderTest:
        return EtcdUnderTest(etcd)


class TestSqlite:
    @pytest.fixture
    def target(self, tmp_path: Path) -> SqliteUnderTest:
        return SqliteUnderTest(tmp_path / "new" / "meta.db")

    async def test_a_watch_goes_on_where_it_was_after_reopening(
        self, target: SqliteUnderTest
    ) -> None:
        first = target.open()
        start = await first.commit([Put("w/0", b"")])
        for n in range(1, 20):
            await first.commit([Put(f"w/{n}", b"")])
        head = await collect(first.watch("w/", after_revision=start), until=lambda g: len(g) == 7)
        await first.close()
        second = target.open()
        await second.commit([Put("w/20", b"")])
        tail = await collect(
            second.watch("w/", after_revision=head[-1][-1].mod_revision),
            until=lambda got: len(got) == 13,
        )
        assert [batch[0].key for batch in head + tail] == [f"w/{n}" for n in range(1, 21)]
        await second.close()

    async def test_only_the_last_changes_are_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "meta.db"
        store = SqliteMetaStore(path, changes_kept=50)
        start = last = await store.commit([Put("w/a", b"")])
        for _ in range(200):
            last = await store.commit([Put("w/a", b"")])
        with pytest.raises(WatchCompacted):
            await collect(store.watch("w/", after_revision=start), until=bool)
        kept = await collect(
            store.watch("w/", after_revision=last - 50), until=lambda got: len(got) == 50
        )
        assert kept[-1][0].mod_revision == last
        await store.close()
        database = sqlite3.connect(path)
        assert database.execute("SELECT count(*) FROM changes").fetchone()[0] <= 55
        database.close()

    async def test_a_lease_with_more_keys_than_one_look_reads_ends_in_one_batch(
        self, store: MetaStore
    ) -> None:
        lease = await store.grant_lease(60)
        revision = 0
        for group in range(25):
            revision = await store.commit(
                [Put(f"l/{group:02d}/{n:02d}", b"", lease_id=lease.id) for n in range(60)]
            )
        await store.revoke_lease(lease)
        await store.commit([Put("l/after", b"")])
        batches = await collect(
            store.watch("l/", after_revision=revision), until=lambda got: len(got) == 2
        )
        assert [len(batch) for batch in batches] == [1500, 1]

    async def test_leases_of_a_killed_predecessor_can_be_ended_at_once(
        self, target: SqliteUnderTest
    ) -> None:
        dead = target.open()
        lease = await dead.grant_lease(3600)
        await dead.commit([Put("leader", b"", lease_id=lease.id)])
        await dead.close()
        store = target.open()
        await store.expire_all_leases()
        assert await store.get("leader") is None
        with pytest.raises(LeaseExpired):
            await store.renew_lease(lease)
        await store.close()

    async def test_reads_hide_the_keys_of_an_ended_lease_that_nobody_swept(
        self, tmp_path: Path
    ) -> None:
        now = 1_000.0
        store = SqliteMetaStore(tmp_path / "meta.db", wall_clock=lambda: now)
        lease = await store.grant_lease(10)
        await store.commit([Put("l/a", b"", lease_id=lease.id)])
        now = 1_009.9
        assert await store.get("l/a") is not None
        now = 1_010.0
        assert await store.get("l/a") is None
        assert (await store.list("l/")).items == ()
        await store.close()

    async def test_a_full_disk_refuses_commits_and_still_serves(self, tmp_path: Path) -> None:
        store = SqliteMetaStore(tmp_path / "meta.db", size_bytes_max=1 << 20)
        await store.commit([Put("a", b"1")])

        async def fill() -> None:
            for n in range(100):
                await store.commit([Put(f"fill/{n}", b"v" * 50_000)])

        with pytest.raises(ResourceExhausted):
            await fill()
        found = await store.get("a")
        assert found is not None
        stored = len((await store.list("fill/")).items)
        assert 0 < stored < 20
        await store.commit([Put("a", b"2")])
        await store.close()

    async def test_a_locked_database_is_unavailable(
        self, target: SqliteUnderTest, store: MetaStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("annheal.metastore.sqlite_schema.BUSY_TIMEOUT_S", 0.1)
        await store.commit([Put("a", b"1")])
        holder = sqlite3.connect(target.path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await store.commit([Put("a", b"2")])
        assert (await store.get("a")) is not None
        holder.execute("ROLLBACK")
        holder.close()
        await store.commit([Put("a", b"2")])

    async def test_a_damaged_file_is_named_corrupt(self, tmp_path: Path) -> None:
        path = tmp_path / "meta.db"
        path.write_bytes(b"not a database" * 1000)
        store = SqliteMetaStore(path)
        with pytest.raises(DataCorruption):
            await store.get("a")
        await store.close()


@pytest.mark.etcd
class TestEtcd:
    @pytest.fixture
    def target(self, etcd: EtcdServer) -> EtcdUnderTest:
        return EtcdUnderTest(etcd)

    async def test_a_watch_loses_nothing_while_etcd_is_killed(
        self, etcd: EtcdServer, target: EtcdUnderTest, store: MetaStore
    ) -> None:
        total = 300
        start = await store.commit([Put("start", b"")])
        live = asyncio.create_task(
            collect(store.watch("w/", after_revision=start), until=lambda got: len(got) == total)
        )
        written = 0

        async def write() -> None:
            nonlocal written
            for n in range(total):
                await _create_surely(store, f"w/{n:03d}")
                written = n + 1

        writing = asyncio.create_task(write())
        for kill_at in (100, 200):
            await eventually(lambda kill_at=kill_at: written >= kill_at)  # type: ignore[misc]
            await asyncio.to_thread(etcd.restart)
        await writing
        expected = [f"w/{n:03d}" for n in range(total)]
        for batches in (
            await live,
            await collect(store.watch("w/", after_revision=start), until=lambda g: len(g) == total),
        ):
            assert [batch[0].key for batch in batches] == expected
            revisions = [batch[0].mod_revision for batch in batches]
            assert revisions == sorted(set(revisions))

    async def test_an_absent_etcd_is_unavailable_in_time_and_nothing_was_changed(
        self, etcd: EtcdServer, target: EtcdUnderTest, store: MetaStore
    ) -> None:
        await store.commit([Put("m/a", b"1")])
        mirror = Mirror(store, "m/")
        await mirror.start()
        async with running(mirror):
            etcd.kill()
            started = time.monotonic()
            with pytest.raises(Unavailable):
                await store.get("m/a")
            with pytest.raises((Unavailable, UnknownOutcome)):
                await store.commit([Put("m/a", b"2")])
            with pytest.raises(Unavailable):
                await store.commit([Put("m/a", b"3")])
            assert time.monotonic() - started < 10
            assert mirror.items["m/a"].value == b"1"
            await asyncio.to_thread(etcd.restart)
            await store.commit([Put("m/b", b"")])
            await mirror.wait_for(lambda items: "m/b" in items, timeout_s=DEADLINE_S)
            assert mirror.items["m/a"].value == b"1"

    async def test_a_frozen_etcd_leaves_the_outcome_of_a_commit_open(
        self, etcd: EtcdServer, target: EtcdUnderTest
    ) -> None:
        store = EtcdMetaStore(
            [etcd.endpoint],
            prefix=f"/annheal/{target.prefix}/",
            request_timeout_s=0.4,
            watch_quiet_s=0.4,
        )
        start = await store.commit([Put("w/a", b"1")])
        watching = asyncio.create_task(
            collect(store.watch("w/", after_revision=start), until=lambda g: len(g) == 2)
        )
        etcd.pause()
        started = time.monotonic()
        with pytest.raises(UnknownOutcome):
            await store.commit([Put("w/a", b"2")], compares=[Compare("w/a", start)])
        with pytest.raises(Unavailable):
            await store.get("w/a")
        assert time.monotonic() - started < 5
        etcd.resume()
        # Read back, as the contract asks: it took effect wholly or not at all.
        found = await _retry_get(store, "w/a")
        try:
            await store.commit([Put("w/a", b"3")], compares=[Compare("w/a", start)])
            assert found == b"1"
        except Conflict:
            assert found in (b"1", b"2")
        await store.commit([Put("w/b", b"")])
        batches = await watching
        assert len({batch[0].mod_revision for batch in batches}) == 2
        await store.close()

    async def test_catching_up_never_exceeds_the_message_limit(
        self, target: EtcdUnderTest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The limit is lowered below what was missed; one revision is still within it.
        options = dict(etcd_channel._CHANNEL_OPTIONS)
        options["grpc.max_receive_message_length"] = 4 << 20
        monkeypatch.setattr(etcd_channel, "_CHANNEL_OPTIONS", tuple(options.items()))
        store = target.open()
        start = (await store.list("")).revision
        for n in range(12):
            await store.commit([Put(f"w/{n:02d}", b"v" * (1 << 20))])
        batches = await collect(
            store.watch("w/", after_revision=start), until=lambda got: len(got) == 12
        )
        assert [batch[0].key for batch in batches] == [f"w/{n:02d}" for n in range(12)]
        await store.close()

    async def test_a_dead_member_is_left_for_a_living_one(
        self, etcd: EtcdServer, target: EtcdUnderTest
    ) -> None:
        store = open_meta_store(f"etcd://{LOOPBACK}:{free_port()},{etcd.endpoint}/{target.prefix}")
        revision = await store.commit([Put("w/a", b"1")])
        lease = await store.grant_lease(5)
        await store.renew_lease(lease)
        batches = await collect(store.watch("w/", after_revision=revision - 1), until=bool)
        assert batches[0][0].value == b"1"
        await store.close()

    async def test_clusters_do_not_see_one_another(self, etcd: EtcdServer) -> None:
        one, two = (open_meta_store(etcd.url(name)) for name in ("one", "one-more"))
        await one.commit([Put("a", b"1")])
        assert await two.get("a") is None
        assert (await two.list("")).items == ()
        await one.close()
        await two.close()

    async def test_a_forgotten_token_is_renewed(self) -> None:
        with EtcdServer() as server:
            await asyncio.to_thread(_enable_authentication, server)
            prefix = "/annheal/auth/"
            store = EtcdMetaStore([server.endpoint], prefix=prefix, user=EtcdUser("root", "secret"))
            revision = await store.commit([Put("w/a", b"1")])
            watching = asyncio.create_task(
                collect(store.watch("w/", after_revision=revision), until=lambda g: len(g) == 2)
            )
            # Tokens are kept in memory: a restart forgets them all.
            await asyncio.to_thread(server.restart)
            await store.commit([Put("w/b", b"1")])
            await asyncio.to_thread(server.restart)
            lease = await store.grant_lease(5)
            await asyncio.to_thread(server.restart)
            await store.renew_lease(lease)
            await store.commit([Put("w/c", b"1")])
            assert [batch[0].key for batch in await watching] == ["w/b", "w/c"]
            wrong = EtcdMetaStore([server.endpoint], prefix=prefix, user=EtcdUser("root", "no"))
            with pytest.raises(FailedPrecondition):
                await wrong.get("w/a")
            nobody = EtcdMetaStore([server.endpoint], prefix=prefix)
            with pytest.raises(AnnhealError):
                await nobody.get("w/a")
            for client in (store, wrong, nobody):
                await client.close()

    async def test_mutual_tls(self, tmp_path: Path) -> None:
        await asyncio.to_thread(_make_keys, tmp_path)
        with EtcdServer(keys=tmp_path) as server:
            store = open_meta_store(
                f"{server.url()}?ca={tmp_path}/ca.crt&cert={tmp_path}/client.crt&key={tmp_path}/client.key"
            )
            async with asyncio.timeout(DEADLINE_S):
                await store.commit([Put("a", b"1")])
            await store.close()
            ca = (tmp_path / "ca.crt").read_bytes()
            stranger = EtcdMetaStore([server.endpoint], prefix="/x/", tls=EtcdTls(ca=ca))
            with pytest.raises(AnnhealError):
                await stranger.get("a")
            await stranger.close()


def test_urls(tmp_path: Path) -> None:
    assert isinstance(open_meta_store(f"sqlite://{tmp_path}/m.db"), SqliteMetaStore)
    for refused in (
        "sqlite://",
        "sqlite://relative",
        "redis://x",
        "etcd:///cluster",
        "etcd://h:1/c?nope=1",
        "etcd://h:1/c?cert=/x",
        f"etcd://h:1/c?ca={tmp_path}/missing",
    ):
        with pytest.raises(InvalidArgument):
            open_meta_store(refused)


async def _create_surely(store: MetaStore, key: str) -> None:
    """Create the key exactly once, whatever happens to answers."""
    while True:
        try:
            await store.commit([Put(key, b"")], compares=[Compare(key, 0)])
        except Conflict:
            return
        except (Unavailable, UnknownOutcome):
            await asyncio.sleep(0.02)
        else:
            return


async def _retry_get(store: MetaStore, key: str) -> bytes:
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                found = await store.get(key)
            except Unavailable:
                continue
            assert found is not None
            return found.value


def _enable_authentication(server: EtcdServer) -> None:
    server.post("auth/user/add", {"name": "root", "password": "secret"})
    server.post("auth/role/add", {"name": "root"})
    server.post("auth/user/grant", {"user": "root", "role": "root"})
    server.post("auth/enable", {})


def _make_keys(folder: Path) -> None:
    """Make a certificate authority and, signed by it, keys for a server and a client."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.crt"))
    for name in ("server", "client"):
        issued = authority.issue_cert("localhost", "127.0.0.1", common_name=name)
        issued.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        for place, part in enumerate(issued.cert_chain_pems):
            part.write_to_path(str(folder / f"{name}.crt"), append=place > 0)
