"""Answers have a size limit: what is refused, and in which words (docs/limits.md)."""

from __future__ import annotations

from typing import Final

from annheal.errors import InvalidArgument
from annheal.model.limits import ANSWER_BYTES_MAX
from annheal.model.records import RecordSet

ANSWER_TOO_LARGE: Final = "ANSWER_TOO_LARGE"
"""The reason of the error; `answer_bytes` and `bytes_max` in its metadata say by how much."""
RECORD_BYTES: Final = 24
"""Of each record beside its values: score, tags and lengths."""
HITS_FIX: Final = (
    "ask for fewer hits or queries a call, or leave out payload and vectors and read them by id"
)
IDS_FIX: Final = "name fewer ids a call"


def records_bytes(records: RecordSet) -> int:
    """Return about how many bytes records take in a message."""
    found = RECORD_BYTES * len(records) + sum(map(len, records.ids))
    for part in (records.attributes, records.payloads, records.vectors, records.versions):
        found += 0 if part is None else part.nbytes
    return found + sum(one.vectors.nbytes for one in records.further)


def check_answer_size(
    total: int, *, field: str, fix: str, bytes_max: int = ANSWER_BYTES_MAX
) -> None:
    """Raise `InvalidArgument` for `field` unless records of `total` bytes fit into one answer."""
    if total <= bytes_max:
        return
    wrong = InvalidArgument.of(
        field, f"the answer would hold {total} bytes of records, the limit is {bytes_max}; {fix}"
    )
    raise InvalidArgument(
        wrong.message,
        violations=wrong.violations,
        reason=ANSWER_TOO_LARGE,
        metadata={"answer_bytes": str(total), "bytes_max": str(bytes_max)},
    )
