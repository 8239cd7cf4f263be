"""How many texts travel together: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

CHARACTERS_PER_TOKEN = 4
"""Of English text with the usual vocabularies. Other languages have fewer characters per token,
so limits on tokens should leave room."""


def estimated_tokens(text: str) -> int:
    """Return about how many tokens a text has: a quarter of its UTF-8 bytes, at least one.

    Bytes instead of characters, because letters beyond ASCII have more tokens.
    """
    return max(1, -(-len(text.encode()) // CHARACTERS_PER_TOKEN))


def plan_batches(
    tokens: Sequence[int], *, texts_max: int, tokens_max: int
) -> list[tuple[int, ...]]:
    """Return the positions of the texts of every batch; each position is in exactly one.

    Texts of like length stand together, because some embedders pad a batch to its longest text. A
    batch has at most `texts_max` texts, and at most `tokens_max` tokens unless it is one text.
    """
    order = sorted(range(len(tokens)), key=lambda position: tokens[position])
    batches: list[tuple[int, ...]] = []
    batch: list[int] = []
    total = 0
    for position in order:
        if batch and (len(batch) >= texts_max or total + tokens[position] > tokens_max):
            batches.append(tuple(batch))
            batch, total = [], 0
        batch.append(position)
        total += tokens[position]
    if batch:
        batches.append(tuple(batch))
    return batches
