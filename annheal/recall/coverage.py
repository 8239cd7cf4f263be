"""Counts how often audits have confirmed the estimates of recall: their coverage."""

from __future__ import annotations

from collections.abc import Iterable

from annheal.model.measures.recall import BandCoverage, SelectivityBand
from annheal.model.measures.recall_audit import AuditVerdict, BandAudit
from annheal.model.topology.shard import ShardId


class CoverageBook:
    """The audits so far of the shards of a node; used on the event loop."""

    def __init__(self) -> None:
        self._known: dict[tuple[ShardId, SelectivityBand], BandCoverage] = {}

    def of(self, shard: ShardId) -> tuple[BandCoverage, ...]:
        """Return the audits of a shard, by band."""
        return tuple(one for (of, _), one in sorted(self._known.items()) if of == shard)

    def of_collection(self, collection_id: str) -> tuple[BandCoverage, ...]:
        """Return the audits of all shards of a collection."""
        return tuple(
            one
            for (shard, _), one in sorted(self._known.items())
            if shard.collection_id == collection_id
        )

    def restore(self, shard: ShardId, stored: Iterable[BandCoverage]) -> None:
        """Take over what a former owner has counted, unless it is known here."""
        for one in stored:
            self._known.setdefault((shard, one.band), one)

    def count(self, shard: ShardId, audit: BandAudit) -> None:
        """Count an audit with a verdict; a second audit of the same estimate counts nothing."""
        if audit.verdict is AuditVerdict.UNKNOWN:
            return
        slot = shard, audit.band
        known = self._known.get(slot, BandCoverage(shard.number, audit.band, 0, 0, 0.0))
        measured_at_s = audit.estimate.measured_at_s
        if measured_at_s <= known.measured_at_s:
            return
        contained = known.contained + (audit.verdict is AuditVerdict.CONTAINED)
        self._known[slot] = BandCoverage(
            shard.number, audit.band, known.windows + 1, contained, measured_at_s
        )

    def forget_all_but(self, shards: Iterable[ShardId]) -> None:
        """Forget the audits of all other shards."""
        present = set(shards)
        for gone in [slot for slot in self._known if slot[0] not in present]:
            del self._known[gone]
