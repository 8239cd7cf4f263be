from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from annheal.cli.server.settings import ProcessSettings, SettingsSource
from annheal.runtime import fail_points
from annheal.runtime.fail_points import ENV_FAIL_POINT, FAIL_POINTS, arm, disarm, fail_point
from tests.support.processes import REPOSITORY, clean_environment

CODE = ("annheal", "coordinator", "shard_node", "compactor", "cli")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    disarm()


def test_every_fail_point_of_the_code_is_listed_and_every_listed_one_is_in_the_code() -> None:
    used = {
        name
        for folder in CODE
        for path in (REPOSITORY / folder).rglob("*.py")
        for name in re.findall(r'fail_point\("([^"]+)"\)', path.read_text())
    }
    assert used == set(FAIL_POINTS)
    assert len(FAIL_POINTS) == len(used)


def test_an_armed_point_is_reached_as_often_as_it_says() -> None:
    deaths: list[str] = []
    arm("compactor.uploading:2", die=lambda: deaths.append("died"))
    for name in ("compactor.uploading", "compactor.built", "compactor.claimed"):
        fail_point(name)
    assert deaths == []
    fail_point("compactor.uploading")
    assert deaths == ["died"]
    fail_point("compactor.uploading")
    assert deaths == ["died"], "only once"
    with pytest.raises(ValueError, match=r"there is no fail point 'compactor.lunch'"):
        arm("compactor.lunch")


def test_the_environment_makes_a_process_kill_itself() -> None:
    script = f"from annheal.runtime.fail_points import fail_point\nfail_point({FAIL_POINTS[0]!r})\n"
    for value, code in ((FAIL_POINTS[0], -signal.SIGKILL), (FAIL_POINTS[1], 0)):
        environment = clean_environment({ENV_FAIL_POINT: value})
        ended = subprocess.run(
            [sys.executable, "-c", script], env=environment, timeout=60, check=False
        )
        assert ended.returncode == code


def test_the_variable_is_no_setting_of_a_role() -> None:
    source = SettingsSource(
        {"up": (ProcessSettings,)}, flags={}, environ={ENV_FAIL_POINT: FAIL_POINTS[0]}
    )
    assert source.settings(ProcessSettings, role="up") == ProcessSettings()
    assert fail_points._armed is None, "this process is not the one to die"
