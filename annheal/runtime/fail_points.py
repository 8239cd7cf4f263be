"""Named places at which a test can make this process die as if the machine had lost power.

`ANNHEAL_FAIL_POINT=<name>` in the environment makes the process kill itself with SIGKILL when it
reaches `fail_point(<name>)`: nothing is flushed, no `finally` runs. Names are
`<service>.<step just finished>`. Without the variable a fail point costs one comparison.
"""

from __future__ import annotations

import os
import signal
from typing import Final

ENV_FAIL_POINT: Final = "ANNHEAL_FAIL_POINT"

_armed = os.environ.get(ENV_FAIL_POINT, "")


def fail_point(name: str) -> None:
    """Die here and now if the environment says so."""
    if _armed and _armed == name:
        os.kill(os.getpid(), signal.SIGKILL)
