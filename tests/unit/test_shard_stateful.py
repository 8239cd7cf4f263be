"""INV-1 to INV-9 on random histories of one shard and all who heal it, against a dict.

One process, real stores, real code of every role (`tests.support.healing_world`): writes, flushes,
compactions, takeovers, collections and deaths interleave at every store call and at every fail
point, and after every step every invariant is checked by its checker (docs/invariants.md).

`make soak` runs new histories for as long as it is told; the variables are below.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import (
    run_state_machine_as_test,
)

from annheal.compactor.build import build
from annheal.errors import FailedPrecondition
from annheal.index import set_search_threads, warm_up
from annheal.metastore.codec import decode_value
from annheal.metastore.keys import manifest_key
from annheal.model.topology.manifest import Manifest
from annheal.model.topology.task import CompactionTask, TaskReason
from annheal.runtime import fail_points
from annheal.shard_node.owner import publication, wal_writer, write_path
from tests.support.healing_machine import HealingMachine
from tests.support.shards import (
    ShardWorld,
)

EXAMPLES = int(os.environ.get("ANNHEAL_STATEFUL_EXAMPLES", "46"))
STEPS = int(os.environ.get("ANNHEAL_STATEFUL_STEPS", "60"))
SOAK_S = float(os.environ.get("ANNHEAL_SOAK_S", "0"))
SOAK_SEED = os.environ.get("ANNHEAL_SOAK_SEED", "")
SOAK_EXAMPLES = 20
SHRINK = os.environ.get("ANNHEAL_STATEFUL_SHRINK", "1") == "1"
PHASES = (Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,)

GRAPH_ROWS_MIN = 10
"""So few rows get a graph here, that histories of a few dozen rows have some."""


@pytest.fixture
def small_graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs of a few rows, and retries that do not make anybody wait."""
    warm_up()
    set_search_threads(1)  # a team of threads for a dozen rows only waits for itself
    monkeypatch.setattr(build, "HNSW_ROWS_MIN", GRAPH_ROWS_MIN)
    monkeypatch.setattr(publication, "MANIFEST_RETRY_S", 0.002)
    monkeypatch.setattr(wal_writer, "RETRY_FIRST_S", 0.001)
    monkeypatch.setattr(write_path, "EARLY_GROUP_BYTES_MIN", 1)
    yield
    fail_points.disarm()


def histories(examples: int, *, fixed: bool) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=fixed,
        database=None,
        print_blob=True,
        phases=PHASES,
        suppress_health_check=list(HealthCheck),
    )


@pytest.mark.slow
@pytest.mark.timeout(max(600, EXAMPLES * STEPS // 10))
@pytest.mark.usefixtures("small_graphs")
def test_every_invariant_holds_after_every_step_of_random_histories() -> None:
    HealingMachine.steps = 0
    HealingMachine.plans.clear()
    run_state_machine_as_test(HealingMachine, settings=histories(EXAMPLES, fixed=True))
    print(f"{HealingMachine.steps} steps of {EXAMPLES} histories, every invariant after each")
    # A history that never gets to the interesting parts would prove nothing.
    assert HealingMachine.steps > EXAMPLES * STEPS / 4
    assert {"skip", "scan", "rows", "graph", "selector", "in-graph"} <= HealingMachine.plans


@pytest.mark.skipif(not SOAK_S, reason="make soak")
@pytest.mark.timeout(SOAK_S * 2 + 600)
@pytest.mark.usefixtures("small_graphs")
def test_soak(capsys: pytest.CaptureFixture[str]) -> None:
    """New histories until the time is over; each round prints the seed that repeats it."""
    end_s = time.monotonic() + SOAK_S
    first = int(SOAK_SEED) if SOAK_SEED else random.SystemRandom().randrange(1 << 31)
    HealingMachine.steps = 0
    rounds = 0
    while time.monotonic() < end_s:
        with capsys.disabled():
            print(f"\nANNHEAL_SOAK_SEED={first + rounds} after {HealingMachine.steps} steps")
        seed(first + rounds)(HealingMachine)
        run_state_machine_as_test(HealingMachine, settings=histories(SOAK_EXAMPLES, fixed=False))
        rounds += 1
    with capsys.disabled():
        print(f"{HealingMachine.steps} steps of {rounds * SOAK_EXAMPLES} histories")


async def test_a_compaction_that_lost_a_row_is_refused(tmp_path: Path) -> None:
    world = ShardWorld(tmp_path)
    owner = await world.open()
    await owner.upsert("a", "b", version=1)
    await owner.shard.flush()
    key = manifest_key("c1", 0)
    stored = await world.meta.get(key)
    assert stored is not None
    (source,) = decode_value(stored.value, Manifest, key=key).segments
    task = CompactionTask("t", "c1", 0, (source.segment_id,), "warm", TaskReason.MERGE)
    with pytest.raises(FailedPrecondition, match="0 live rows, its sources 2"):
        await owner.shard.publish_compaction(task)
    assert owner.shard.view.live_rows == 2
    await world.close()
