"""The limits that both metadata stores enforce before anything is sent or written.

They lie below etcd's own (1.5 MiB a request, 128 operations a transaction), so that what one store
accepts the other accepts too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from annheal.errors import InvalidArgument
from annheal.metastore.protocol import Compare, Operation, Put

KEY_BYTES_MAX = 1024
VALUE_BYTES_MAX = 1 << 20
COMMIT_OPERATIONS_MAX = 100
COMMIT_COMPARES_MAX = 100
# Every key, value and compared key of one commit together.
COMMIT_BYTES_MAX = VALUE_BYTES_MAX + (256 << 10)
LEASE_TTL_S_MAX = 24 * 3600.0


def check_key(key: str) -> bytes:
    """Return `key` as stored, or raise `InvalidArgument`."""
    encoded = _encode(key)
    if not 1 <= len(encoded) <= KEY_BYTES_MAX:
        raise InvalidArgument.of(
            "key", f"{len(encoded)} bytes, allowed are 1 to {KEY_BYTES_MAX}: {key[:64]!r}"
        )
    return encoded


def check_prefix(prefix: str) -> bytes:
    """Return `prefix` as stored; the empty prefix is every key."""
    encoded = _encode(prefix)
    if len(encoded) > KEY_BYTES_MAX:
        raise InvalidArgument.of("prefix", f"{len(encoded)} bytes, allowed are {KEY_BYTES_MAX}")
    return encoded


def check_commit(operations: Sequence[Operation], compares: Sequence[Compare]) -> None:
    """Raise `InvalidArgument` when a commit is too large or changes a key twice."""
    if len(operations) > COMMIT_OPERATIONS_MAX:
        raise InvalidArgument.of(
            "operations", f"{len(operations)} in one commit, allowed are {COMMIT_OPERATIONS_MAX}"
        )
    if len(compares) > COMMIT_COMPARES_MAX:
        raise InvalidArgument.of(
            "compares", f"{len(compares)} in one commit, allowed are {COMMIT_COMPARES_MAX}"
        )
    size_bytes = sum(len(check_key(compare.key)) for compare in compares)
    size_bytes += sum(_operation_size(operation) for operation in operations)
    if size_bytes > COMMIT_BYTES_MAX:
        raise InvalidArgument.of(
            "operations", f"{size_bytes} bytes in one commit, allowed are {COMMIT_BYTES_MAX}"
        )
    repeated = _first_repeated(operation.key for operation in operations)
    if repeated is not None:
        raise InvalidArgument.of("operations", f"one commit changes {repeated!r} twice")


def check_ttl(ttl_s: float) -> float:
    """Return the time of a lease, or raise `InvalidArgument`."""
    if not 0 < ttl_s <= LEASE_TTL_S_MAX:
        raise InvalidArgument.of("ttl_s", f"{ttl_s} is not in (0, {LEASE_TTL_S_MAX}]")
    return ttl_s


def prefix_end(prefix: bytes) -> bytes | None:
    """Return the first byte string after all that start with `prefix`; None: there is none."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return None
    return stem[:-1] + bytes([stem[-1] + 1])


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument.of("key", f"{text[:64]!r} is not valid Unicode") from error


def _operation_size(operation: Operation) -> int:
    size_bytes = len(check_key(operation.key))
    if isinstance(operation, Put):
        if len(operation.value) > VALUE_BYTES_MAX:
            raise InvalidArgument.of(
                "value",
                f"{len(operation.value)} bytes under {operation.key!r},"
                f" allowed are {VALUE_BYTES_MAX}",
            )
        size_bytes += len(operation.value)
    return size_bytes


def _first_repeated(keys: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            return key
        seen.add(key)
    return None
