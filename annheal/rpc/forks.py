"""What a fork does to gRPC, and what is done about it.

gRPC's core runs threads, and a fork copies none of them. Its own handlers make it start anew in the
child, but only if no thread of the parent is inside the core at that moment; the poller of
`grpc.aio` always is, for as long as one channel stands. A child of such a fork gets no answer, or
dies by SIGSEGV (grpcio 1.85). So connections that can be suspended are, before every fork
(`os.register_at_fork`): their channels are closed, the poller ends, and the next call of the parent
connects again. Where that is not possible (a call is under way, an event loop that is not ours) the
child is told at its first connection, at once.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from annheal.errors import FailedPrecondition
from annheal.runtime.clock import monotonic_s

POLLER_END_S: Final = 2.0
"""How long a fork waits for gRPC's poller to end."""
_POLLER_NAME: Final = "_poll_wrapper"
_LOOK_S: Final = 0.001


class Suspendable(Protocol):
    """What closes its connections before a fork and opens them again when they are needed."""

    def suspend(self) -> None:
        """Close the connections unless a call is under way; blocks shortly."""
        ...


class _Forks:
    """The state of this process; one instance."""

    def __init__(self) -> None:
        self.epoch = 0
        self.broken = False
        self.used = False
        self.suspendables: weakref.WeakSet[Suspendable] = weakref.WeakSet()
        # Held from before a fork until after it: no call begins meanwhile.
        self.gate = threading.RLock()
        self.dirty = False

    def before(self) -> None:
        """Suspend what can be; note whether something could not."""
        self.gate.acquire()
        self.dirty = False
        if not self.used:
            return
        for one in list(self.suspendables):
            one.suspend()
        gc.collect()  # channels end with their last reference, which may be in a cycle
        give_up_s = monotonic_s() + POLLER_END_S
        while _poller_lives() and self.suspendables and monotonic_s() < give_up_s:
            time.sleep(_LOOK_S)  # the thread is gRPC's own and gives no event to wait for
        self.dirty = _poller_lives()

    def after_in_parent(self) -> None:
        """Let calls begin again."""
        self.gate.release()

    def after_in_child(self) -> None:
        """Begin a new epoch: what was made before belongs to the parent."""
        self.epoch += 1
        self.broken = self.broken or self.dirty
        self.used = False
        self.suspendables = weakref.WeakSet()
        self.gate = threading.RLock()


_forks = _Forks()
os.register_at_fork(
    before=_forks.before,
    after_in_parent=_forks.after_in_parent,
    after_in_child=_forks.after_in_child,
)


def fork_epoch() -> int:
    """Return a number that is another one in a child process."""
    return _forks.epoch


def check_epoch(epoch: int) -> None:
    """Raise `FailedPrecondition` unless this process is the one of `fork_epoch() == epoch`."""
    if epoch != _forks.epoch:
        raise FailedPrecondition(
            "this client was made before the process forked, and belongs to the parent: make one in"
            " this process",
            reason="CLIENT_FORKED",
        )


def check_usable() -> None:
    """Note that gRPC is used; raise `FailedPrecondition` when a fork has made it unusable."""
    if _forks.broken:
        raise FailedPrecondition(
            "the process was forked while gRPC was at work (a call under way, an open AsyncClient,"
            " a server, or another user of grpc.aio), and gRPC does not survive that: close them"
            " before the fork, or start processes by spawn or forkserver",
            reason="FORKED_DURING_GRPC",
        )
    _forks.used = True


def suspend_at_fork(one: Suspendable) -> None:
    """Call `one.suspend` before every fork, for as long as it lives."""
    _forks.suspendables.add(one)


@contextmanager
def no_fork() -> Iterator[None]:
    """Let no fork happen inside; for the moment in which a call is counted as under way."""
    gate = _forks.gate
    with gate:
        yield


def _poller_lives() -> bool:
    return any(_POLLER_NAME in thread.name for thread in threading.enumerate())
