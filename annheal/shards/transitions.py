"""Legal changes of a manifest, as pure functions from one version to the next.

Every function takes the manifest as read and returns the next version; the caller stores it by
compare-and-swap on the revision it read. A change that would break INV-4 or INV-5 raises.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from annheal.errors import FailedPrecondition, Fenced, InvariantViolation
from annheal.model.topology.manifest import (
    DeleteVectorEntry,
    Manifest,
    SegmentEntry,
    VectorPartEntry,
)


def take_over(manifest: Manifest, *, epoch: int) -> Manifest:
    """Return the manifest with a new owner's `epoch`."""
    if epoch <= manifest.epoch:
        raise Fenced(f"epoch {epoch} is not newer than the manifest's {manifest.epoch}")
    return replace(manifest, epoch=epoch, version=manifest.version + 1)


def checkpoint(
    manifest: Manifest,
    *,
    epoch: int,
    flushed: Sequence[SegmentEntry],
    delete_vectors: Iterable[DeleteVectorEntry],
    checkpoint_slot: int,
    last_sequence: int,
) -> Manifest:
    """Return the manifest after growing rows up to `checkpoint_slot` became the segments `flushed`.

    `delete_vectors` replaces the present ones: one for every segment that has dead rows.
    """
    _require_owner(manifest, epoch)
    if checkpoint_slot < manifest.checkpoint_slot or last_sequence < manifest.last_sequence:
        raise InvariantViolation(
            f"checkpoint of {manifest.collection_id}/{manifest.shard} would go back from slot "
            f"{manifest.checkpoint_slot} to {checkpoint_slot}"
        )
    return _checked(
        replace(
            manifest,
            version=manifest.version + 1,
            checkpoint_slot=checkpoint_slot,
            last_sequence=last_sequence,
            segments=(*manifest.segments, *flushed),
            delete_vectors=tuple(delete_vectors),
        )
    )


def swap_segments(
    manifest: Manifest,
    *,
    epoch: int,
    sources: Sequence[str],
    output: SegmentEntry | None,
    delete_vector: DeleteVectorEntry | None,
) -> Manifest:
    """Return the manifest after a compaction replaced `sources` by `output` (None: no row lived).

    Raises `FailedPrecondition` when a source is not there any more: the task is stale.
    """
    _require_owner(manifest, epoch)
    gone = set(sources)
    if not gone:
        raise InvariantViolation("a compaction without sources would only add rows")
    missing = gone - {entry.segment_id for entry in manifest.segments}
    if missing:
        raise FailedPrecondition(
            f"segments {sorted(missing)} are no longer part of "
            f"{manifest.collection_id}/{manifest.shard}: the compaction is stale",
            reason="STALE_COMPACTION",
        )
    segments = [entry for entry in manifest.segments if entry.segment_id not in gone]
    vectors = [entry for entry in manifest.delete_vectors if entry.segment_id not in gone]
    if output is not None:
        segments.append(output)
    if delete_vector is not None:
        vectors.append(delete_vector)
    return _checked(
        replace(
            manifest,
            version=manifest.version + 1,
            segments=tuple(segments),
            delete_vectors=tuple(vectors),
        )
    )


def add_part(manifest: Manifest, *, epoch: int, segment_id: str, part: VectorPartEntry) -> Manifest:
    """Return the manifest in which a segment has `part`, instead of one of the same model.

    Raises `FailedPrecondition` when the segment is not there any more: the task is stale.
    """
    _require_owner(manifest, epoch)
    entry = next((one for one in manifest.segments if one.segment_id == segment_id), None)
    if entry is None:
        raise FailedPrecondition(
            f"segment {segment_id} is no longer part of"
            f" {manifest.collection_id}/{manifest.shard}: the backfill is stale",
            reason="STALE_COMPACTION",
        )
    if entry.model == part.model:
        raise InvariantViolation(f"{part.model!r} is the model of segment {segment_id} itself")
    others = [one for one in entry.parts if one.model != part.model]
    changed = replace(entry, parts=(*others, part))
    return _checked(
        replace(
            manifest,
            version=manifest.version + 1,
            segments=tuple(changed if one is entry else one for one in manifest.segments),
        )
    )


def _require_owner(manifest: Manifest, epoch: int) -> None:
    if manifest.epoch != epoch:
        raise Fenced(
            f"the manifest of {manifest.collection_id}/{manifest.shard} belongs to epoch "
            f"{manifest.epoch}, not {epoch}"
        )


def _checked(manifest: Manifest) -> Manifest:
    ids = [entry.segment_id for entry in manifest.segments]
    if len(set(ids)) != len(ids):
        raise InvariantViolation(f"a segment appears twice in {manifest}")
    if not {entry.segment_id for entry in manifest.delete_vectors} <= set(ids):
        raise InvariantViolation(f"a delete vector of no segment in {manifest}")
    return manifest
