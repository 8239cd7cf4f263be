"""What the leader saw of the records, put into the state of a migration. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection as AnyOf
from collections.abc import Iterable
from dataclasses import dataclass, replace

from annheal.model.topology.migration.state import (
    SEGMENTS_COUNTED_MAX,
    SKIP_REASONS_MAX,
    SKIPPED_NAMED_MAX,
    CoverageTotals,
    Migration,
    SegmentProgress,
    SkipCount,
    SkippedRecord,
)

OTHER_REASON = "other"
_PACE_WEIGHT = 0.3  # of the newest stretch in the mean pace
_PACE_MIN = 0.01  # rows per second; a mean below is no pace


@dataclass(frozen=True, slots=True)
class Backfilled:
    """What one finished task did to a segment, and some of the records that it skipped."""

    progress: SegmentProgress
    skipped: tuple[SkippedRecord, ...] = ()


def observed(
    migration: Migration,
    *,
    coverage: CoverageTotals,
    finished: Iterable[Backfilled],
    present: AnyOf[tuple[int, str]] | None = None,
) -> Migration:
    """Return the migration with what was seen last; the same for the same arguments again.

    A segment that was filled twice counts once, as the later task left it. Segments that are not
    `present` (shard and id) are forgotten, their records are in other segments now; None: not known
    which are. Only segments with skipped records are kept. Records beyond `SKIPPED_NAMED_MAX` are
    counted and not named.
    """
    known = {(one.shard, one.segment_id, one.model): one for one in migration.segments}
    named = {(one.model, one.id): one for one in migration.skipped}
    for one in finished:
        part = one.progress
        known[part.shard, part.segment_id, part.model] = _within_reasons(part)
        named.update({(skipped.model, skipped.id): skipped for skipped in one.skipped})
    kept = sorted(
        (one for one in known.values() if one.skipped),
        key=lambda one: (one.shard, one.segment_id, one.model),
    )
    if present is not None:
        kept = [one for one in kept if (one.shard, one.segment_id) in present]
    return replace(
        migration,
        coverage=with_pace(coverage, before=migration.coverage),
        segments=tuple(kept[:SEGMENTS_COUNTED_MAX]),
        skipped=tuple(named.values())[:SKIPPED_NAMED_MAX],
    )


def with_pace(coverage: CoverageTotals, *, before: CoverageTotals | None) -> CoverageTotals:
    """Return `coverage` with rows per second: what fewer records lack, mixed with the former pace.

    The pace stays as it was where the two were seen at the same time, or not of the same shards.
    """
    if before is None:
        return coverage
    seconds = coverage.at_s - before.at_s
    if seconds <= 0 or coverage.shards_unreported or before.shards_unreported:
        return replace(coverage, rows_per_s=before.rows_per_s)
    done = (before.rows_lacking + before.rows_lacking_old) - (
        coverage.rows_lacking + coverage.rows_lacking_old
    )
    newest = max(0.0, done / seconds)
    former = before.rows_per_s
    pace = newest if not former else _PACE_WEIGHT * newest + (1 - _PACE_WEIGHT) * former
    return replace(coverage, rows_per_s=pace if pace >= _PACE_MIN else 0.0)


def _within_reasons(progress: SegmentProgress) -> SegmentProgress:
    """Return the progress with at most `SKIP_REASONS_MAX` reasons, the rarest ones as `other`."""
    if len(progress.skipped) <= SKIP_REASONS_MAX:
        return progress
    counts: Counter[str] = Counter()
    for one in progress.skipped:
        counts[one.reason] += one.rows
    common = [one for one in counts.most_common() if one[0] != OTHER_REASON]
    first = common[: SKIP_REASONS_MAX - 1]
    rest = counts.total() - sum(rows for _, rows in first)
    kept = [SkipCount(reason, rows) for reason, rows in first]
    return replace(progress, skipped=(*kept, SkipCount(OTHER_REASON, rest)))
