"""`make demo` tells the truth, ends with the right code, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from annheal import Client
from samples.demo_server import DemoServer
from samples.demo_state import ATTRIBUTES, COLLECTION, Audit, Ledger, audit, load_packages
from tests.support.processes import wait_until

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO_TIMEOUT_S = 150.0
INTERRUPT_TIMEOUT_S = 30.0
ESCAPE = "\x1b["


def start_demo(folder: Path) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if key != "FORCE_COLOR"}
    environment |= {"TMPDIR": str(folder), "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / "samples" / "demo.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        env=environment,
    )


def server_processes(folder: Path) -> list[int]:
    """Return the servers that run on data below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if str(folder).encode() in command and b"\0up\0" in command:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.timeout(DEMO_TIMEOUT_S + 30)
def test_the_demo_holds_and_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    output, _ = demo.communicate(timeout=DEMO_TIMEOUT_S)
    assert demo.returncode == 0, output
    assert re.search(r"All \d+ checks hold", output), output
    assert "FAILED" not in output
    assert ESCAPE not in output, "colour although NO_COLOR is set"
    for part in ("parquetranger", "tombstones", "recall@10", "kill -9", "no deleted record"):
        assert part in output
    assert list(tmp_path.iterdir()) == []
    assert server_processes(tmp_path) == []


def test_an_interrupted_demo_ends_its_server_and_removes_its_data(tmp_path: Path) -> None:
    demo = start_demo(tmp_path)
    try:
        wait_until(
            lambda: list(tmp_path.glob("*/data/address")), timeout_s=60.0, what="a running server"
        )
        assert server_processes(tmp_path)
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=INTERRUPT_TIMEOUT_S)
    finally:
        demo.kill()
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert server_processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_the_audit_notices_every_kind_of_difference(tmp_path: Path) -> None:
    packages = load_packages("packages-queries.parquet")
    rows = packages.take(np.arange(100), revision=1)
    server = DemoServer(tmp_path, {})
    try:
        address, _ = server.start()
        with Client(address) as client:
            client.create_collection(COLLECTION, 384, attributes=ATTRIBUTES)
            client.upsert(
                COLLECTION,
                rows.ids,
                rows.vectors,
                attributes=rows.attributes,
                payloads=rows.payloads,
            )
            ledger = Ledger()
            ledger.upserted(rows)
            clean = audit(client, ledger)
            assert clean == Audit(100, [], [], [], [], [])

            ledger.upserted(packages.take(np.array([100]), revision=1))  # was never sent
            ledger.upserted(packages.take(np.array([1]), revision=2))  # nor was its new revision
            ledger.removed([rows.ids[2]])  # nor was this delete
            del ledger.records[rows.ids[3]]  # was never acknowledged, yet it is there
            found = audit(client, ledger)
    finally:
        server.stop()
    assert found.missing == [packages.ids[100]]
    assert found.outdated == [rows.ids[1]]
    assert found.ghosts == [rows.ids[2]]
    assert found.unexpected == [rows.ids[3]]
