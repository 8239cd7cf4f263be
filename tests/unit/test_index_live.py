from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annheal.index import LiveBitmap


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.booleans(), max_size=70))
def test_bitmap_is_the_mask_it_was_made_from(bits: list[bool]) -> None:
    mask = np.array(bits, dtype=np.bool_)
    live = LiveBitmap.from_mask(mask)
    members = np.flatnonzero(mask)
    assert live.rows == len(bits)
    assert live.count == sum(bits)
    np.testing.assert_array_equal(live.mask(), mask)
    np.testing.assert_array_equal(live.members(), members)
    np.testing.assert_array_equal(live.contains(np.arange(len(bits))), mask)
    again = LiveBitmap.from_rows(members, rows=len(bits))
    np.testing.assert_array_equal(again.packed, live.packed)
    assert LiveBitmap.from_packed(live.packed, rows=live.rows).count == live.count


def test_intersection() -> None:
    left = np.array([True, True, False, False] * 5)
    right = np.array([True, False] * 10)
    both = LiveBitmap.from_mask(left) & LiveBitmap.from_mask(right)
    np.testing.assert_array_equal(both.mask(), left & right)
    assert both.count == 5


def test_wrong_size_is_refused() -> None:
    with pytest.raises(ValueError, match="bitmap"):
        LiveBitmap(np.zeros(2, dtype=np.uint8), rows=8, count=0)


def test_bits_cannot_be_changed() -> None:
    live = LiveBitmap.from_mask(np.ones(3, dtype=np.bool_))
    with pytest.raises(ValueError, match="read-only"):
        live.packed[0] = 0
