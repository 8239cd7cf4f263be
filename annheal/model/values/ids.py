"""Ids: texts, and nothing that would have to be turned into one."""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Set, ValuesView
from typing import Any

import pyarrow as pa

from annheal.model.values.rows import listed, rows_of
from annheal.model.values.scalars import fit_keyword, is_whole_number
from annheal.model.values.unfit import UnfitValue, shown, type_word


def id_texts(ids: Any, *, whole_numbers: bool = False, ordered: bool = False) -> list[str]:
    """Return ids as texts, in order; iterators and (unless `ordered`) sets will do too.

    A number is refused, since "1" and 1 would be one id, and so is everything else that is no text;
    with `whole_numbers` (files hold them) an integer is taken as it is written in decimal. Raises
    `UnfitValue` that names the row. Lengths are for `annheal.model.validation.validate_ids`.
    """
    if isinstance(ids, Iterator | KeysView | ValuesView) or (isinstance(ids, Set) and not ordered):
        ids = list(ids)
    texts = listed(rows_of(ids))
    if all(type(text) is str and text.isascii() for text in texts):
        return texts
    return [_id_text(value, row=row, numbers=whole_numbers) for row, value in enumerate(texts)]


def _id_text(value: Any, *, row: int, numbers: bool) -> str:
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    if value is None:
        raise UnfitValue("is missing; every record needs an id", row=row)
    if isinstance(value, str):
        try:
            return fit_keyword(value)
        except UnfitValue as error:
            raise UnfitValue(f"is no valid Unicode text: {error.reason}", row=row) from None
    if numbers and is_whole_number(value):
        return str(int(value))
    raise UnfitValue(
        f"{shown(value)} is {type_word(value)}, and an id is a text; send str(id) if that names it",
        row=row,
    )
