"""Recall of answers that were given while records were written: exact, by the benchmark alone.

Scores of hits are computed from the records' own vectors in float64; what the server returned as
scores is not used. A hit as near as the k-th best record counts, whichever of equals it is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from annheal.model.collection import Metric

Float32Matrix = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

SCORE_TOLERANCE = 1e-6
"""Float32 scores of one record differ by less, as a share of the sum of its terms' magnitudes."""
CHUNK_QUERIES = 64
_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Question:
    """A query vector (d,); of the records with `part` below `part_max`, None: of all."""

    vector: npt.NDArray[np.float32]
    k: int
    part_max: int | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """An answer: the record numbers of its hits, and which writes it may have seen.

    `acknowledged` writes were acknowledged before the query was sent, `sent` were sent before the
    answer came. If they differ, it is not known which records lived, and recall is NaN.
    """

    question: int
    records: npt.NDArray[np.int32]
    acknowledged: int = 0
    sent: int = 0


class RecordHistory:
    """Every version of every record: its vector, and from which write to which it lived.

    A record is a number, with one version at a time. Write 0 is the load: `vectors` (n, d) are
    those of the records from 0 on, `parts` (n,) what filters compare.
    """

    def __init__(self, vectors: Float32Matrix, parts: Int64s) -> None:
        self._vectors = [vectors]
        self._parts = [parts]
        self._records = [np.arange(len(vectors), dtype=np.int64)]
        self._born = [np.zeros(len(vectors), dtype=np.int64)]
        self._died = [np.full(len(vectors), _NEVER)]
        self.writes = 0

    def upsert(self, records: Int64s, vectors: Float32Matrix, parts: Int64s) -> None:
        """Note the next write: records that are new, or replaced."""
        self.delete(records)
        self._vectors.append(vectors)
        self._parts.append(parts)
        self._records.append(records)
        self._born.append(np.full(len(records), self.writes))
        self._died.append(np.full(len(records), _NEVER))

    def delete(self, records: Int64s) -> None:
        """Note the next write: records that are deleted, as far as they live."""
        self.writes += 1
        for numbers, died in zip(self._records, self._died, strict=True):
            died[(died == _NEVER) & np.isin(numbers, records)] = self.writes

    def live(self) -> Int64s:
        """Return the numbers of the records that live now."""
        found = [
            numbers[died == _NEVER] for numbers, died in zip(self._records, self._died, strict=True)
        ]
        return np.concatenate(found)

    def matching_share(self, part_max: int | None) -> float:
        """Return the share of the live records that a filter matches now."""
        alive = np.concatenate(self._died) == _NEVER
        below = np.concatenate(self._parts) < (_NEVER if part_max is None else part_max)
        return float((alive & below).sum() / max(1, alive.sum()))

    def recalls(
        self, metric: Metric, questions: Sequence[Question], answers: Sequence[Given]
    ) -> Values:
        """Return the recall of each answer, (n,), NaN where it is not known or nothing matches."""
        truth = _Truth(
            metric,
            np.concatenate(self._vectors).astype(np.float64),
            np.concatenate(self._parts),
            np.concatenate(self._records),
            np.concatenate(self._born),
            np.concatenate(self._died),
        )
        by_vector: dict[bytes, list[int]] = defaultdict(list)
        for number, answer in enumerate(answers):
            if answer.acknowledged == answer.sent:
                by_vector[questions[answer.question].vector.tobytes()].append(number)
        recalls = np.full(len(answers), np.nan)
        groups = list(by_vector.values())
        for start in range(0, len(groups), CHUNK_QUERIES):
            chunk = groups[start : start + CHUNK_QUERIES]
            vectors = np.stack([questions[answers[one[0]].question].vector for one in chunk])
            scores = truth.scores(vectors.astype(np.float64))
            for vector, row, numbers in zip(vectors, scores, chunk, strict=True):
                same: dict[tuple[int, int], list[int]] = defaultdict(list)
                for number in numbers:
                    answer = answers[number]
                    same[answer.question, answer.acknowledged].append(number)
                for (question, write), asked in same.items():
                    hits = [answers[number].records for number in asked]
                    recalls[asked] = truth.judge(
                        row, vector, questions[question], hits, write=write
                    )
        return recalls


class _Truth:
    """All versions in columns; which of them lived after a write is computed once."""

    def __init__(
        self,
        metric: Metric,
        vectors: Values,
        parts: Int64s,
        records: Int64s,
        born: Int64s,
        died: Int64s,
    ) -> None:
        self._metric = metric
        self._vectors = vectors
        self._squares = np.einsum("ij,ij->i", vectors, vectors)
        self._parts, self._records, self._born, self._died = parts, records, born, died
        self._states: dict[int, tuple[npt.NDArray[np.bool_], Int64s]] = {}

    def scores(self, queries: Values) -> Values:
        """Return (q, n), higher = better; of `l2` the negated squared distances."""
        if self._metric is Metric.L2:
            # The differences themselves: far from the origin, their expansion cancels.
            return np.stack([-np.square(self._vectors - query).sum(axis=1) for query in queries])
        products: Values = queries @ self._vectors.T
        if self._metric is Metric.COSINE:
            norms = np.linalg.norm(queries, axis=1)[:, np.newaxis] * np.sqrt(self._squares)
            products /= np.maximum(norms, 1e-300)
        return products

    def judge(
        self,
        scores: Values,
        vector: npt.NDArray[np.float32],
        question: Question,
        hits: Sequence[npt.NDArray[np.int32]],
        *,
        write: int,
    ) -> list[float]:
        """Return the recall of each of the `hits`, which answer one question after one write."""
        alive, row_of = self._state(write)
        allowed = alive
        if question.part_max is not None:
            allowed = alive & (self._parts < question.part_max)
        rows = np.flatnonzero(allowed)
        wanted = min(question.k, len(rows))
        if not wanted:
            return [float("nan")] * len(hits)
        own = scores[rows]
        place = int(np.argpartition(-own, wanted - 1)[wanted - 1])
        lowest = float(own[place]) - self._tolerance(rows[place], vector, float(own[place]))
        found: list[float] = []
        for records in hits:
            known = np.unique(records[(records >= 0) & (records < len(row_of))])
            versions = row_of[known]
            versions = versions[versions >= 0]
            versions = versions[allowed[versions]]
            good = int((scores[versions] >= lowest).sum())
            found.append(min(good, wanted) / wanted)
        return found

    def _tolerance(self, row: int, vector: npt.NDArray[np.float32], score: float) -> float:
        if self._metric is Metric.L2:
            return SCORE_TOLERANCE * abs(score)
        magnitude = float(np.abs(self._vectors[row] * vector).sum())
        if self._metric is Metric.COSINE:
            magnitude /= max(
                float(np.linalg.norm(vector)) * float(self._squares[row]) ** 0.5, 1e-300
            )
        return SCORE_TOLERANCE * magnitude

    def _state(self, write: int) -> tuple[npt.NDArray[np.bool_], Int64s]:
        """Return which versions live after a write, and the living version of each record or -1."""
        found = self._states.get(write)
        if found is None:
            alive = (self._born <= write) & (write < self._died)
            row_of = np.full(int(self._records.max()) + 1, -1)
            row_of[self._records[alive]] = np.flatnonzero(alive)
            found = self._states[write] = alive, row_of
        return found
