"""What the options before the command decide, for every command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import typer

from annheal.cli.output import Output, OutputFormat
from annheal.client import Client
from annheal.model.limits import TIMEOUT_DEFAULT_S
from annheal.runtime.clock import monotonic_s
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import DEFAULT_POLICY, RetryPolicy

HASTY = RetryPolicy(delay_s_min=0.05, delay_s_max=0.5, attempts_max=6)
"""A person waits: after about a second they rather want to know that nobody answers."""

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class State:
    """Global options. `timeout_s` is None where nobody gave `--timeout`."""

    address: str
    timeout_s: float | None = None
    output: Output = field(default_factory=lambda: Output(OutputFormat.TABLE))

    began_s: float = field(default_factory=monotonic_s)

    @contextmanager
    def client(
        self, *, patient: bool = False, default_s: float = TIMEOUT_DEFAULT_S, endless: bool = False
    ) -> Iterator[Client]:
        """Open a client whose calls end, all together, `--timeout` after the command began.

        Args:
            patient: repeat what fails for as long as the time allows.
            default_s: the time where nobody gave `--timeout`.
            endless: the time is that of each call, for commands that go on while there is work.
        """
        limit_s = default_s if self.timeout_s is None else self.timeout_s
        with Client(
            self.address,
            timeout_s=limit_s,
            time_limit=None if endless else Deadline(self.began_s + limit_s),
            retry_policy=DEFAULT_POLICY if patient else HASTY,
        ) as client:
            yield client


def state_of(context: typer.Context) -> State:
    """Return the global options of the command that runs."""
    state = context.find_object(State)
    assert state is not None
    return state
