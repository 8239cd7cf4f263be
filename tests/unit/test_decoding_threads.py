"""Values are decoded by several threads at once from the first one on.

msgspec 0.22 dies of a segmentation fault when threads describe the same dataclass to it at the same
time, which happened to a server that loaded four segments at its start.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

FIRST_DECODES = """
import dataclasses, sys, threading
from annheal.metastore.codec import decode_value

sys.setswitchinterval(1e-6)
for _ in range(150):
    inner = dataclasses.make_dataclass("Inner", [(f"a{i}", int, 0) for i in range(30)])
    fields = [("x", inner), *((f"b{i}", tuple[inner, ...], ()) for i in range(20))]
    outer = dataclasses.make_dataclass("Outer", fields)
    barrier = threading.Barrier(4)

    def decode():
        barrier.wait()
        assert decode_value(b'{"x":{"a1":7}}', outer, key="k").x.a1 == 7

    threads = [threading.Thread(target=decode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""
DESCRIBED_AT_IMPORT = """
from annheal.segment.meta import SegmentMeta

# Where msgspec keeps what it was told of a class.
assert "__msgspec_cache__" in vars(SegmentMeta)
"""


@pytest.mark.parametrize("script", [FIRST_DECODES, DESCRIBED_AT_IMPORT])
def test_the_first_decoding_by_several_threads_is_safe(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
