"""How often a row is written again: the rule that bounds it, and loads that are played through."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import count
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annheal.coordinator.compaction.plan import (
    CompactionSettings,
    ShardObservation,
    plan_compactions,
)
from annheal.model.collection import Collection, CollectionSettings, Metric, ModelSpec
from annheal.model.topology.state import SegmentState, ShardState
from annheal.model.topology.task import CompactionTask, TaskPhase, TaskReason

RULES = CompactionSettings()
COLLECTION = Collection(
    id="c1",
    name="packages",
    models=(ModelSpec("m", 384, Metric.COSINE),),
    schema=(),
    shard_count=1,
)
ROWS = 100_000
ROW_BYTES = 384 * 4 + 64
GRAPH_BYTES = 2 * 16 * 4 + 16
"""Links of a row: M 16, twice on the lowest level."""
BUILT_ROWS_PER_S = 2_000


def state(segments: list[SegmentState]) -> ShardState:
    return ShardState(
        collection_id="c1",
        shard=0,
        node_id="a",
        phase="serving",
        epoch=1,
        live_rows=0,
        dead_rows=0,
        unindexed_rows=0,
        applied_sequence=0,
        wal_slots=0,
        memory_bytes=0,
        segments=tuple(segments),
    )


def segment(name: str, rows: int, *, generation: int = 0) -> SegmentState:
    graph = generation > 0 and rows >= RULES.graph_rows_min
    return SegmentState(
        shard=0,
        segment_id=name,
        tier="warm" if generation else "hot",
        model="m",
        index_kind="hnsw" if graph else "flat",
        rows=rows,
        dead_rows=0,
        size_bytes=rows * (ROW_BYTES + graph * GRAPH_BYTES),
        generation=generation,
        created_at_s=0.0,
        min_sequence=1,
        max_sequence=rows,
    )


@dataclass(slots=True)
class Part:
    """Rows that were flushed together, and how often they were written since."""

    flushed_rows: int
    rewrites: int = 0


@dataclass(slots=True)
class Load:
    """One shard under a load, and one compactor that builds one segment at a time."""

    rows_per_s: float
    seed: int
    settings: CollectionSettings = field(default_factory=CollectionSettings)
    segments: dict[str, SegmentState] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    written_bytes: int = 0
    most_segments: int = 0

    def run(self) -> None:
        random, numbers = Random(self.seed), count(1)
        now_s = written = growing = 0
        growing_since_s = last_write_s = 0
        tasks: list[CompactionTask] = []
        done_s: dict[str, float] = {}
        free_s = 0.0
        while True:
            while written < min(ROWS, now_s * self.rows_per_s):
                batch = min(random.randint(1, 6), ROWS - written)
                growing_since_s = growing_since_s if growing else now_s
                written, growing, last_write_s = written + batch, growing + batch, now_s
                if growing >= self.settings.seal_rows_max:
                    self.flush(f"s{next(numbers)}", growing)
                    growing = 0
            if growing and now_s - growing_since_s >= self.settings.seal_age_s:
                self.flush(f"s{next(numbers)}", growing)
                growing = 0
            for task in [one for one in tasks if done_s[one.id] <= now_s]:
                tasks.remove(task)
                self.replace(task, f"s{next(numbers)}")
            quiet_s = now_s - last_write_s if written == ROWS else 0.0
            observed = [ShardObservation(state(list(self.segments.values())), quiet_s)]
            for task in plan_compactions(
                COLLECTION,
                observed,
                tasks,
                now_s=now_s,
                settings=RULES,
                new_id=lambda: f"t{next(numbers)}",
            ):
                rows = sum(self.segments[source].rows for source in task.sources)
                free_s = max(free_s, now_s) + rows / BUILT_ROWS_PER_S
                done_s[task.id] = free_s
                tasks.append(task)
            self.most_segments = max(self.most_segments, len(self.segments))
            if written == ROWS and not tasks and not growing and quiet_s > 100:
                return
            now_s += 1

    def flush(self, name: str, rows: int) -> None:
        self.segments[name] = segment(name, rows)
        self.parts[name] = [Part(rows)]

    def replace(self, task: CompactionTask, name: str) -> None:
        old = [self.segments.pop(source) for source in task.sources]
        rows = sum(one.rows for one in old)
        built = segment(name, rows, generation=1 + max(one.generation for one in old))
        self.segments[name] = built
        self.written_bytes += built.size_bytes
        self.parts[name] = [
            Part(part.flushed_rows, part.rewrites + 1)
            for source in task.sources
            for part in self.parts.pop(source)
        ]
        for part in self.parts[name]:
            assert part.rewrites <= bound(rows, part.flushed_rows, growth=RULES.growth_idle)

    @property
    def amplification(self) -> float:
        return self.written_bytes / (ROWS * ROW_BYTES)


def bound(rows: int, flushed_rows: int, *, growth: float) -> float:
    """What docs/operations/compaction.md states."""
    return 1.0 + math.log(rows / flushed_rows) / math.log(1.0 + 1.0 / growth) + 1e-9


@pytest.mark.parametrize(
    ("rows_per_s", "at_most"), [(20_000, 2.5), (2_000, 4.0), (500, 5.0), (100, 6.0)]
)
def test_a_load_in_small_batches_is_rewritten_a_few_times(
    rows_per_s: float, at_most: float
) -> None:
    load = Load(rows_per_s, seed=7)
    load.run()
    print(
        f"{rows_per_s} rows/s: {load.amplification:.2f} bytes written by compaction a byte"
        f" ingested, {len(load.segments)} segments left, {load.most_segments} at most"
    )
    assert sum(one.rows for one in load.segments.values()) == ROWS
    assert load.amplification <= at_most
    assert len(load.segments) <= RULES.graphs_max
    assert load.most_segments <= 40


@given(
    st.lists(
        st.tuples(st.integers(1, 300_000), st.integers(0, 3), st.booleans()),
        max_size=30,
    ),
    st.sampled_from([0.0, 60.0, 1e9]),
)
def test_the_largest_segment_of_a_merge_is_never_much_larger_than_the_others(
    shapes: list[tuple[int, int, bool]], quiet_s: float
) -> None:
    segments = [
        segment(f"s{n}", rows, generation=generation)
        for n, (rows, generation, _) in enumerate(shapes)
    ]
    sizes = {one.segment_id: one.rows for one in segments}
    tasks = plan_compactions(
        COLLECTION,
        [ShardObservation(state(segments), quiet_s)],
        [],
        now_s=0.0,
        settings=RULES,
        new_id=lambda: "t",
    )
    for task in tasks:
        assert task.reason is TaskReason.MERGE
        assert task.phase is TaskPhase.PENDING
        rows = sorted(sizes[source] for source in task.sources)
        assert sum(rows) <= COLLECTION.settings.segment_rows_max
        if len(rows) > 1:
            chosen = [one for one in segments if one.segment_id in task.sources]
            graphs = all(one.index_kind == "hnsw" for one in chosen)
            growth = RULES.growth_quiet if quiet_s or graphs else RULES.growth_busy
            if quiet_s >= COLLECTION.settings.segment_idle_s:
                growth = RULES.growth_idle
            assert rows[-1] <= growth * sum(rows[:-1])
        else:
            (source,) = task.sources
            assert segments[int(source[1:])].index_kind == "flat"
