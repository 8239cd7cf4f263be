"""Whether the stores, logs and disks of a cluster do their work: pure functions of what it says."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final

from annheal.cli.operator_commands.health_checks import Finding, Health
from annheal.model.measures.part_health import ClusterHealth, PartHealth, PartKind

PARTS_SHOWN_MAX: Final = 5
"""Failing parts that one answer names, those that fail for longest."""

_QUESTIONS = (
    (
        "can it write?",
        (PartKind.OBJECT_WRITES, PartKind.LOG),
        "bring the object store back; writes wait for it and are not lost",
    ),
    ("can it read?", (PartKind.OBJECT_READS,), "bring the object store back"),
    (
        "is there room on the disks?",
        (PartKind.DISK,),
        "free space, enlarge the disk, or drop a collection and run `annheal gc`",
    ),
    (
        "does the metadata store answer?",
        (PartKind.METADATA,),
        "bring it back; searches and writes go on without it, changes of the cluster do not",
    ),
    (
        "do the embedders answer?",
        (PartKind.EMBEDDER,),
        "look at the endpoint, its key and its limits (`annheal models test`); searches and writes"
        " by vector go on without it, those by text do not",
    ),
)
_OPTIONAL = (PartKind.EMBEDDER,)
"""Parts that a cluster need not have."""


def examine_parts(health: ClusterHealth, *, now_s: float) -> tuple[Finding, ...]:
    """Return whether the cluster can write and read, and whether its stores and disks are there."""
    silent = "; ".join(
        f"no answer from {name}: {why}" for name, why in sorted(health.errors.items())
    )
    findings: list[Finding] = []
    for question, kinds, advice in _QUESTIONS:
        parts = [part for part in health.parts if part.kind in kinds]
        if not parts and set(kinds) <= set(_OPTIONAL):
            continue
        findings.append(_finding(question, parts, advice=advice, silent=silent, now_s=now_s))
    return tuple(findings)


def _finding(
    question: str, parts: Sequence[PartHealth], *, advice: str, silent: str, now_s: float
) -> Finding:
    failing = sorted((one for one in parts if not one.works), key=lambda one: one.failing_since_s)
    if failing:
        shown = "; ".join(_failure(one, now_s) for one in failing[:PARTS_SHOWN_MAX])
        more = len(failing) - PARTS_SHOWN_MAX
        answer = shown + (f"; and {more} more" if more > 0 else "")
        return Finding(question, Health.BAD, answer, advice)
    if silent or not parts:
        return Finding(question, Health.UNKNOWN, silent or "no process reports it")
    processes = len({one.process for one in parts})
    written_s = max((one.succeeded_at_s for one in parts if one.kind is PartKind.LOG), default=0.0)
    wrote = f"; the last write was logged {_age(now_s - written_s)} ago" if written_s else ""
    noted = "".join(f"; note: {note}" for note in sorted({one.note for one in parts if one.note}))
    reported = f"yes ({processes:,} process{'' if processes == 1 else 'es'})"
    return Finding(question, Health.GOOD, f"{reported}{wrote}{noted}")


def _failure(part: PartHealth, now_s: float) -> str:
    place = f" of {part.place}" if part.place else ""
    since = datetime.fromtimestamp(part.failing_since_s).astimezone().strftime("%H:%M:%S")
    away = _age(now_s - part.failing_since_s)
    return f"{part.process}: {part.kind}{place}: failing since {since} ({away}): {part.error}"


def _age(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 120 else f"{whole // 60} min"
