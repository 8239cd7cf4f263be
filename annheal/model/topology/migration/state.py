"""A migration as it is stored under `migrations/<collection id>` in the metadata store.

::

    prepare -> backfill -> validate -> ready -> committed -> purging -> purged
                                                |      ^
                                                v      |
                                             rolled_back

    any of them before purging -> aborting -> aborted

`validate` is entered again for each new measurement. Which model serves follows from the phase
alone (`Migration.serving`), and the two are stored in one transaction. `purged` and `aborted` are
the ends; another migration can be started then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from annheal.model.topology.migration.gate import GateReport, GateThresholds, Verdict, judge

HISTORY_MAX: Final = 100
"""Transitions that are kept: the first one, and the newest."""
SEGMENTS_COUNTED_MAX: Final = 500
"""Segments of which skipped records are counted; a migration with more of them is paused."""
SKIP_REASONS_MAX: Final = 8
"""Reasons counted for one segment; further ones are counted as `other`."""
SKIPPED_NAMED_MAX: Final = 50
"""Skipped records that are named by their ids."""


class MigrationPhase(StrEnum):
    """Where a migration is; see the picture above."""

    PREPARE = "prepare"
    BACKFILL = "backfill"
    VALIDATE = "validate"
    READY = "ready"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    PURGING = "purging"
    PURGED = "purged"
    ABORTING = "aborting"
    ABORTED = "aborted"


ENDED: Final = frozenset({MigrationPhase.PURGED, MigrationPhase.ABORTED})
"""Phases that nothing follows."""
NEW_SERVES: Final = frozenset(
    {MigrationPhase.COMMITTED, MigrationPhase.PURGING, MigrationPhase.PURGED}
)
"""Phases in which the new model answers searches."""


class UnfitRecords(StrEnum):
    """What happens to a record whose source is missing or refused by the embedder."""

    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True, slots=True)
class MigrationSettings:
    """What may be changed while a migration runs.

    Attributes:
        rows_per_second: records that backfill embeds a second, all tasks together; 0: no limit.
        tasks_max: backfill tasks at once.
        canary_share: share of the queries in [0, 1] that the new model alone answers.
        shadow_share: share of the queries in [0, 1] that both models search, for the report.
        unfit: `skip` lists a record that cannot be embedded and goes on, `stop` pauses at it.
    """

    rows_per_second: float = 0.0
    tasks_max: int = 2
    canary_share: float = 0.0
    shadow_share: float = 0.0
    unfit: UnfitRecords = UnfitRecords.SKIP


@dataclass(frozen=True, slots=True)
class Transition:
    """One step of a migration: who asked for it, when (seconds since the epoch), and why.

    `phase` is the one that it led to. `forced`: a commit that the gate had refused.
    """

    event: str
    phase: MigrationPhase
    at_s: float
    who: str
    why: str = ""
    forced: bool = False


@dataclass(frozen=True, slots=True)
class SkipCount:
    """Records that got no vector for one reason, such as `empty` or `refused`."""

    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class SegmentProgress:
    """What backfill did to one segment for one model: rows that got a vector, and those skipped."""

    shard: int
    segment_id: str
    model: str
    rows_done: int
    skipped: tuple[SkipCount, ...] = ()

    @property
    def rows_skipped(self) -> int:
        """Rows that got no vector, for any reason."""
        return sum(one.rows for one in self.skipped)


@dataclass(frozen=True, slots=True)
class SkippedRecord:
    """One record that could not be embedded."""

    id: str
    shard: int
    model: str
    reason: str


@dataclass(frozen=True, slots=True)
class CoverageTotals:
    """Live records and how many of them lack a vector, as the leader last saw it.

    `rows_lacking` are those without a vector of the new model, `rows_lacking_old` those without
    one of the old. `segments_left` segments have rows that wait for a vector. `shards_unreported`
    shards did not answer: their records are not counted. `rows_per_s` is the pace at which records
    got vectors of late; 0: not known.
    """

    at_s: float
    rows: int
    rows_lacking: int
    rows_lacking_old: int = 0
    segments: int = 0
    segments_left: int = 0
    shards_unreported: int = 0
    rows_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Migration:
    """The change of a collection's serving model from `from_model` to `to_model`.

    `validations` counts the measurements that were asked for; the latest is outstanding until
    `report` has its number. `error` says what stopped it, or what the last failed task met.
    `segments` are those of which records were skipped, `skipped` names some of these records.
    """

    collection_id: str
    from_model: str
    to_model: str
    phase: MigrationPhase = MigrationPhase.PREPARE
    paused: bool = False
    settings: MigrationSettings = field(default_factory=MigrationSettings)
    thresholds: GateThresholds = field(default_factory=GateThresholds)
    history: tuple[Transition, ...] = ()
    validations: int = 0
    report: GateReport | None = None
    coverage: CoverageTotals | None = None
    segments: tuple[SegmentProgress, ...] = ()
    skipped: tuple[SkippedRecord, ...] = ()
    error: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing follows."""
        return self.phase in ENDED

    @property
    def serving(self) -> str:
        """The model that answers searches in this phase."""
        return self.to_model if self.phase in NEW_SERVES else self.from_model

    def needs(self, model: str) -> bool:
        """Return whether it has not ended and is from or to `model`."""
        return not self.ended and model in (self.from_model, self.to_model)

    @property
    def started_at_s(self) -> float:
        """When it was started, in seconds since the epoch."""
        return self.history[0].at_s if self.history else 0.0

    @property
    def measuring(self) -> bool:
        """Whether a measurement was asked for and has not been reported."""
        return self.report is None or self.report.number < self.validations

    @property
    def lacking_share(self) -> float | None:
        """Share of the live records without a vector of the new model; None: not known.

        It is not known while a shard has not reported.
        """
        seen = self.coverage
        if seen is None or seen.shards_unreported:
            return None
        return seen.rows_lacking / seen.rows if seen.rows else 0.0

    @property
    def verdict(self) -> Verdict:
        """The verdict of the gate on the last report, with the thresholds as they are now."""
        return judge(self.thresholds, self.report, lacking_share=self.lacking_share)
