"""Consistency and session tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from annheal.errors import FailedPrecondition
from annheal.model.search import Consistency
from annheal.model.session import SessionToken
from annheal.v1 import records_pb2, search_pb2, session_pb2
from annheal.wire.enums import CONSISTENCY

Read: TypeAlias = search_pb2.SearchRequest | records_pb2.GetRequest | records_pb2.CountRequest


def encode_session(token: SessionToken) -> session_pb2.SessionToken:
    """Return `token` as a message."""
    return session_of(token.collection_id, token.sequences)


def encode_optional_session(token: SessionToken | None) -> session_pb2.SessionToken | None:
    """Return `token` as a message, if there is one."""
    return None if token is None else encode_session(token)


def decode_session(message: session_pb2.SessionToken) -> SessionToken:
    """Return the token of a message, as clients keep it."""
    return SessionToken(message.collection_id, dict(message.sequences))


def session_of(collection_id: str, sequences: Mapping[int, int]) -> session_pb2.SessionToken:
    """Return the token that a write or read answers with."""
    return session_pb2.SessionToken(collection_id=collection_id, sequences=dict(sequences))


def decode_freshness(request: Read, *, collection_id: str) -> tuple[Consistency, dict[int, int]]:
    """Return how fresh `request` wants its answer, and the sequences that shards must have.

    Raises `FailedPrecondition` for a token of another collection, `InvalidArgument` for a
    consistency that this version does not know.
    """
    number = request.consistency
    if not request.HasField("session"):
        if number == 0:
            return Consistency.EVENTUAL, {}
        return CONSISTENCY.decode(number, field="consistency"), {}
    consistency = CONSISTENCY.decode(number, field="consistency") if number else Consistency.SESSION
    token = request.session
    if token.collection_id != collection_id:
        raise FailedPrecondition(
            f"the session token belongs to collection id {token.collection_id!r}, but this"
            f" collection has id {collection_id!r}; it was dropped and created anew: start a new"
            " session",
            reason="SESSION_OF_ANOTHER_COLLECTION",
        )
    return consistency, dict(token.sequences)
