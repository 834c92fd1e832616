"""Puts several rows into one sequence, so that little is spent on padding.

Which tokens may see each other is not decided here: `packed_batch` in collators.py keeps rows apart.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

from tutelage.data.rows import TokenRow
from tutelage.errors import DataError


def pack_rows(rows: Sequence[TokenRow], max_seq_length: int) -> list[list[TokenRow]]:
    """Best-fit decreasing: longest row first, each into the fullest pack that still holds it.

    Every row is in exactly one pack and whole; no pack has more than max_seq_length tokens; the same rows in
    the same order give the same packs. Packs come out longest row first, so shuffle them before training.
    Written by hand because the packing of TRL and datasets joins columns of ids, and rows have to keep their
    identity, weight and place. O(n log n) comparisons.

    Raises DataError for a row that is too long on its own (prepare.py never lets one through).
    """
    packs: list[list[TokenRow]] = []
    free: list[tuple[int, int]] = []  # (tokens left, index of the pack), sorted
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        length = len(row.input_ids)
        if length > max_seq_length:
            raise DataError(
                f"{row.place}: the row has {length} tokens, more than max_seq_length {max_seq_length}; "
                f"set max_seq_length to {length} or remove the row"
            )
        fitting = bisect_left(free, (length, 0))
        if fitting < len(free):
            left, index = free.pop(fitting)
        else:
            left, index = max_seq_length, len(packs)
            packs.append([])
        packs[index].append(row)
        insort(free, (left - length, index))
    return packs
