"""How test files are divided among processes: those that wait, beside those that compute.

`pytest -p tests.support.shared_cores -n N` uses it. Clusters and measurements of time run one after
another in the first process, because they need the processor when they ask for it (ADR 28). They
wait most of the time. The other processes run the rest meanwhile, at the lowest priority.
"""

from __future__ import annotations

import os
from pathlib import PurePath

import pytest
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

FIRST = "gw0"
NICE_MAX = 19
ONE_BY_ONE = ("tests/chaos", "tests/integration")
BESIDE_OTHERS = frozenset(
    {
        "test_bad_input.py",
        "test_cli_embedded.py",
        "test_damage.py",
        "test_demo.py",
        "test_export_round_trip.py",
        "test_grpc_surface.py",
        "test_internal_attacks.py",
        "test_large_answers.py",
        "test_old_data.py",
        "test_sdk_embedded.py",
        "test_sdk_refusals.py",
        "test_values_round_trip.py",
        "test_wheel.py",
    }
)
"""Files of those folders that need one server at most, and measure no time."""


def is_one_by_one(scope: str) -> bool:
    """Return whether a file of tests runs in the first process only."""
    path = PurePath(scope)
    return str(path.parent) in ONE_BY_ONE and path.name not in BESIDE_OTHERS


class SharedCores(LoadFileScheduling):
    """Gives a process its next file: to the first one those of `is_one_by_one`, as long as any."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        is_first = node.gateway.id == FIRST
        wanted = (scope for scope in self.workqueue if is_one_by_one(scope) is is_first)
        chosen = next(wanted, None)
        if chosen is not None:
            self.workqueue.move_to_end(chosen, last=False)
        elif not is_first:
            node.shutdown()
            return
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config) -> SharedCores:
    """Return the scheduler."""
    return SharedCores(config)


def pytest_configure(config: pytest.Config) -> None:
    """Lower the priority of all processes but the first."""
    worker = getattr(config, "workerinput", {}).get("workerid", FIRST)
    if worker != FIRST:
        os.nice(NICE_MAX)
