"""One server, the caller's deadlines, the one layer of retries, and the session tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from annheal.client.arguments import as_share, as_text, as_word
from annheal.client.public_api import PublicApi, ReadFreshness
from annheal.errors import (
    AnnhealError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from annheal.model.collection import Collection
from annheal.model.limits import TIMEOUT_MAX_S
from annheal.model.search import Consistency
from annheal.model.session import SessionToken
from annheal.rpc.forks import check_epoch, fork_epoch
from annheal.rpc.status import CANNOT_CONNECT
from annheal.runtime.deadline import Deadline
from annheal.runtime.retry import RetryPolicy, is_retryable, retry

COLLECTIONS_REMEMBERED_MAX: Final = 1_024
WAIT_S_MAX: Final = 1e8
"""Three years; what gRPC cannot count would be an error of its own."""
DEFAULT_ADDRESS: Final = "127.0.0.1:7700"
CONNECT_TIMEOUT_S: Final = 2.0
"""A server that this client has never reached is given up after so long."""
PORT_MAX: Final = 65_535
_TARGET_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "vsock:")
SESSION_STALE: Final = "SESSION_OF_ANOTHER_COLLECTION"

ValueT = TypeVar("ValueT")
Retryable = Callable[[AnnhealError], bool]


class ServerConnection:
    """What all calls of one client share."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float,
        connect_timeout_s: float,
        time_limit: Deadline | None,
        retry_policy: RetryPolicy,
        read_your_writes: bool,
    ) -> None:
        check_address(address)
        if not 0 < as_share(connect_timeout_s, "connect_timeout_s") <= TIMEOUT_MAX_S:
            raise InvalidArgument.of("connect_timeout_s", f"must be in (0, {TIMEOUT_MAX_S:g}]")
        if not 0 < as_share(timeout_s, "timeout_s") <= TIMEOUT_MAX_S:
            raise InvalidArgument.of("timeout_s", f"must be in (0, {TIMEOUT_MAX_S:g}]")
        self.api = PublicApi(address)
        self.timeout_s = timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._time_limit = time_limit
        self._reached = False
        self._epoch = fork_epoch()
        self._policy = retry_policy
        self._read_your_writes = read_your_writes
        self._tokens: OrderedDict[str, SessionToken] = OrderedDict()
        self._collections: OrderedDict[str, Collection] = OrderedDict()

    def deadline(self, timeout_s: float | None) -> Deadline:
        """Return the deadline of a call that may take `timeout_s` (the client's by default)."""
        check_epoch(self._epoch)
        given_s = self.timeout_s if timeout_s is None else as_share(timeout_s, "timeout_s")
        if given_s > WAIT_S_MAX:
            raise InvalidArgument.of("timeout_s", f"{given_s:g} is above {WAIT_S_MAX:g} seconds")
        deadline = Deadline.after(given_s)
        return deadline if self._time_limit is None else min(deadline, self._time_limit)

    async def read(
        self, attempt: Callable[[float], Awaitable[ValueT]], *, deadline: Deadline
    ) -> ValueT:
        """Call `attempt(seconds left)`, again while the error is retryable and time is left.

        A server that this client has never reached is given up after `connect_timeout_s`.
        """
        return await retry(
            self._reaching(attempt),
            deadline=deadline,
            policy=self._policy,
            retryable=self._worthwhile(is_retryable),
        )

    async def write(
        self,
        attempt: Callable[[float], Awaitable[ValueT]],
        *,
        deadline: Deadline,
        retryable: Retryable = is_retryable,
    ) -> ValueT:
        """As `read`, for a mutation; `retryable` says after which errors it may be sent again."""
        return await retry(
            self._reaching(attempt),
            deadline=deadline,
            policy=self._policy,
            mutation=True,
            retryable=self._worthwhile(retryable),
        )

    def _reaching(
        self, attempt: Callable[[float], Awaitable[ValueT]]
    ) -> Callable[[Deadline], Awaitable[ValueT]]:
        """Return `attempt`, which first waits for the connection until it stood once."""

        async def once(deadline: Deadline) -> ValueT:
            if not self._reached:
                wait_s = min(self._connect_timeout_s, deadline.remaining_s)
                await self.api.reach(timeout_s=wait_s)
            try:
                answer = await attempt(deadline.remaining_s)
            except AnnhealError as error:
                self._reached = self._reached or error.reason != CANNOT_CONNECT
                raise
            self._reached = True
            return answer

        return once

    def _worthwhile(self, retryable: Retryable) -> Retryable:
        """Return `retryable`, which gives a server up that was not reached in time."""
        connect_by = Deadline.after(self._connect_timeout_s)

        def again(error: AnnhealError) -> bool:
            if error.reason == CANNOT_CONNECT and not self._reached and connect_by.passed:
                return False
            return retryable(error)

        return again

    # ------------------------------------------------------------------------------------ sessions

    def freshness(
        self, collection: str, consistency: Consistency | str | None, session: SessionToken | None
    ) -> ReadFreshness:
        """Return what a read sends: the caller's token and this client's, where they count."""
        wanted = as_consistency(consistency)
        if not isinstance(session, SessionToken | None):
            raise InvalidArgument.of("session", f"{session!r} is no token of Client.session()")
        if wanted in (Consistency.EVENTUAL, Consistency.STRONG):
            return ReadFreshness(wanted)
        own = self._tokens.get(collection) if self._read_your_writes else None
        token = own.merged(session) if own and session else session or own
        if wanted is Consistency.SESSION and token is None:
            return ReadFreshness()  # nothing was written or seen: any state is fresh enough
        return ReadFreshness(wanted, token)

    def remember(self, collection: str, token: SessionToken | None) -> None:
        """Add what a write or read has seen to the collection's token."""
        if token is None or not token.collection_id:
            return
        known = self._tokens.pop(collection, None)
        self._tokens[collection] = known.merged(token) if known else token
        while len(self._tokens) > COLLECTIONS_REMEMBERED_MAX:
            self._tokens.popitem(last=False)

    def session(self, collection: str) -> SessionToken | None:
        """Return the collection's token."""
        return self._tokens.get(collection)

    async def fresh_read(
        self,
        collection: str,
        consistency: Consistency | str | None,
        session: SessionToken | None,
        read: Callable[[ReadFreshness], Awaitable[ValueT]],
    ) -> ValueT:
        """Return `read(freshness)`; a token of a collection that was dropped is forgotten."""
        try:
            return await read(self.freshness(collection, consistency, session))
        except FailedPrecondition as error:
            if error.reason != SESSION_STALE or session is not None:
                raise
            self.forget(collection)
            return await read(self.freshness(collection, consistency, None))

    # --------------------------------------------------------------------------------- collections

    async def collection(self, name: str, *, deadline: Deadline) -> Collection:
        """Return the collection, perhaps as it was some time ago.

        The schema and models of one collection never change, but another may have its name by now:
        before anything is refused because of what is returned here, ask `current_collection`.
        """
        known = self._collections.get(as_text(name, "collection"))
        if known is not None:
            return known
        return await self.current_collection(name, deadline=deadline)

    async def current_collection(self, name: str, *, deadline: Deadline) -> Collection:
        """Return the collection as the server has it."""
        found, _ = await self.read(
            lambda left_s: self.api.get_collection(name, with_status=False, timeout_s=left_s),
            deadline=deadline,
        )
        self.learn(found)
        return found

    def learn(self, collection: Collection) -> None:
        """Remember what a collection looks like."""
        self._collections[collection.name] = collection
        while len(self._collections) > COLLECTIONS_REMEMBERED_MAX:
            self._collections.popitem(last=False)

    def forget(self, name: str) -> None:
        """Forget a collection: it was dropped, or may have been created anew."""
        self._collections.pop(name, None)
        self._tokens.pop(name, None)

    def forget_after(self, name: str, error: AnnhealError) -> None:
        """Forget what the collection looks like when `error` may come from old knowledge."""
        if isinstance(error, InvalidArgument | NotFound):
            self._collections.pop(name, None)


