"""Writers that remember what was acknowledged, and the checker that holds the server to it.

Every id belongs to one writer, which waits for each write before the next, so the versions of an id
are ordered. A write that was not acknowledged may or may not have happened: from then on both
versions are legal, until the next acknowledged write of that id. Vectors, attributes and payloads
are functions of id and version, so a stale part of a record is found wherever it is.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from annheal import AsyncClient
from annheal.errors import AnnhealError, DeadlineExceeded

ABSENT = 0
"""The version of a record that does not exist; others begin at 1."""
DIMENSION = 16
ATTRIBUTES = {"writer": "int64", "slot": "int64", "version": "int64"}
UPSERT_ROWS_MAX = 16
DELETE_ROWS_MAX = 6
GET_IDS_AT_ONCE = 500
SEARCH_SAMPLE = 60
SCORE_TOLERANCE = 1e-4
# Longer than a failover, so that most writes are acknowledged in the end, as clients wish.
WRITE_TIMEOUT_S = 15.0
PAUSE_AFTER_FAILURE_S = 0.05


def vector_of(record_id: str, version: int) -> npt.NDArray[np.float32]:
    """Return the unit vector of a record's version, (DIMENSION,) float32."""
    rng = np.random.default_rng([zlib.crc32(record_id.encode()), version])
    vector = rng.standard_normal(DIMENSION)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass(slots=True)
class RecordsOracle:
    """Which versions of every id may be seen."""

    _legal: dict[str, set[int]] = field(default_factory=dict)
    acknowledged: int = 0
    unknown: int = 0

    def attempt(self, ids: Iterable[str], versions: Iterable[int]) -> None:
        """A write is about to be sent."""
        for record_id, version in zip(ids, versions, strict=True):
            self._legal.setdefault(record_id, {ABSENT}).add(version)

    def acknowledge(self, ids: Iterable[str], versions: Iterable[int]) -> None:
        """The write was acknowledged: nothing older may be seen from now on."""
        self.acknowledged += 1
        for record_id, version in zip(ids, versions, strict=True):
            self._legal[record_id] = {version}

    def legal(self, record_id: str) -> set[int]:
        """Return the versions that may be seen; ABSENT alone for ids never written."""
        return self._legal.get(record_id, {ABSENT})

    @property
    def ids(self) -> list[str]:
        """Every id that was ever written or tried."""
        return sorted(self._legal)

    def wrong(self, seen: dict[str, int]) -> list[str]:
        """Describe every id whose seen version (ABSENT when missing in `seen`) is not legal."""
        return [
            f"{record_id}: version {seen.get(record_id, ABSENT)}, "
            f"legal {sorted(self.legal(record_id))}"
            for record_id in sorted({*self._legal, *seen})
            if seen.get(record_id, ABSENT) not in self.legal(record_id)
        ]


