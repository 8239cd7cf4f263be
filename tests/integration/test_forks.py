"""Clients and forks: real forks, in processes of their own, against a server in another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from annheal import Client
from annheal.errors import FailedPrecondition
from tests.support.forking_programs import CHILDREN
from tests.support.ports import LOOPBACK
from tests.support.processes import REPOSITORY, clean_environment

ENDS_WITHIN_S = 60.0
OK = "child ok []"
FORKED = "child FailedPrecondition CLIENT_FORKED"
DURING = "child FailedPrecondition FORKED_DURING_GRPC"


def program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.support.forking_programs", *arguments]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with subprocess.Popen(
        program("serve"),
        cwd=REPOSITORY,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield f"{LOOPBACK}:{int(process.stdout.readline())}"
        finally:
            process.kill()


def lines_of(name: str, address: str) -> list[str]:
    """Run a program and return what it printed; it must end by itself, and well."""
    found = subprocess.run(
        program(name, address),
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.splitlines()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("before_any_client", [OK, "ended 0"]),
        ("client_open", ["parent ok []", *([OK, "ended 0", "parent ok []"] * CHILDREN)]),
        ("client_closed", ["parent ok []", *([OK, "ended 0"] * CHILDREN)]),
        (
            "parents_client",
            ["parent ok []", FORKED, "ended 0", "child ok None", "ended 0", "parent ok []"],
        ),
        ("pool", ["parent ok []", *([OK] * 12), "parent ok []"]),
        ("grandchildren", ["parent ok []", OK, "ended 0", "child ok True", "ended 0"]),
        (
            "async_client_open",
            ["parent ok []", DURING, "ended 0", "parent ok []", OK, "ended 0"],
        ),
        ("reentered", ["parent FailedPrecondition CLIENT_REENTERED", "parent ok []"]),
    ],
)
def test_a_fork_harms_nobody(name: str, expected: list[str], address: str) -> None:
    assert lines_of(name, address) == expected


def test_a_fork_during_calls_is_said_at_once_and_the_parent_goes_on(address: str) -> None:
    lines = lines_of("threads", address)
    assert lines[-1] == "parent ok []"
    assert lines.count("ended 0") == CHILDREN
    assert {line for line in lines if line.startswith("child")} <= {OK, DURING}


def test_a_call_from_the_clients_own_callback_is_refused(address: str) -> None:
    """It waited for itself for ever."""

    def ids() -> Iterator[str]:
        yield "a"
        client.count("c")
        yield "b"

    with Client(address, timeout_s=20) as client:
        with pytest.raises(FailedPrecondition, match="one of its own callbacks") as caught:
            client.upsert("c", ids(), np.eye(2, dtype=np.float32))
        assert caught.value.reason == "CLIENT_REENTERED"
        assert client.list_collections() == []
