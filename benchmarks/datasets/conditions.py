"""The planted conditions: which rows are stored, and which queries come in which phases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.datasets.planted import BLENDED, CLUSTER, NEGATED, OUTSIDE, PLAIN, STORED

K = 10
TUNE: Literal["tune"] = "tune"
REPORT: Literal["report"] = "report"
SetName = Literal["tune", "report"]
"""What is tuned may look at the conditions of the first set, not at those of the second."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Queries of one kind: `share` of the traffic asks the queries of `pool`, in random order.

    `matching` is the share of the rows that the filter matches, None: no filter. `distinct`: only
    so many queries of the pool. `ef` and `objective` are those that the client sets.
    """

    share: float = 1.0
    pool: str = PLAIN
    k: int = K
    matching: float | None = None
    distinct: int | None = None
    ef: int | None = None
    objective: float | None = None

    @property
    def has_own_setting(self) -> bool:
        """Whether the collection's objective is not that of these queries."""
        return self.ef is not None or self.objective is not None


@dataclass(frozen=True, slots=True)
class Burst:
    """`queries` at once every `every_s` seconds, of the phase's last kind of queries."""

    queries: int
    every_s: float


@dataclass(frozen=True, slots=True)
class Before:
    """What happens before a phase: live rows are deleted at random, the collection gets another
    objective, the server is restarted, or links to a share of the rows are cut out of its graphs
    while it is stopped."""

    deleted: float = 0.0
    objective: float | None = None
    restart: bool = False
    lost: float = 0.0


@dataclass(frozen=True, slots=True)
class Phase:
    """A while with one kind of load.

    `length` is in units of `--seconds`; `queries` ends it after about so many instead. `rate` is in
    units of `--rate`. `shares_end` are the shares of `asks` at the end, if they change steadily.
    `hot_rows_s`: so many rows a second are written around one place.
    """

    name: str
    asks: tuple[Ask, ...]
    length: float = 1.0
    queries: int | None = None
    rate: float = 1.0
    shares_end: tuple[float, ...] = ()
    burst: Burst | None = None
    before: Before = Before()
    hot_rows_s: int = 0


@dataclass(frozen=True, slots=True)
class Condition:
    """Settings are the defaults, but for `settings` (of the collection) and `shards`."""

    name: str
    set_name: SetName
    phases: tuple[Phase, ...]
    data: str = "plain"
    settings: Mapping[str, Any] = field(default_factory=dict)
    shards: int = 1


_PLAIN = Phase("plain", (Ask(),))
_NEGATED = Phase("negated", (Ask(pool=NEGATED),))
_BLENDED = Phase("blended", (Ask(pool=BLENDED),))


def _mixed(easy: float) -> tuple[Ask, ...]:
    return (Ask(easy), Ask(1.0 - easy, pool=NEGATED))


def _bands(unfiltered: float) -> tuple[Ask, ...]:
    return (Ask(unfiltered, pool=BLENDED), Ask(1.0 - unfiltered, matching=0.1))


CONDITIONS = (
    Condition("steady", TUNE, (_PLAIN,)),
    Condition("step", REPORT, (_PLAIN, Phase("outside", (Ask(pool=OUTSIDE),))), data="split"),
    Condition("negated", TUNE, (_NEGATED,)),
    Condition("plain-negated", REPORT, (_PLAIN, _NEGATED)),
    Condition(
        "few-easy", TUNE, (Phase("64 stored rows", (Ask(pool=STORED),), queries=64), _BLENDED)
    ),
    Condition(
        "filtered-negated", REPORT, (Phase("1 %", (Ask(matching=0.01),), rate=2.0), _NEGATED)
    ),
    Condition(
        "objective-raised",
        TUNE,
        (_PLAIN, Phase("0.99", (Ask(),), before=Before(objective=0.99))),
    ),
    Condition("equal-groups", REPORT, (_PLAIN, _BLENDED), data="groups"),
    Condition("blind-dimension", TUNE, (_PLAIN,), data="blind"),
    Condition("k-1", REPORT, (Phase("k 1", (Ask(k=1),)),)),
    Condition("k-100", TUNE, (Phase("k 100", (Ask(k=100),)),)),
    Condition("k-1000", REPORT, (Phase("k 1000", (Ask(k=1_000),)),)),
    Condition(
        "own-settings",
        TUNE,
        (
            Phase("own", (Ask(0.4), Ask(0.3, objective=0.99), Ask(0.3, ef=10))),
            Phase(
                "own, negated",
                (
                    Ask(0.4, pool=NEGATED),
                    Ask(0.3, pool=NEGATED, objective=0.99),
                    Ask(0.3, pool=NEGATED, ef=10),
                ),
            ),
        ),
    ),
    Condition("easy-hard", REPORT, (Phase("95/5", _mixed(0.95)),)),
    Condition(
        "slow-drift", TUNE, (Phase("drift", _mixed(1.0), length=2.0, shares_end=(0.0, 1.0)),)
    ),
    Condition(
        "hot-repeats",
        REPORT,
        (
            Phase("ten hot", (Ask(0.9, distinct=10), Ask(0.1))),
            Phase("ten others", (Ask(0.9, pool=NEGATED, distinct=10), Ask(0.1))),
        ),
    ),
    Condition(
        "bursts",
        TUNE,
        (Phase("bursts", (Ask(), Ask(0.0, pool=NEGATED)), rate=0.2, burst=Burst(400, 20.0)),),
    ),
    Condition(
        "bands-swap",
        REPORT,
        (Phase("mostly unfiltered", _bands(0.95)), Phase("mostly filtered", _bands(0.05))),
    ),
    Condition(
        "tombstones",
        TUNE,
        (_PLAIN, Phase("40 % deleted", (Ask(),), before=Before(deleted=0.4))),
    ),
    Condition(
        "broken-graph",
        REPORT,
        (_PLAIN, Phase("links cut", (Ask(),), before=Before(lost=0.2))),
    ),
    Condition(
        "hot-cluster",
        TUNE,
        (Phase("hot cluster", (Ask(0.5), Ask(0.5, pool=CLUSTER)), hot_rows_s=20),),
    ),
    Condition("heavy-tailed", REPORT, (_PLAIN, _NEGATED), data="heavy-tailed"),
    Condition("far-offset", TUNE, (_PLAIN, _BLENDED), data="far-offset"),
    Condition("dimension-8", REPORT, (_PLAIN, _NEGATED), data="narrow"),
    Condition("dimension-1536", TUNE, (_PLAIN, _BLENDED), data="wide"),
    Condition("fp16", REPORT, (_PLAIN, _BLENDED), settings={"storage": "fp16"}),
    Condition("int8", TUNE, (_PLAIN, _BLENDED), settings={"storage": "int8"}),
    Condition("shards-4", REPORT, (_PLAIN, _NEGATED), shards=4),
    Condition(
        "restart",
        TUNE,
        (_PLAIN, Phase("restarted", (Ask(pool=BLENDED),), before=Before(restart=True))),
    ),
    Condition("filtered", REPORT, (Phase("10 %", (Ask(matching=0.1),)),)),
)
BY_NAME = {one.name: one for one in CONDITIONS}
