"""Both metadata stores against a dictionary: random histories, then what a watch tells of them."""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from abc import abstractmethod
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from annheal.errors import Conflict
from annheal.metastore.factory import open_meta_store
from annheal.metastore.protocol import Compare, Delete, MetaStore, Operation, Put
from annheal.metastore.sqlite import SqliteMetaStore
from tests.contract.metastore_contract import collect
from tests.support.etcd_server import EtcdServer

KEYS = ["a", "a/1", "a/2", "b/1", "b/ü"]
PREFIXES = ["", "a", "a/", "b/"]
ResultT = TypeVar("ResultT")

_operations = st.lists(
    st.one_of(
        st.builds(Put, st.sampled_from(KEYS), st.binary(max_size=4)),
        st.builds(Delete, st.sampled_from(KEYS)),
    ),
    max_size=4,
    unique_by=lambda operation: operation.key,
)


class StoreMachine(RuleBasedStateMachine):
    """`expected` maps key to (value, revision); `told` is what a watch of everything must say."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.store = self.run(self.open())
        self.expected: dict[str, tuple[bytes, int]] = {}
        self.told: list[set[tuple[str, bytes | None, int]]] = []
        self.start = self.revision = self.run(self.store.list("")).revision

    @abstractmethod
    async def open(self) -> MetaStore:
        """Return an empty store."""

    def run(self, call: Coroutine[Any, Any, ResultT]) -> ResultT:
        return self.runner.run(call)

    @rule(operations=_operations)
    def commit(self, operations: list[Operation]) -> None:
        self._expect(operations, self.run(self.store.commit(operations)))

    @rule(operations=_operations, compared=st.sets(st.sampled_from(KEYS)), stale=st.booleans())
    def compare_and_commit(
        self, operations: list[Operation], compared: set[str], stale: bool
    ) -> None:
        wrong = 1 if stale and compared else 0
        compares = [Compare(key, self._revision_of(key) + wrong) for key in sorted(compared)]
        try:
            revision = self.run(self.store.commit(operations, compares=compares))
        except Conflict:
            assert wrong
        else:
            assert not wrong
            self._expect(operations, revision)

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: str) -> None:
        found = self.run(self.store.get(key))
        assert (found and (found.value, found.mod_revision)) == self.expected.get(key)

    @rule(prefix=st.sampled_from(PREFIXES))
    def list_prefix(self, prefix: str) -> None:
        snapshot = self.run(self.store.list(prefix))
        assert snapshot.revision == self.revision
        assert [(item.key, item.value, item.mod_revision) for item in snapshot.items] == [
            (key, *self.expected[key])
            for key in sorted(self.expected, key=str.encode)
            if key.startswith(prefix)
        ]

    @invariant()
    def revisions_only_grow(self) -> None:
        assert self.revision >= self.start

    def teardown(self) -> None:
        if self.told:
            watch = self.store.watch("", after_revision=self.start)
            batches = self.run(collect(watch, until=lambda got: len(got) == len(self.told)))
            seen = [{(c.key, c.value, c.mod_revision) for c in batch} for batch in batches]
            assert seen == self.told
        self.run(self.store.close())
        self.runner.close()

    def _revision_of(self, key: str) -> int:
        return self.expected[key][1] if key in self.expected else 0

    def _expect(self, operations: list[Operation], revision: int) -> None:
        told: set[tuple[str, bytes | None, int]] = set()
        for operation in operations:
            if isinstance(operation, Put):
                self.expected[operation.key] = (operation.value, revision)
                told.add((operation.key, operation.value, revision))
            elif self.expected.pop(operation.key, None) is not None:
                told.add((operation.key, None, revision))
        assert revision > self.revision if told else revision == self.revision
        self.revision = revision
        if told:
            self.told.append(told)


class SqliteMachine(StoreMachine):
    async def open(self) -> MetaStore:
        self.folder = tempfile.TemporaryDirectory()
        return SqliteMetaStore(Path(self.folder.name) / "meta.db")

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


class EtcdMachine(StoreMachine):
    server: ClassVar[EtcdServer]
    prefixes: ClassVar[Iterator[int]] = itertools.count()

    async def open(self) -> MetaStore:
        return open_meta_store(self.server.url(f"model{next(self.prefixes)}"))


_settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_sqlite_behaves_like_a_dictionary() -> None:
    run_state_machine_as_test(SqliteMachine, settings=_settings)


@pytest.mark.etcd
def test_etcd_behaves_like_a_dictionary() -> None:
    with EtcdServer() as server:
        EtcdMachine.server = server
        run_state_machine_as_test(EtcdMachine, settings=_settings)
