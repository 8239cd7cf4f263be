"""Which records live through a month of churn, what a cycle changes, and what is true of answers.

A record is an id with the content (vector, attributes, payload) of one row of the dataset. No two
records that live have the same content: what is written comes from rows that no record has, at
first a part of the dataset that is held back, later also what was deleted or replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import faiss
import numpy as np
import numpy.typing as npt

from benchmarks.harness.dataset import Dataset

HELD_BACK_SHARE = 0.1
"""Part of the dataset that no record has in the beginning."""
SCORE_TOLERANCE = 1e-4
"""Two ways of computing one inner product of unit vectors differ by less."""

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Churn:
    """Shares of the live rows that one cycle deletes and upserts; `new_share` of the upserts are
    of new ids, the others replace records that live."""

    deletes: float = 0.1
    upserts: float = 0.1
    new_share: float = 0.5


@dataclass(frozen=True, slots=True)
class Change:
    """What one cycle does, in columns.

    `upserted_ids[i]` gets the content of row `upserted_rows[i]`. Versions number the records as
    they are written: `dead_versions` are those that end, `new_versions` belong to the upserts.
    """

    deleted_ids: list[str]
    upserted_ids: list[str]
    upserted_rows: Int64s
    dead_versions: Int64s
    new_versions: Int64s


@dataclass(frozen=True, slots=True)
class Truth:
    """What exact comparison of all records that live says: the k-th best score of every query."""

    worst: npt.NDArray[np.float32]
    k: int


@dataclass(frozen=True, slots=True)
class Judged:
    """Recall of answers, and how many of their hits are deleted or replaced records."""

    recall: float
    ghosts: int


class Population:
    """The records that live. Starts with the first rows of `dataset`, one record each."""

    def __init__(self, dataset: Dataset, *, seed: int = 0) -> None:
        self._dataset = dataset
        self._rng = np.random.default_rng(seed)
        self.first_rows = dataset.rows - int(dataset.rows * HELD_BACK_SHARE)
        self._row_of = {dataset.ids[row]: row for row in range(self.first_rows)}
        self._version_of = {id: row for row, id in enumerate(self._row_of)}
        self._id_of = list(self._row_of)
        self._free = list(range(self.first_rows, dataset.rows))
        self._cycle = 0

    @property
    def live_rows(self) -> int:
        """How many records live."""
        return len(self._row_of)

    @property
    def versions(self) -> int:
        """How many records were ever written."""
        return len(self._id_of)

    def change(self, churn: Churn) -> Change:
        """Choose what the next cycle does at random, and count it as done."""
        self._cycle += 1
        live = list(self._row_of)
        deletes = round(len(live) * churn.deletes)
        upserts = round(len(live) * churn.upserts)
        new = round(upserts * churn.new_share)
        order = self._rng.permutation(len(live))
        deleted = [live[at] for at in order[:deletes]]
        replaced = [live[at] for at in order[deletes : deletes + upserts - new]]
        dead = [self._version_of[id] for id in (*deleted, *replaced)]
        # What ends now is free from the next cycle on: a record never gets what it had.
        self._rng.shuffle(self._free)
        if len(self._free) < upserts:
            raise ValueError(f"{upserts} rows are to be written and {len(self._free)} are free")
        rows, self._free = self._free[:upserts], self._free[upserts:]
        made = [f"{self._dataset.ids[row]}@{self._cycle}" for row in rows[:new]]
        for id in (*deleted, *replaced):
            self._free.append(self._row_of.pop(id))
            del self._version_of[id]
        upserted = [*made, *replaced]
        first = len(self._id_of)
        self._id_of += upserted
        for number, (id, row) in enumerate(zip(upserted, rows, strict=True)):
            self._row_of[id] = row
            self._version_of[id] = first + number
        return Change(
            deleted_ids=deleted,
            upserted_ids=upserted,
            upserted_rows=np.array(rows, dtype=np.int64),
            dead_versions=np.array(dead, dtype=np.int64),
            new_versions=np.arange(first, len(self._id_of), dtype=np.int64),
        )

    def records(self) -> tuple[list[str], Int64s]:
        """Return the ids of the records that live, and the rows of their content."""
        return list(self._row_of), np.fromiter(self._row_of.values(), np.int64, self.live_rows)

    def id_of(self, version: int) -> str:
        """Return the id that a version was written under; "" for a negative number."""
        return self._id_of[version] if version >= 0 else ""

    def lives(self, version: int) -> bool:
        """Return whether the version is the one that counts."""
        return version >= 0 and self._version_of.get(self._id_of[version]) == version

    def truth(self, queries: npt.NDArray[np.float32], k: int) -> Truth:
        """Compare every query with all records that live."""
        exact = faiss.IndexFlatIP(self._dataset.dimension)
        exact.add(self._dataset.vectors[self.records()[1]])
        return Truth(exact.search(queries, k)[0][:, -1].copy(), k)

    def judge(
        self,
        queries: npt.NDArray[np.float32],
        found: Sequence[Sequence[str]],
        scores: Sequence[npt.NDArray[np.float32]],
        truth: Truth,
    ) -> Judged:
        """Judge answers by ids and scores.

        A hit that is as near as the k-th best record counts, whichever of equals it is. A ghost is
        a hit of a deleted id, or one whose score is that of content which the id no longer has.
        """
        hits = ghosts = 0
        for query, ids, given, worst in zip(queries, found, scores, truth.worst, strict=True):
            rows = np.array([self._row_of.get(id, -1) for id in ids], dtype=np.int64)
            true = self._dataset.vectors[rows] @ query
            real = (rows >= 0) & (np.abs(true - given) < SCORE_TOLERANCE)
            ghosts += int((~real).sum())
            near = rows[real & (true >= worst - SCORE_TOLERANCE)]
            hits += min(len(np.unique(near)), truth.k)
        return Judged(hits / (len(queries) * truth.k), ghosts)

    def subset(self, ids: list[str], rows: Int64s) -> Dataset:
        """Return records as a dataset: `ids[i]` with the content of row `rows[i]`."""
        whole = self._dataset
        return Dataset(
            name=whole.name,
            ids=ids,
            vectors=np.ascontiguousarray(whole.vectors[rows]),
            queries=whole.queries,
            attributes=whole.attributes.take(rows),
            schema=whole.schema,
            payloads=whole.payloads and [whole.payloads[row] for row in rows.tolist()],
        )
