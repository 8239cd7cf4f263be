"""Audits the monitor's estimates with sampled queries from which they were not made.

An estimate of a window stands on the queries of the sample that were measured. The reservoirs hold
more: those that a measurement left out because it has enough, and those that arrived since. They
are searched as planned and exactly, like the others, and their recall is compared with the
estimate. Judging an estimate by its own queries would always confirm it. ADR 38.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from annheal.model.measures.recall import RecallEstimate, SelectivityBand
from annheal.model.measures.recall_audit import BandAudit
from annheal.model.measures.recall_audit import judged as judged_audit
from annheal.model.measures.shard_queries import Numbers
from annheal.model.topology.shard import ShardId
from annheal.recall.estimating import Recalls, audited_estimate
from annheal.runtime.deadline import Deadline
from annheal.shard_node.recall.measuring.measure import GroupFinding, group_queries
from annheal.shard_node.recall.monitor import RecallMonitor
from annheal.shard_node.recall.sampling.sampled_query import SampledQuery
from annheal.shard_node.recall.watched import Judged, WatchedShard

AUDIT_CPU_SHARE = 0.25
"""Share of a core that an audit may take: it is asked for, and somebody waits for it."""
ANSWER_TIME_SHARE = 0.1
"""Of the caller's time, left for the answer."""
_NO_SAMPLE = "the estimate is of an earlier process; which queries it was made from is not known"
_EARLIER = "the last measurement had no queries of this band; the estimate is an earlier one"
_CHANGED = "ef or the segments have changed since the estimate was made; audit the next one"


class RecallAuditor:
    """Audits the shards of a node, one at a time; used on the event loop."""

    def __init__(self, monitor: RecallMonitor) -> None:
        self._monitor = monitor
        self._one = asyncio.Lock()

    async def audit(
        self, shard: ShardId, owned: WatchedShard, *, queries_max: int, timeout_s: float
    ) -> tuple[BandAudit, ...]:
        """Audit the present estimates of a shard with at most `queries_max` queries.

        Runs in the monitor's lane with at most `AUDIT_CPU_SHARE` of a core, and ends in time:
        bands for which time is too short have fewer queries.
        """
        deadline = Deadline.after(timeout_s * (1.0 - ANSWER_TIME_SHARE))
        try:
            async with asyncio.timeout(deadline.remaining_s), self._one:
                return await self._audit(shard, owned, queries_max=queries_max, deadline=deadline)
        except TimeoutError:
            deadline.check("another audit of the node ran")
            raise

    async def _audit(
        self, shard: ShardId, owned: WatchedShard, *, queries_max: int, deadline: Deadline
    ) -> tuple[BandAudit, ...]:
        judged = self._monitor.judged(shard)
        if judged is None:
            return ()
        held = self._monitor.sampler.held(shard.collection_id)
        found: list[GroupFinding] = []
        if judged.serials:
            unused = unused_queries(held, judged.serials, queries_max=queries_max)
            found = await self._search(shard, owned, unused, deadline=deadline)
        audits = audit_bands(
            judged, found, reason=_reason(judged, self._monitor.judged(shard)), shard=shard.number
        )
        for one in audits:
            self._monitor.coverage.count(shard, one)
        return audits

    async def _search(
        self,
        shard: ShardId,
        owned: WatchedShard,
        queries: Sequence[SampledQuery],
        *,
        deadline: Deadline,
    ) -> list[GroupFinding]:
        """Search as many of the queries as time allows."""
        collection = owned.collection
        found: list[GroupFinding] = []
        longest_s = 0.0
        for group in group_queries(
            queries,
            dimension=collection.model.dimension,
            objective=collection.settings.recall_objective,
        ):
            if deadline.remaining_s <= 2.0 * longest_s:
                break
            finding, took_s = await self._monitor.measure_slice(owned, group, shard=shard.number)
            found.append(finding)
            rest_s = took_s * (1.0 / AUDIT_CPU_SHARE - 1.0)
            longest_s = max(longest_s, took_s + rest_s)
            await asyncio.sleep(min(rest_s, deadline.remaining_s / 2.0))
        return found


def unused_queries(
    held: Iterable[tuple[SelectivityBand, Sequence[SampledQuery]]],
    used: frozenset[int],
    *,
    queries_max: int,
) -> list[SampledQuery]:
    """Return at most `queries_max` queries whose serials are not `used`, of each band alike.

    `held` has the queries by band, each in random order. They are returned in turn, so that the
    first of them are of every band.
    """
    by_band = [[one for one in queries if one.serial not in used] for _, queries in held]
    turns = itertools.zip_longest(*by_band)
    in_turn = (one for turn in turns for one in turn if one is not None)
    return list(itertools.islice(in_turn, queries_max))


def audit_bands(
    judged: Judged, found: Iterable[GroupFinding], *, reason: str, shard: int
) -> tuple[BandAudit, ...]:
    """Return the audit of each estimate; `reason` says why none of them can be judged, if so."""
    by_band: dict[SelectivityBand, list[GroupFinding]] = defaultdict(list)
    for finding in found:
        if not finding.group.has_own_setting:
            by_band[finding.band].append(finding)
    latest_s = max((one.estimate.measured_at_s for one in judged.bands), default=0.0)
    audits = []
    for one in judged.bands:
        estimate = one.estimate
        if one.shard != shard or not estimate.queries:
            continue
        audited, later = _audited(estimate, by_band[one.band])
        why = reason or ("" if estimate.measured_at_s == latest_s else _EARLIER)
        audits.append(judged_audit(shard, one.band, estimate, audited, later=later, reason=why))
    return tuple(audits)


def _audited(
    estimate: RecallEstimate, found: Sequence[GroupFinding]
) -> tuple[RecallEstimate | None, int]:
    """Return the recall of the queries since the window began, and how many came after it."""
    recalls: list[Recalls] = []
    same: list[Numbers] = []
    asked: list[npt.NDArray[np.float64]] = []
    for finding in found:
        group = finding.group
        if len(finding.recalls) != len(group.samples):
            continue  # no row matches
        asked_at_s = np.array([one.sampled_at_s for one in group.samples])
        recalls.append(finding.recalls)
        same.append(group.identities[group.places])
        asked.append(asked_at_s)
    if not recalls:
        return None, 0
    return audited_estimate(
        estimate, np.concatenate(recalls), np.concatenate(same), np.concatenate(asked)
    )


def _reason(before: Judged, after: Judged | None) -> str:
    """Return why estimates cannot be compared with answers of now; empty if they can."""
    if not before.serials:
        return _NO_SAMPLE
    changed = before.changed or after is None or after.changed
    return _CHANGED if changed else ""
