"""Migrations: their state, and the orders that change them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from annheal.errors import InvalidArgument
from annheal.model.suggestions import suggestion
from annheal.model.topology.migration.gate import GateFinding, GateReport, GateThresholds
from annheal.model.topology.migration.state import (
    CoverageTotals,
    Migration,
    MigrationPhase,
    MigrationSettings,
    SegmentProgress,
    SkipCount,
    SkippedRecord,
    Transition,
    UnfitRecords,
)
from annheal.model.topology.migration.view import MigrationEstimate, MigrationStatus
from annheal.v1 import migration_pb2 as pb
from annheal.wire.enums import EnumCodec
from annheal.wire.timestamps import decode_seconds, encode_seconds

PHASE: Final = EnumCodec(
    {
        MigrationPhase.PREPARE: pb.MIGRATION_PHASE_PREPARE,
        MigrationPhase.BACKFILL: pb.MIGRATION_PHASE_BACKFILL,
        MigrationPhase.VALIDATE: pb.MIGRATION_PHASE_VALIDATE,
        MigrationPhase.READY: pb.MIGRATION_PHASE_READY,
        MigrationPhase.COMMITTED: pb.MIGRATION_PHASE_COMMITTED,
        MigrationPhase.ROLLED_BACK: pb.MIGRATION_PHASE_ROLLED_BACK,
        MigrationPhase.PURGING: pb.MIGRATION_PHASE_PURGING,
        MigrationPhase.PURGED: pb.MIGRATION_PHASE_PURGED,
        MigrationPhase.ABORTING: pb.MIGRATION_PHASE_ABORTING,
        MigrationPhase.ABORTED: pb.MIGRATION_PHASE_ABORTED,
    }
)
UNFIT: Final = EnumCodec(
    {
        UnfitRecords.SKIP: pb.UNFIT_RECORDS_SKIP,
        UnfitRecords.STOP: pb.UNFIT_RECORDS_STOP,
    }
)
_SETTINGS: Final = tuple(one.name for one in fields(MigrationSettings) if one.name != "unfit")
_THRESHOLDS: Final = tuple(one.name for one in fields(GateThresholds))
_FIGURES: Final = (
    "recall", "overlap", "rank_correlation", "latency_ratio", "memory_ratio", "bridge_error",
    "ndcg_gain", "recall_gain",
)  # fmt: skip

HolderT = TypeVar("HolderT", MigrationSettings, GateThresholds)


# ------------------------------------------------------------------------- settings, thresholds


def encode_changes(
    changes: Mapping[str, Any],
) -> tuple[pb.MigrationSettings, pb.GateThresholds]:
    """Return settings and thresholds that hold nothing but `changes`, by name.

    Raises `InvalidArgument` for an unknown name or a value of the wrong type.
    """
    settings, thresholds = pb.MigrationSettings(), pb.GateThresholds()
    for name, value in changes.items():
        if name == "unfit":
            settings.unfit = UNFIT.encode_checked(value, field=name)
            continue
        if name not in (*_SETTINGS, *_THRESHOLDS):
            known = (*_SETTINGS, "unfit", *_THRESHOLDS)
            raise InvalidArgument.of(name, f"is no setting; {suggestion(name, known)}")
        holder: Any = settings if name in _SETTINGS else thresholds
        try:
            setattr(holder, name, value)
        except (TypeError, ValueError) as error:
            raise InvalidArgument.of(name, f"{value!r}: {error}") from error
    return settings, thresholds


def apply_settings(
    message: pb.MigrationSettings, *, present: MigrationSettings
) -> MigrationSettings:
    """Return `present` with what the message sets."""
    changed = _overlay(present, message, _SETTINGS)
    if message.unfit:
        changed = replace(changed, unfit=UNFIT.decode(message.unfit, field="settings.unfit"))
    return changed


def apply_thresholds(message: pb.GateThresholds, *, present: GateThresholds) -> GateThresholds:
    """Return `present` with what the message sets."""
    return _overlay(present, message, _THRESHOLDS)


def _overlay(base: HolderT, message: Any, names: tuple[str, ...]) -> HolderT:
    return replace(
        base, **{name: getattr(message, name) for name in names if message.HasField(name)}
    )


# --------------------------------------------------------------------------------------- state


def encode_migration(status: MigrationStatus) -> pb.Migration:
    """Return a migration as a message."""
    of = status.migration
    settings = {name: getattr(of.settings, name) for name in _SETTINGS}
    message = pb.Migration(
        collection=status.collection,
        collection_id=of.collection_id,
        from_model=of.from_model,
        to_model=of.to_model,
        phase=PHASE.encode(of.phase),
        paused=of.paused,
        settings=pb.MigrationSettings(unfit=UNFIT.encode(of.settings.unfit), **settings),
        thresholds=pb.GateThresholds(**{n: getattr(of.thresholds, n) for n in _THRESHOLDS}),
        history=[_encode_transition(one) for one in of.history],
        validations=of.validations,
        segments=[_encode_segment(one) for one in of.segments],
        skipped=[
            pb.SkippedRecord(id=one.id, shard=one.shard, model=one.model, reason=one.reason)
            for one in of.skipped
        ],
        error=of.error,
        possible=status.possible,
        findings=[_encode_finding(one) for one in status.findings],
    )
    if of.report is not None:
        message.report.CopyFrom(_encode_report(of.report))
    if of.coverage is not None:
        message.coverage.CopyFrom(_encode_coverage(of.coverage))
    return message


def decode_migration(message: pb.Migration) -> MigrationStatus:
    """Return a migration; raises `InvalidArgument` for a phase that this version does not know."""
    migration = Migration(
        collection_id=message.collection_id,
        from_model=message.from_model,
        to_model=message.to_model,
        phase=PHASE.decode(message.phase, field="migration.phase"),
        paused=message.paused,
        settings=apply_settings(message.settings, present=MigrationSettings()),
        thresholds=apply_thresholds(message.thresholds, present=GateThresholds()),
        history=tuple(_decode_transition(one) for one in message.history),
        validations=message.validations,
        report=_decode_report(message.report) if message.HasField("report") else None,
        coverage=_decode_coverage(message.coverage) if message.HasField("coverage") else None,
        segments=tuple(_decode_segment(one) for one in message.segments),
        skipped=tuple(
            SkippedRecord(one.id, one.shard, one.model, one.reason) for one in message.skipped
        ),
        error=message.error,
    )
    findings = tuple(_decode_finding(one) for one in message.findings)
    return MigrationStatus(message.collection, migration, tuple(message.possible), findings)


def _encode_transition(step: Transition) -> pb.MigrationTransition:
    return pb.MigrationTransition(
        event=step.event,
        phase=PHASE.encode(step.phase),
        at=encode_seconds(step.at_s),
        who=step.who,
        why=step.why,
        forced=step.forced,
    )


def _decode_transition(message: pb.MigrationTransition) -> Transition:
    return Transition(
        message.event,
        PHASE.decode(message.phase, field="migration.history.phase"),
        decode_seconds(message.at),
        message.who,
        message.why,
        message.forced,
    )


def _encode_report(report: GateReport) -> pb.GateReport:
    return pb.GateReport(
        number=report.number,
        at=encode_seconds(report.at_s),
        queries=report.queries,
        k=report.k,
        **{name: getattr(report, name) for name in _FIGURES},
    )


def _decode_report(message: pb.GateReport) -> GateReport:
    figures = {name: getattr(message, name) for name in _FIGURES if message.HasField(name)}
    return GateReport(
        message.number, decode_seconds(message.at), message.queries, message.k, **figures
    )


def _encode_finding(finding: GateFinding) -> pb.GateFinding:
    return pb.GateFinding(
        name=finding.name,
        value=finding.value,
        threshold=finding.threshold,
        at_least=finding.at_least,
        passed=finding.passed,
    )


def _decode_finding(message: pb.GateFinding) -> GateFinding:
    value = message.value if message.HasField("value") else None
    return GateFinding(message.name, value, message.threshold, message.at_least, message.passed)


def _encode_coverage(seen: CoverageTotals) -> pb.MigrationCoverage:
    return pb.MigrationCoverage(
        at=encode_seconds(seen.at_s),
        rows=seen.rows,
        rows_lacking=seen.rows_lacking,
        rows_lacking_old=seen.rows_lacking_old,
        segments=seen.segments,
        segments_left=seen.segments_left,
        shards_unreported=seen.shards_unreported,
        rows_per_s=seen.rows_per_s,
    )


def _decode_coverage(message: pb.MigrationCoverage) -> CoverageTotals:
    return CoverageTotals(
        at_s=decode_seconds(message.at),
        rows=message.rows,
        rows_lacking=message.rows_lacking,
        rows_lacking_old=message.rows_lacking_old,
        segments=message.segments,
        segments_left=message.segments_left,
        shards_unreported=message.shards_unreported,
        rows_per_s=message.rows_per_s,
    )


def _encode_segment(progress: SegmentProgress) -> pb.SegmentProgress:
    return pb.SegmentProgress(
        shard=progress.shard,
        segment_id=progress.segment_id,
        model=progress.model,
        rows_done=progress.rows_done,
        skipped=[pb.SkipCount(reason=one.reason, rows=one.rows) for one in progress.skipped],
    )


def _decode_segment(message: pb.SegmentProgress) -> SegmentProgress:
    skipped = tuple(SkipCount(one.reason, one.rows) for one in message.skipped)
    return SegmentProgress(
        message.shard, message.segment_id, message.model, message.rows_done, skipped
    )


# ------------------------------------------------------------------------------------ estimates


def encode_estimate(estimate: MigrationEstimate) -> pb.PlanMigrationResponse:
    """Return an estimate as a message."""
    return pb.PlanMigrationResponse(
        collection=estimate.collection,
        from_model=estimate.from_model,
        to_model=estimate.to_model,
        rows=estimate.rows,
        rows_lacking=estimate.rows_lacking,
        sampled=estimate.sampled,
        sampled_without_text=estimate.sampled_without_text,
        reasons=[pb.SkipCount(reason=one.reason, rows=one.rows) for one in estimate.reasons],
        embedder=estimate.embedder,
        characters=estimate.characters,
        tokens=estimate.tokens,
        rows_per_s=estimate.rows_per_s,
        duration_s=estimate.duration_s,
        disk_bytes=estimate.disk_bytes,
        memory_bytes=estimate.memory_bytes,
        warnings=estimate.warnings,
    )


def decode_estimate(message: pb.PlanMigrationResponse) -> MigrationEstimate:
    """Return an estimate."""
    return MigrationEstimate(
        collection=message.collection,
        from_model=message.from_model,
        to_model=message.to_model,
        rows=message.rows,
        rows_lacking=message.rows_lacking,
        sampled=message.sampled,
        sampled_without_text=message.sampled_without_text,
        reasons=tuple(SkipCount(one.reason, one.rows) for one in message.reasons),
        embedder=message.embedder,
        characters=message.characters,
        tokens=message.tokens,
        rows_per_s=message.rows_per_s,
        duration_s=message.duration_s,
        disk_bytes=message.disk_bytes,
        memory_bytes=message.memory_bytes,
        warnings=tuple(message.warnings),
    )
