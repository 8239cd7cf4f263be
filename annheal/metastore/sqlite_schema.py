"""The SQL behind the embedded metadata store: plain functions on one connection.

Everything here runs on the store's own thread and inside a transaction that the caller opened,
except `open_database`. Time is given as an argument. Keys are BLOBs, so that key order is byte
order, as in etcd.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from annheal.errors import (
    AnnhealError,
    Conflict,
    DataCorruption,
    ResourceExhausted,
    Unavailable,
    UnknownOutcome,
)
from annheal.metastore.limits import prefix_end
from annheal.metastore.protocol import (
    Change,
    Compare,
    KeyValue,
    Lease,
    LeaseExpired,
    Operation,
    Put,
)
from annheal.runtime.clock import monotonic_s

FORMAT_VERSION = 1
BUSY_TIMEOUT_S = 5.0
PAGE_BYTES = 4096
_BUSY_POLL_S = 0.01
# Values held in the log of changes, whatever their number.
CHANGES_BYTES_MAX = 64 << 20

_SCHEMA = """
CREATE TABLE IF NOT EXISTS store (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    revision INTEGER NOT NULL,
    dropped_through INTEGER NOT NULL
);
INSERT OR IGNORE INTO store VALUES (1, 0, 0);
CREATE TABLE IF NOT EXISTS kv (
    key BLOB PRIMARY KEY,
    value BLOB NOT NULL,
    mod_revision INTEGER NOT NULL,
    lease_id INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_by_lease ON kv (lease_id) WHERE lease_id != 0;
CREATE TABLE IF NOT EXISTS changes (
    revision INTEGER NOT NULL,
    ordinal INTEGER NOT NULL,
    key BLOB NOT NULL,
    value BLOB,
    lease_id INTEGER NOT NULL,
    PRIMARY KEY (revision, ordinal)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS leases (
    id INTEGER PRIMARY KEY,
    ttl_s REAL NOT NULL,
    expires_at_s REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS leases_by_expiry ON leases (expires_at_s);
"""

_LIVE = "(lease_id = 0 OR lease_id IN (SELECT id FROM leases WHERE expires_at_s > :now))"


def open_database(path: Path, *, size_bytes_max: int) -> sqlite3.Connection:
    """Open the database, creating it when it is missing.

    Raises `DataCorruption` when the file is no such database or of a newer format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with translated_errors():
        database = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        try:
            _prepare(database, path, size_bytes_max=size_bytes_max)
        except BaseException:
            database.close()
            raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, *, size_bytes_max: int) -> None:
    _enter_wal_mode(database)
    # With WAL, only FULL makes a commit survive a loss of power.
    database.execute("PRAGMA synchronous = FULL")
    database.execute(f"PRAGMA max_page_count = {max(1, size_bytes_max // PAGE_BYTES)}")
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > FORMAT_VERSION:
        raise DataCorruption(f"{path} has format {version}, this version knows {FORMAT_VERSION}")
    if version < FORMAT_VERSION:
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def _enter_wal_mode(database: sqlite3.Connection) -> None:
    """Wait by hand: for this one statement SQLite does not use its busy timeout."""
    deadline = monotonic_s() + BUSY_TIMEOUT_S
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or monotonic_s() > deadline:
                raise
            time.sleep(_BUSY_POLL_S)  # up to the deadline above
        else:
            return


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn sqlite3's errors into Annheal's."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translated(error) from error


def _translated(error: sqlite3.Error) -> AnnhealError:
    # The low byte is the primary result code, the rest a detail.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ResourceExhausted(
            f"the metadata database is full: {error}", reason="METADATA_FULL", retry_after_s=10.0
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DataCorruption(f"the metadata database is damaged: {error}")
    return Unavailable(f"the metadata database cannot be used: {error}", retry_after_s=1.0)


@contextmanager
def transaction(
    database: sqlite3.Connection, *, mode: Literal["DEFERRED", "IMMEDIATE"]
) -> Iterator[None]:
    """Run the body in one transaction; an exception undoes it."""
    with translated_errors():
        database.execute(f"BEGIN {mode}")
    try:
        with translated_errors():
            yield
        _finish(database)
    finally:
        if database.in_transaction:
            database.execute("ROLLBACK")


def _finish(database: sqlite3.Connection) -> None:
    try:
        database.execute("COMMIT")
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_IOERR:
            # The log may hold the whole transaction although its flush failed.
            raise UnknownOutcome(f"the metadata commit failed on the way: {error}") from error
        raise _translated(error) from error


def read_revision(database: sqlite3.Connection) -> int:
    """Return the store's revision."""
    revision: int = database.execute("SELECT revision FROM store").fetchone()[0]
    return revision


def read_key(database: sqlite3.Connection, key: bytes, *, now_s: float) -> KeyValue | None:
    """Return the key unless it is missing or its lease has ended."""
    row = database.execute(
        f"SELECT key, value, mod_revision, lease_id FROM kv WHERE key = :key AND {_LIVE}",
        {"key": key, "now": now_s},
    ).fetchone()
    return None if row is None else _key_value(row)


def read_prefix(
    database: sqlite3.Connection, prefix: bytes, *, now_s: float
) -> tuple[KeyValue, ...]:
    """Return the live keys under the prefix, in key order."""
    rows = database.execute(
        "SELECT key, value, mod_revision, lease_id FROM kv"
        f" WHERE {_under(prefix)} AND {_LIVE} ORDER BY key",
        {"from": prefix, "to": prefix_end(prefix), "now": now_s},
    )
    return tuple(_key_value(row) for row in rows)


def _under(prefix: bytes) -> str:
    return "key >= :from" if prefix_end(prefix) is None else "key >= :from AND key < :to"


def _key_value(row: tuple[bytes, bytes, int, int]) -> KeyValue:
    key, value, mod_revision, lease_id = row
    return KeyValue(key=key.decode(), value=value, mod_revision=mod_revision, lease_id=lease_id)


def check_compares(database: sqlite3.Connection, compares: Sequence[Compare]) -> None:
    """Raise `Conflict` when one does not hold."""
    for compare in compares:
        row = database.execute(
            "SELECT mod_revision FROM kv WHERE key = ?", (compare.key.encode(),)
        ).fetchone()
        found = 0 if row is None else row[0]
        if found != compare.mod_revision:
            raise Conflict(
                f"{compare.key!r} is at revision {found}, not {compare.mod_revision}",
                metadata={"key": compare.key},
            )


def check_leases(database: sqlite3.Connection, operations: Sequence[Operation]) -> None:
    """Raise `LeaseExpired` when a put names a lease that is not there."""
    for lease_id in {put.lease_id for put in operations if isinstance(put, Put) and put.lease_id}:
        if database.execute("SELECT 1 FROM leases WHERE id = ?", (lease_id,)).fetchone() is None:
            raise LeaseExpired(f"lease {lease_id} has ended")


def apply_operations(database: sqlite3.Connection, operations: Sequence[Operation]) -> int:
    """Apply the operations as one revision and return it; the present one if nothing changes."""
    revision = read_revision(database) + 1
    changed = [
        (revision, ordinal, *_apply(database, operation, revision))
        for ordinal, operation in enumerate(operations)
        if isinstance(operation, Put) or _exists(database, operation.key.encode())
    ]
    if not changed:
        return revision - 1
    database.executemany("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", changed)
    database.execute("UPDATE store SET revision = ?", (revision,))
    return revision


def _exists(database: sqlite3.Connection, key: bytes) -> bool:
    return database.execute("SELECT 1 FROM kv WHERE key = ?", (key,)).fetchone() is not None


def _apply(
    database: sqlite3.Connection, operation: Operation, revision: int
) -> tuple[bytes, bytes | None, int]:
    key = operation.key.encode()
    if not isinstance(operation, Put):
        database.execute("DELETE FROM kv WHERE key = ?", (key,))
        return key, None, 0
    database.execute(
        "INSERT OR REPLACE INTO kv VALUES (?, ?, ?, ?)",
        (key, operation.value, revision, operation.lease_id),
    )
    return key, operation.value, operation.lease_id


def read_changes(
    database: sqlite3.Connection, prefix: bytes, *, after_revision: int, limit: int
) -> tuple[tuple[Change, ...], int]:
    """Return about `limit` changes under the prefix, and the revision up to which all are told.

    Whole revisions only: one that the limit cuts is left for the next call, unless it is the only
    one (a lease with very many keys has ended); then all of it is returned. Must run in one
    transaction.
    """
    changes = _select_changes(database, prefix, "> :revision", after_revision, limit)
    if len(changes) < limit:
        return changes, max(after_revision, read_revision(database))
    last = changes[-1].mod_revision
    if changes[0].mod_revision == last:
        return _select_changes(database, prefix, "= :revision", last, -1), last
    return tuple(change for change in changes if change.mod_revision < last), last - 1


def _select_changes(
    database: sqlite3.Connection, prefix: bytes, which: str, revision: int, limit: int
) -> tuple[Change, ...]:
    rows = database.execute(
        "SELECT revision, key, value, lease_id FROM changes"
        f" WHERE {_under(prefix)} AND revision {which}"
        " ORDER BY revision, ordinal LIMIT :limit",
        {"from": prefix, "to": prefix_end(prefix), "revision": revision, "limit": limit},
    )
    return tuple(
        Change(key=key.decode(), value=value, mod_revision=revision, lease_id=lease_id)
        for revision, key, value, lease_id in rows
    )


def read_dropped_through(database: sqlite3.Connection) -> int:
    """Return the last revision whose changes are no longer kept."""
    dropped: int = database.execute("SELECT dropped_through FROM store").fetchone()[0]
    return dropped


def drop_changes(database: sqlite3.Connection, *, through_revision: int) -> None:
    """Forget the changes up to and including `through_revision`."""
    through = min(through_revision, read_revision(database))
    database.execute("DELETE FROM changes WHERE revision <= ?", (through,))
    database.execute("UPDATE store SET dropped_through = max(dropped_through, ?)", (through,))


def bound_changes(database: sqlite3.Connection, *, kept: int) -> None:
    """Keep at most the last `kept` changes and `CHANGES_BYTES_MAX` of their values."""
    cut = database.execute(
        "SELECT revision FROM (SELECT revision, row_number() OVER newest AS position,"
        " sum(coalesce(length(value), 0)) OVER newest AS size_bytes FROM changes"
        " WINDOW newest AS (ORDER BY revision DESC, ordinal DESC ROWS UNBOUNDED PRECEDING))"
        " WHERE position > ? OR size_bytes > ? ORDER BY revision DESC LIMIT 1",
        (kept, CHANGES_BYTES_MAX),
    ).fetchone()
    if cut is not None:
        drop_changes(database, through_revision=cut[0])


def insert_lease(database: sqlite3.Connection, *, ttl_s: float, now_s: float) -> Lease:
    """Grant a lease; ids are never given twice while their keys may be seen."""
    cursor = database.execute(
        "INSERT INTO leases (id, ttl_s, expires_at_s)"
        " VALUES (abs(random() >> 1) | 1, ?, ?) RETURNING id",
        (ttl_s, now_s + ttl_s),
    )
    lease_id: int = cursor.fetchone()[0]
    return Lease(id=lease_id, ttl_s=ttl_s)


def extend_lease(database: sqlite3.Connection, lease: Lease, *, now_s: float) -> None:
    """Start the lease's time again, or raise `LeaseExpired`."""
    extended = database.execute(
        "UPDATE leases SET expires_at_s = :now + ttl_s WHERE id = :id AND expires_at_s > :now",
        {"id": lease.id, "now": now_s},
    )
    if extended.rowcount == 0:
        raise LeaseExpired(f"lease {lease.id} has ended")


def end_lease(database: sqlite3.Connection, lease_id: int) -> None:
    """Delete the lease and, as one revision, its keys."""
    keys = database.execute("SELECT key FROM kv WHERE lease_id = ? ORDER BY key", (lease_id,))
    revision = read_revision(database) + 1
    changes = [(revision, ordinal, key, None, 0) for ordinal, (key,) in enumerate(keys.fetchall())]
    database.execute("DELETE FROM leases WHERE id = ?", (lease_id,))
    if changes:
        database.execute("DELETE FROM kv WHERE lease_id = ?", (lease_id,))
        database.executemany("INSERT INTO changes VALUES (?, ?, ?, ?, ?)", changes)
        database.execute("UPDATE store SET revision = ?", (revision,))


def has_expired_leases(database: sqlite3.Connection, *, now_s: float) -> bool:
    """Return whether some lease is stored although its time is over."""
    row = database.execute(
        "SELECT 1 FROM leases WHERE expires_at_s <= ? LIMIT 1", (now_s,)
    ).fetchone()
    return row is not None


def end_expired_leases(database: sqlite3.Connection, *, now_s: float) -> None:
    """End every lease whose time is over, each as one revision."""
    rows = database.execute("SELECT id FROM leases WHERE expires_at_s <= ? ORDER BY id", (now_s,))
    for (lease_id,) in rows.fetchall():
        end_lease(database, lease_id)


def all_leases(database: sqlite3.Connection) -> list[int]:
    """Return the ids of all leases."""
    return [lease_id for (lease_id,) in database.execute("SELECT id FROM leases ORDER BY id")]