class Workload:
    """`writers` tasks that upsert and delete ids of their own until told to stop."""

    def __init__(
        self,
        client: AsyncClient,
        collection: str,
        oracle: RecordsOracle,
        *,
        seed: int,
        writers: int = 4,
        ids_per_writer: int = 250,
    ) -> None:
        self._client = client
        self._collection = collection
        self._oracle = oracle
        self._stop = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._seed = seed
        self._writers = writers
        self._ids = ids_per_writer
        self.progress = 0
        self.searches = 0
        self.failures: list[str] = []
        """Errors that reached the client: of reads, and of writes whose outcome is unknown."""

    async def __aenter__(self) -> Workload:
        self._tasks = [
            asyncio.create_task(self._write(number), name=f"writer-{number}")
            for number in range(self._writers)
        ]
        self._tasks.append(asyncio.create_task(self._search(), name="searcher"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Let every writer finish its write; raises what any of them failed with."""
        self._stop.set()
        await asyncio.gather(*self._tasks)

    async def wait_progress(self, writes: int, *, timeout_s: float = 60.0) -> None:
        """Return when `writes` more writes were acknowledged; raises what a writer failed with."""
        goal = self.progress + writes
        async with asyncio.timeout(timeout_s):
            while self.progress < goal:
                for task in self._tasks:
                    if task.done():
                        task.result()
                        raise AssertionError(f"{task.get_name()} has ended")
                await asyncio.sleep(0.01)

    async def _write(self, number: int) -> None:
        rng = random.Random(f"{self._seed}/{number}")
        version = 0
        while not self._stop.is_set():
            version += 1
            kind = rng.random()
            rows_max = UPSERT_ROWS_MAX if kind < 0.7 else DELETE_ROWS_MAX
            slots = rng.sample(range(self._ids), rng.randint(1, rows_max))
            ids = [f"w{number}-{slot:05d}" for slot in slots]
            if 0.5 <= kind < 0.7:
                await self._update(ids, version)
                continue
            versions = [version if kind < 0.7 else ABSENT] * len(ids)
            self._oracle.attempt(ids, versions)
            try:
                await self._send(number, slots, ids, version, kind)
            except AnnhealError as error:
                self._note(error, f"write of {ids}")
                self._oracle.unknown += 1
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                continue
            self._oracle.acknowledge(ids, versions)
            self.progress += 1
            if rng.random() < 0.2:
                await self._read_own(ids)

    async def _update(self, ids: Sequence[str], version: int) -> None:
        """Replace every part of the records that exist, and no other."""
        perhaps = [one for one in ids if self._oracle.legal(one) != {ABSENT}]
        self._oracle.attempt(perhaps, [version] * len(perhaps))
        try:
            result = await self._client.update(
                self._collection,
                ids,
                vectors=np.stack([vector_of(one, version) for one in ids]),
                attributes={"version": [version] * len(ids)},
                payloads=[{"version": version, "id": one} for one in ids],
                timeout_s=WRITE_TIMEOUT_S,
            )
        except AnnhealError as error:
            self._note(error, f"update of {ids}")
            self._oracle.unknown += 1
            await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
            return
        missing = set(result.missing)
        assert missing.issuperset(set(ids) - set(perhaps)), "a deleted record was brought back"
        wrong = [one for one in missing if ABSENT not in self._oracle.legal(one)]
        assert not wrong, f"an update did not find what was acknowledged: {wrong}"
        versions = [ABSENT if one in missing else version for one in ids]
        self._oracle.acknowledge(ids, versions)
        self.progress += 1

    async def _send(
        self, number: int, slots: Sequence[int], ids: Sequence[str], version: int, kind: float
    ) -> None:
        if kind < 0.7:
            await self._client.upsert(
                self._collection,
                ids,
                np.stack([vector_of(one, version) for one in ids]),
                attributes={
                    "writer": [number] * len(ids),
                    "slot": list(slots),
                    "version": [version] * len(ids),
                },
                payloads=[{"version": version, "id": one} for one in ids],
                timeout_s=WRITE_TIMEOUT_S,
            )
        elif kind < 0.92:
            await self._client.delete(self._collection, ids, timeout_s=WRITE_TIMEOUT_S)
        else:
            listed = ", ".join(str(slot) for slot in slots)
            await self._client.delete(
                self._collection,
                filter=f"writer = {number} and slot in ({listed})",
                timeout_s=WRITE_TIMEOUT_S,
            )

    async def _read_own(self, ids: Sequence[str]) -> None:
        """Read back what was just acknowledged: nobody else writes these ids."""
        try:
            records = await self._client.get(self._collection, ids, timeout_s=WRITE_TIMEOUT_S)
        except AnnhealError as error:
            self._note(error, f"read of {ids}")
            return
        seen = {record.id: int(record.payload["version"]) for record in records}
        wrong = [
            f"{one}: {seen.get(one, ABSENT)} is not in {self._oracle.legal(one)}"
            for one in ids
            if seen.get(one, ABSENT) not in self._oracle.legal(one)
        ]
        assert not wrong, f"an acknowledged write was not read back: {wrong}"

    async def _search(self) -> None:
        """Search all the time; no id may come twice."""
        rng = random.Random(f"{self._seed}/search")
        while not self._stop.is_set():
            query = vector_of(f"w0-{rng.randrange(self._ids):05d}", rng.randint(1, 20))
            try:
                result = await self._client.search(
                    self._collection, query, k=10, timeout_s=WRITE_TIMEOUT_S
                )
            except AnnhealError as error:
                self._note(error, "search")
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                continue
            assert len(set(result.ids)) == len(result.ids), f"an id twice in {result}"
            self.searches += 1

    def _note(self, error: AnnhealError, what: str) -> None:
        """Remember an error that may happen while servers die; raise any other."""
        if not (error.retryable or isinstance(error, DeadlineExceeded)):
            raise error
        self.failures.append(f"{what}: {error.reason}: {error}")


async def check_records(client: AsyncClient, collection: str, oracle: RecordsOracle) -> int:
    """Assert that the collection is what `oracle` allows, by every way of reading; return its size.

    INV-1 (nothing acknowledged is lost), INV-2 (nothing dead is seen) and INV-3 (no id twice).
    """
    seen = await _check_scan(client, collection, oracle)
    for start in range(0, len(oracle.ids), GET_IDS_AT_ONCE):
        ids = oracle.ids[start : start + GET_IDS_AT_ONCE]
        records = await client.get(collection, ids, consistency="strong")
        got = {record.id: int(record.payload["version"]) for record in records}
        expected = {one: seen[one] for one in ids if one in seen}
        assert got == expected, "get and scan differ"
    await _check_counts(client, collection, seen)
    await _check_searches(client, collection, oracle, seen)
    return len(seen)


async def _check_scan(
    client: AsyncClient, collection: str, oracle: RecordsOracle
) -> dict[str, int]:
    seen: dict[str, int] = {}
    async for records in client.scan(collection, include="all"):
        for record in records:
            assert record.id not in seen, f"the scan shows {record.id} twice"
            version = int(record.payload["version"])
            seen[record.id] = version
            assert record.payload["id"] == record.id
            assert record.attributes is not None
            assert record.attributes["version"] == version, f"parts of {record.id} differ"
            assert record.vector is not None
            np.testing.assert_allclose(
                record.vector, vector_of(record.id, version), atol=1e-3, err_msg=record.id
            )
    wrong = oracle.wrong(seen)
    assert not wrong, f"{len(wrong)} records are wrong: {wrong[:10]}"
    return seen


async def _check_counts(client: AsyncClient, collection: str, seen: dict[str, int]) -> None:
    assert await client.count(collection, consistency="strong") == len(seen)
    for number in sorted({one.split("-")[0][1:] for one in seen}):
        expected = sum(one.startswith(f"w{number}-") for one in seen)
        counted = await client.count(collection, filter=f"writer = {number}", consistency="strong")
        assert counted == expected, f"count of writer {number}"


async def _check_searches(
    client: AsyncClient, collection: str, oracle: RecordsOracle, seen: dict[str, int]
) -> None:
    """Search for live, for deleted and for replaced vectors; compare with brute force."""
    ids = sorted(seen)
    rng = random.Random(len(ids))
    asked = [(one, seen[one]) for one in rng.sample(ids, min(SEARCH_SAMPLE, len(ids)))]
    gone = [one for one in oracle.ids if one not in seen]
    asked += [(one, rng.randint(1, 20)) for one in rng.sample(gone, min(SEARCH_SAMPLE, len(gone)))]
    asked += [(one, max(1, version - 1)) for one, version in asked[:SEARCH_SAMPLE]]
    queries = np.stack([vector_of(one, version) for one, version in asked])
    live = np.stack([vector_of(one, seen[one]) for one in ids])
    truth = queries @ live.T
    k = min(10, len(ids))
    for exact in (True, False):
        batch = await client.search_batch(
            collection, queries, k=k, exact=exact, consistency="strong"
        )
        for row, result in enumerate(batch):
            assert len(set(result.ids)) == len(result.ids), f"an id twice in {result}"
            dead = [one for one in result.ids if one not in seen]
            assert not dead, f"dead records in a search: {dead}"
            own = truth[row, [ids.index(one) for one in result.ids]]
            np.testing.assert_allclose(result.scores, own, atol=SCORE_TOLERANCE)
            if exact:
                best = np.sort(truth[row])[::-1][:k]
                np.testing.assert_allclose(result.scores, best, atol=SCORE_TOLERANCE)
