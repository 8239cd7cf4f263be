"""What operators see of a migration: its state and what follows from it, and estimates."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from annheal.model.topology.migration.gate import GateFinding
from annheal.model.topology.migration.state import Migration, SkipCount
from annheal.model.topology.migration.transitions import possible


@dataclass(frozen=True, slots=True)
class MigrationStatus:
    """A migration, the steps that are possible, and the verdict of the gate as it is now.

    `collection` is the collection's name.
    """

    collection: str
    migration: Migration
    possible: tuple[str, ...] = ()
    findings: tuple[GateFinding, ...] = ()

    @classmethod
    def of(cls, migration: Migration, *, collection: str) -> MigrationStatus:
        """Return the status of `migration`."""
        return cls(
            collection,
            migration,
            tuple(event.value for event in possible(migration)),
            migration.verdict.findings,
        )

    @property
    def rows_done(self) -> int:
        """Live records with a vector of the new model, as the leader last saw them."""
        seen = self.migration.coverage
        return 0 if seen is None else seen.rows - seen.rows_lacking

    @property
    def eta_s(self) -> float | None:
        """Seconds until the records that can get a vector of the new model have one.

        None while the pace is not known.
        """
        seen = self.migration.coverage
        if seen is None or self.migration.ended:
            return None
        left = max(0, seen.rows_lacking - self.rows_skipped)
        if not left:
            return 0.0
        return left / seen.rows_per_s if seen.rows_per_s else None

    @property
    def rows_skipped(self) -> int:
        """Records that cannot get a vector of the new model."""
        return sum(one.rows for one in self.skipped_by_reason)

    @property
    def skipped_by_reason(self) -> tuple[SkipCount, ...]:
        """Records without a vector of the new model by reason, the most frequent first."""
        counts: Counter[str] = Counter()
        for part in self.migration.segments:
            if part.model == self.migration.to_model:
                for one in part.skipped:
                    counts[one.reason] += one.rows
        return tuple(SkipCount(reason, rows) for reason, rows in counts.most_common())


@dataclass(frozen=True, slots=True)
class MigrationEstimate:
    """What a migration would take, estimated from a sample of records.

    Attributes:
        collection: name of the collection.
        from_model: the model that serves.
        to_model: the model that shall serve.
        rows: live records.
        rows_lacking: those without a vector of the new model.
        sampled: records in the sample.
        sampled_without_text: of them, those without a text to embed.
        reasons: why, with their number in the sample.
        embedder: the embedder; empty: vectors come from clients.
        characters: characters to embed.
        tokens: the same in tokens, `CHARACTERS_PER_TOKEN` characters for each.
        rows_per_s: records per second of the embedder in a short trial; 0: not tried.
        duration_s: seconds for all records at that rate; 0: not known.
        disk_bytes: bytes of the new vectors and their graphs on disk.
        memory_bytes: bytes of the same in the memory of the shard nodes.
        warnings: what an operator should know before a start.
    """

    collection: str
    from_model: str
    to_model: str
    rows: int
    rows_lacking: int
    sampled: int
    sampled_without_text: int = 0
    reasons: tuple[SkipCount, ...] = ()
    embedder: str = ""
    characters: int = 0
    tokens: int = 0
    rows_per_s: float = 0.0
    duration_s: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0
    warnings: tuple[str, ...] = field(default_factory=tuple)
