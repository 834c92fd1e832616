"""Puts several rows into one sequence, so that little is spent on padding.

Which tokens may see each other is not decided here: `packed_batch` in collators.py keeps rows apart.
"""

import heapq
from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import NDArray

from tutelage.data.rows import TokenRow
from tutelage.data.token_rows import TokenRows
from tutelage.errors import DataError


class Packs(Sequence[list[TokenRow]]):
    """Packs of rows, made anew each time they are asked for. `num_rows`, `num_tokens`: of all packs together."""

    def __init__(
        self, rows: Sequence[TokenRow], order: NDArray[np.int64], ends: NDArray[np.int64], tokens: int
    ) -> None:
        """order: indices of rows, those of one pack beside each other. ends: where each pack ends in it."""
        self._rows, self._order, self._ends = rows, order, ends
        self.num_tokens = tokens

    @property
    def num_rows(self) -> int:
        return len(self._order)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> list[TokenRow]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[TokenRow]]: ...
    def __getitem__(self, index: int | slice) -> list[TokenRow] | list[list[TokenRow]]:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self._ends[index - 1]) if index else 0
        return [self._rows[row] for row in self._order[start : int(self._ends[index])].tolist()]


def pack_rows(rows: Sequence[TokenRow], max_seq_length: int) -> Packs:
    """Best-fit decreasing: longest row first, each into the fullest pack that still holds it.

    Every row is in exactly one pack and whole; no pack has more than max_seq_length tokens; the same rows in
    the same order give the same packs. Packs come out longest row first, so shuffle them before training.
    Written by hand because the packing of TRL and datasets joins columns of ids, and rows have to keep their
    identity, weight and place. Only the lengths of the rows are looked at, where they are at hand.

    Raises DataError for a row that is too long on its own (prepare.py never lets one through).
    """
    lengths = _lengths(rows)
    longest_first = np.argsort(-lengths, kind="stable")
    if len(rows) and (length := int(lengths[longest_first[0]])) > max_seq_length:
        raise DataError(
            f"{rows[int(longest_first[0])].place}: the row has {length} tokens, more than max_seq_length "
            f"{max_seq_length}; set max_seq_length to {length} or remove the row"
        )
    pack_of = np.empty(len(rows), np.int64)
    num_packs = 0
    # Of each number of tokens left, the packs that have it, and the bits of the numbers that some pack has: the
    # fullest pack that fits is the lowest bit from the row's length on.
    free: list[list[int]] = [[] for _ in range(max_seq_length + 1)]
    known = 0
    for row, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
        fitting = known >> length
        if fitting:
            left = length + (fitting & -fitting).bit_length() - 1
            pack = heapq.heappop(free[left])
            if not free[left]:
                known ^= 1 << left
        else:
            left, pack = max_seq_length, num_packs
            num_packs += 1
        pack_of[row] = pack
        heapq.heappush(free[left - length], pack)
        known |= 1 << (left - length)
    # Rows of one pack stay longest first.
    order = longest_first[np.argsort(pack_of[longest_first], kind="stable")]
    ends = np.cumsum(np.bincount(pack_of, minlength=num_packs)) if len(rows) else np.empty(0, np.int64)
    return Packs(rows, order, ends, int(lengths.sum()))


def _lengths(rows: Sequence[TokenRow]) -> NDArray[np.int64]:
    return rows.lengths if isinstance(rows, TokenRows) else np.array([len(row.input_ids) for row in rows], np.int64)
