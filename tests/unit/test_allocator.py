"""Freed memory goes back: measured in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from annheal.runtime.host.allocator import return_freed_memory

MIB = 1 << 20
# Arrays as a merge makes them are freed while small blocks between them live on.
PROGRAM = """
import os, sys
import numpy as np
from annheal.runtime.host.allocator import return_freed_memory
if sys.argv[1] == "yes":
    assert return_freed_memory()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
del_me = np.ones(30 << 20, dtype=np.uint8)
del del_me
before = resident()
large, kept = [], []
for _ in range(40):
    large.append(np.ones(4 << 20, dtype=np.uint8))
    kept.append(np.ones(64 << 10, dtype=np.uint8))
large.clear()
print(resident() - before)
"""

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


def kept_bytes(*, tuned: bool) -> int:
    environ = {name: value for name, value in os.environ.items() if "MALLOC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, "yes" if tuned else "no"],
        capture_output=True,
        text=True,
        check=True,
        env={**environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    return int(done.stdout)


def test_large_blocks_are_returned_when_they_are_freed() -> None:
    assert kept_bytes(tuned=True) < 20 * MIB
    assert kept_bytes(tuned=False) > 100 * MIB, "the C library does so by itself: not needed"


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_environment_chooses_is_left_alone(name: str) -> None:
    assert not return_freed_memory({name: "x"})
