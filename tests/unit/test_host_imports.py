"""A server never imports pandas because Arrow would."""

from __future__ import annotations

import subprocess
import sys

import pytest

LISTS_TO_ARROW = """
import sys
import pyarrow as pa
from annheal.runtime.host.imports import keep_pandas_from_arrow
if {kept_out}:
    keep_pandas_from_arrow()
pa.array(["a", None], type=pa.string())
pa.array([{{"x": 1}}], type=pa.struct([("x", pa.int64())]))
assert ("pandas" in sys.modules) is not {kept_out}, "Arrow looks for pandas in another way now"
import pandas
assert pandas.Series([1]).sum() == 1
"""


@pytest.mark.parametrize("kept_out", [False, True])
def test_arrow_imports_pandas_unless_it_is_kept_out(kept_out: bool) -> None:
    code = LISTS_TO_ARROW.format(kept_out=kept_out)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
