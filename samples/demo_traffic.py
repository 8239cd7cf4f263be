"""A client that writes and asks all the time, and knows what each answer must be."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from annheal import Client
from annheal.errors import AnnhealError
from samples.demo_state import COLLECTION, K, Ledger, Packages

SEED = 20_240_613
ROUNDS_MIN = 5
ROUNDS_TIMEOUT_S = 120.0
TIMEOUT_S = 60.0
"""Of a call: the server embeds thousands of other texts meanwhile."""
JOIN_TIMEOUT_S = 120.0
SUBSET_ROWS = 100
SPARE_K = 5
"""Hits asked for beyond the records that match: nothing may fill these places."""


class Traffic:
    """Upserts by text, deletes, and queries by text; it alone writes, so it knows all records.

    Packages of one month are a small subset: a query filtered to it, with a k beyond its records,
    must return each of them once and nothing else.
    """

    def __init__(self, address: str, ledger: Ledger, packages: Packages, late: Packages) -> None:
        self.rounds = self.upserts = self.deletes = self.queries = 0
        self.faults: Counter[str] = Counter()
        self.error = ""
        self._ended = False
        self._address = address
        self._ledger = ledger
        self._packages = _both(packages, late)
        self._generator = np.random.default_rng(SEED)
        self._stopped = threading.Event()
        self._enough = threading.Event()
        self._until = ROUNDS_MIN
        months = self._packages.attributes.column("month").to_pylist()
        counts = Counter(month for month in months if month is not None)
        self._month = min(counts, key=lambda month: abs(counts[month] - SUBSET_ROWS))
        self._subset = [row for row, month in enumerate(months) if month == self._month]

    @property
    def right(self) -> bool:
        """Whether every call succeeded and every answer was true, and there were some."""
        return not self.error and not self.faults and self.rounds >= ROUNDS_MIN

    @property
    def seen(self) -> str:
        """What was wrong, or what was never seen."""
        if self.error:
            return self.error
        if self.faults:
            return ", ".join(f"{count} {what}" for what, count in self.faults.items())
        return "no deleted, unknown, repeated or missing record"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run until the end of the block."""
        thread = threading.Thread(target=self._run, name="traffic", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            thread.join(JOIN_TIMEOUT_S)

    def wait_for_rounds(self) -> None:
        """Wait until a few more rounds are over, or the client has failed."""
        self._until = self.rounds + ROUNDS_MIN
        self._enough.clear()
        if self._ended:  # set before the event is: either is seen
            return
        self._enough.wait(ROUNDS_TIMEOUT_S)

    def _run(self) -> None:
        """Write, delete and ask, until it is stopped or a call fails."""
        try:
            with Client(self._address, timeout_s=TIMEOUT_S) as client:
                while not self._stopped.is_set():
                    self._write(client)
                    self._delete(client)
                    self._ask(client)
                    self._ask_subset(client)
                    self.rounds += 1
                    if self.rounds >= self._until:
                        self._enough.set()
        except AnnhealError as error:
            self.error = f"{type(error).__name__}: {error.message}"
        finally:
            self._ended = True
            self._enough.set()

    def _write(self, client: Client) -> None:
        """Write two packages of the subset and two others: new ones, deleted ones, changed ones."""
        rows = {*self._draw(self._subset, 2), *self._draw(range(len(self._packages)), 2)}
        batch = self._packages.take(np.array(sorted(rows)), revision=self.rounds + 2)
        client.upsert(COLLECTION, batch.ids, attributes=batch.attributes, payloads=batch.payloads)
        self._ledger.upserted(batch)
        self.upserts += len(batch)

    def _delete(self, client: Client) -> None:
        """Delete a package of the subset and another one, if they are there."""
        rows = {*self._draw(self._subset, 1), *self._draw(range(len(self._packages)), 1)}
        ids = [self._packages.ids[row] for row in rows]
        ids = [name for name in ids if name in self._ledger.records]
        if ids:
            client.delete(COLLECTION, ids)
            self._ledger.removed(ids)
            self.deletes += len(ids)

    def _ask(self, client: Client) -> None:
        found = client.search(COLLECTION, text=self._text(), k=K)
        self.queries += 1
        self.faults.update(faults_of(found.ids, self._ledger))
        if len(found) != K:
            self.faults["short answer"] += 1

    def _ask_subset(self, client: Client) -> None:
        names = {self._packages.ids[row] for row in self._subset} & self._ledger.records.keys()
        found = client.search(
            COLLECTION,
            text=self._text(),
            k=len(names) + SPARE_K,
            filter=f"month = '{self._month}'",
        )
        self.queries += 1
        self.faults.update(faults_of(found.ids, self._ledger, exactly=names))

    def _text(self) -> str:
        (row,) = self._draw(range(len(self._packages)), 1)
        return str(self._packages.payloads[row]["summary"])

    def _draw(self, rows: range | list[int], count: int) -> npt.NDArray[np.int64]:
        return self._generator.choice(np.asarray(rows), count, replace=False)


def faults_of(
    ids: Sequence[str], ledger: Ledger, *, exactly: Set[str] | None = None
) -> Counter[str]:
    """Return what is wrong with the hits of an answer: kinds of faults with their numbers.

    `exactly`: the records that it must have, and no other.
    """
    seen, live = set(ids), ledger.records.keys()
    wrong = {
        "repeated": len(ids) - len(seen),
        "deleted": len(seen & ledger.deleted.keys()),
        "unknown": len(seen - live - ledger.deleted.keys()),
    }
    if exactly is not None:
        wrong |= {"missing": len(exactly - seen), "beside the filter": len((seen & live) - exactly)}
    return Counter({kind: count for kind, count in wrong.items() if count})


def _both(packages: Packages, late: Packages) -> Packages:
    return Packages(
        packages.ids + late.ids,
        np.concatenate([packages.vectors, late.vectors]),
        pa.concat_tables([packages.attributes, late.attributes]),
        packages.payloads + late.payloads,
    )
