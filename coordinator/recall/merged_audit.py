"""Audits the recall of answers over several shards with queries that it was not measured with.

Estimates of merged answers are rebuilt from parts that the shards measured (`answers.py`). Here
other live queries are searched again over all shards, as they were asked and exactly, so that the
whole way is checked: the parts, their merging and the sample. ADR 38.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from annheal.coordinator.catalog.catalog import Catalog
from annheal.coordinator.data_path.ask_nodes import ask_nodes
from annheal.coordinator.data_path.fanout import Fanout
from annheal.coordinator.data_path.router import Router
from annheal.coordinator.recall.judge import raised_by_band
from annheal.coordinator.recall.summary import summarise
from annheal.coordinator.recall.view import RecallView
from annheal.coordinator.recall.worst import newest_of_each_band, search_again
from annheal.filters import filter_key
from annheal.model.collection import Collection
from annheal.model.measures.recall import SelectivityBand
from annheal.model.measures.recall_audit import BandAudit, judged
from annheal.model.measures.recall_summary import ALL_SHARDS, RecallSummary
from annheal.model.measures.recall_worst import LiveQuery, WorstQuery
from annheal.recall.estimating import audited_estimate
from annheal.runtime.clock import Clock, wall_s
from annheal.runtime.deadline import Deadline

_OLD = "the estimate is too old"
_RAISED = "answers have become better since it was measured; audit the next one"


class MergedAuditor:
    """Audits the estimates of merged answers."""

    def __init__(
        self,
        catalog: Catalog,
        router: Router,
        fanout: Fanout,
        view: RecallView,
        *,
        timeout_s: float,
        now_s: Clock = wall_s,
    ) -> None:
        self._catalog = catalog
        self._router = router
        self._fanout = fanout
        self._view = view
        self._timeout_s = timeout_s
        self._now_s = now_s

    async def audit(
        self, collection: Collection, *, queries_max: int, deadline: Deadline
    ) -> tuple[BandAudit, ...]:
        """Audit each band with an estimate, with at most `queries_max` queries together.

        Nothing where one shard has all records. Ends in time, as `search_again` does.
        """
        if collection.shard_count <= 1:
            return ()
        reports = await self._view.reports(collection)
        now_s = self._now_s()
        summary = summarise(collection, reports, now_s=now_s)
        numbers = (part.numbers.tolist() for report in reports for part in report.queries)
        used = frozenset(itertools.chain.from_iterable(numbers))
        asked = await ask_nodes(
            self._router,
            self._catalog.nodes(),
            lambda node: node.sampled_queries(collection.id),
            timeout_s=min(self._timeout_s, deadline.remaining_s),
            what="report its sampled queries",
        )
        sampled = itertools.chain.from_iterable(asked.answers.values())
        chosen = unmeasured_queries(sampled, used, queries_max=queries_max)
        found = await search_again(self._fanout, collection, chosen, deadline=deadline)
        return audit_answers(summary, found, now_s=now_s)


def unmeasured_queries(
    sampled: Iterable[LiveQuery], used: AbstractSet[int], *, queries_max: int
) -> list[LiveQuery]:
    """Return at most `queries_max` queries whose numbers are not `used`, of each band alike.

    Several nodes sample the same query, which counts once. Those without a number and those with
    settings of their own are left out. Numbers are random, and so is which queries are chosen.
    """
    by_number = {
        one.number: one
        for one in sampled
        if one.number is not None and one.objective is None and one.ef is None
    }
    unused = [one for number, one in sorted(by_number.items()) if number not in used]
    return newest_of_each_band(unused, queries_max=queries_max)


def audit_answers(
    summary: RecallSummary, found: Sequence[WorstQuery], *, now_s: float
) -> tuple[BandAudit, ...]:
    """Return the audit of each band that has an estimate."""
    raised_at_s = raised_by_band(summary.segments)
    audits: list[BandAudit] = []
    for one in summary.bands:
        band, estimate = SelectivityBand(one.name), one.estimate
        if estimate is None or not estimate.queries:
            continue
        of_band = [each for each in found if each.query.band is band]
        audited, later = audited_estimate(
            estimate,
            np.array([each.recall for each in of_band]),
            np.array(_identities([each.query for each in of_band]), dtype=np.uint64),
            np.array([each.query.asked_at_s for each in of_band]),
        )
        reason = ""
        if not estimate.is_valid(now_s):
            reason = _OLD
        elif raised_at_s.get(band, 0.0) >= estimate.measured_at_s:
            reason = _RAISED
        audits.append(judged(ALL_SHARDS, band, estimate, audited, later=later, reason=reason))
    return tuple(audits)


def _identities(queries: Sequence[LiveQuery]) -> list[int]:
    """Return a number for each query, equal for equal ones."""
    numbers: dict[tuple[bytes, bytes, int], int] = {}
    return [
        numbers.setdefault(
            (
                one.vector.tobytes(),
                b"" if one.filter is None else filter_key(one.filter),
                one.k,
            ),
            len(numbers),
        )
        for one in queries
    ]
