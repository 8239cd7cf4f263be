"""Seeds of the chaos tests: random, printed, and repeatable."""

from __future__ import annotations

import os
import random

import pytest

ENV_SEED = "ANNHEAL_CHAOS_SEED"
ENV_KILLS = "ANNHEAL_CHAOS_KILLS"
KILLS_DEFAULT = 12


@pytest.fixture
def chaos_seed(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> int:
    """The seed of the schedule and of the writers; `ANNHEAL_CHAOS_SEED` repeats one."""
    given = os.environ.get(ENV_SEED)
    seed = int(given) if given else random.SystemRandom().randrange(1 << 31)
    with capsys.disabled():
        print(f"\n{request.node.name}: {ENV_SEED}={seed}")
    return seed


@pytest.fixture
def kills() -> int:
    """How often servers are killed; `ANNHEAL_CHAOS_KILLS` asks for more."""
    return int(os.environ.get(ENV_KILLS, KILLS_DEFAULT))
