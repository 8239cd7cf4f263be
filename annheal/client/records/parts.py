"""Ids in parts of one request each, and errors of them in the words of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from annheal.client.inputs import in_callers_words, rows_renamed
from annheal.errors import InvalidArgument


def parts(ids: list[str], length: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the ids, at most `length` at a time, each time with the position of the first."""
    for start in range(0, len(ids), length):
        yield start, ids[start : start + length]


@contextmanager
def rows_from(start: int) -> Iterator[None]:
    """Name rows of a request that begins with the caller's row `start` as the caller counts."""
    try:
        yield
    except InvalidArgument as error:
        raise in_callers_words(error, rows_renamed(lambda row: start + row)) from error
