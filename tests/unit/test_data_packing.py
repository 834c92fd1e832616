"""Packs hold every row once and whole, none is too long, and they are nearly full."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.data.packing import pack_rows
from tutelage.data.rows import TokenRow
from tutelage.errors import DataError


def rows_of(lengths: list[int]) -> list[TokenRow]:
    return [
        TokenRow(list(range(length)), [-100] * length, 1.0, row, f"rows.jsonl:{row + 1}")
        for row, length in enumerate(lengths)
    ]


def packed_lengths(lengths: list[int], limit: int) -> list[list[int]]:
    return [[len(row.input_ids) for row in pack] for pack in pack_rows(rows_of(lengths), limit)]


def test_each_row_goes_where_least_space_is_left() -> None:
    """Limit 10. 7 | 6; then 4 fits exactly beside 6, 3 exactly beside 7; 2 and 2 open a third pack."""
    assert packed_lengths([2, 4, 6, 3, 7, 2], 10) == [[7, 3], [6, 4], [2, 2]]
    # limit 100: 60 | 55 + 42 leaves 40 and 3; the 3 goes where it fits best, not into the first pack
    assert packed_lengths([60, 55, 42, 3], 100) == [[60], [55, 42, 3]]


def test_equal_rows_keep_their_order() -> None:
    packs = pack_rows(rows_of([3, 3, 3, 3]), 6)
    assert [[row.row for row in pack] for pack in packs] == [[0, 1], [2, 3]]


def test_a_row_longer_than_a_pack_is_refused() -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2: the row has 11 tokens, more than max_seq_length 10"):
        pack_rows(rows_of([10, 11]), 10)


def test_no_rows_no_packs() -> None:
    assert list(pack_rows([], 10)) == []


@given(st.lists(st.integers(1, 32), max_size=60), st.integers(32, 80))
def test_every_row_once_none_too_long_same_again(lengths: list[int], limit: int) -> None:
    rows = rows_of(lengths)
    packs = pack_rows(rows, limit)
    assert Counter(row.row for pack in packs for row in pack) == Counter(range(len(rows)))
    assert all(row is rows[row.row] for pack in packs for row in pack)
    sizes = [sum(len(row.input_ids) for row in pack) for pack in packs]
    assert all(0 < size <= limit for size in sizes)
    assert list(pack_rows(rows, limit)) == list(packs)
    # any-fit: no two packs could be merged, so at most one is half full or less
    assert sum(2 * size <= limit for size in sizes) <= 1