def as_consistency(consistency: Consistency | str | None) -> Consistency | None:
    """Return the consistency; raises `InvalidArgument` for a word that is none."""
    if consistency is None:
        return None
    return as_word(consistency, Consistency, "consistency")


def check_address(address: str) -> None:
    """Raise `InvalidArgument` for what gRPC would not find, or look for at a port of its own."""
    scheme, separator, rest = address.partition("://")
    if separator and scheme.lower() in ("http", "https", "grpc", "grpcs"):
        raise InvalidArgument.of(
            "address",
            f"{address!r} is a URL; write host:port, such as"
            f" {rest.rstrip('/') or DEFAULT_ADDRESS!r}. Connections are not encrypted",
        )
    if not separator and not _has_port(address):
        raise InvalidArgument.of(
            "address", f"{address!r} has no port; write host:port, such as {DEFAULT_ADDRESS!r}"
        )


def _has_port(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if address.startswith(_TARGET_SCHEMES):
        return True
    return bool(host) and port.isdecimal() and 0 < int(port) <= PORT_MAX


def without_effect(error: AnnhealError) -> bool:
    """Return whether a write that is not idempotent may be sent again after `error`."""
    return isinstance(error, ResourceExhausted | Unavailable)


def never(_: AnnhealError) -> bool:
    """Return that a mutation must not be sent again."""
    return False
