"""What the options before the command decide, for every command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import typer

from annheal.cli.output import Output, OutputFormat
from annheal.client import Client
from annheal.runtime.retry import DEFAULT_POLICY, RetryPolicy

HASTY = RetryPolicy(delay_s_min=0.05, delay_s_max=0.5, attempts_max=6)
"""A person waits: after about a second they rather want to know that nobody answers."""

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, slots=True)
class State:
    """Global options."""

    address: str
    timeout_s: float
    output: Output = field(default_factory=lambda: Output(OutputFormat.TABLE))

    @contextmanager
    def client(self, *, patient: bool = False, timeout_s: float | None = None) -> Iterator[Client]:
        """Open a client; a `patient` one repeats for as long as the time allows."""
        with Client(
            self.address,
            timeout_s=timeout_s or self.timeout_s,
            retry_policy=DEFAULT_POLICY if patient else HASTY,
        ) as client:
            yield client


def state_of(context: typer.Context) -> State:
    """Return the global options of the command that runs."""
    state = context.find_object(State)
    assert state is not None
    return state
