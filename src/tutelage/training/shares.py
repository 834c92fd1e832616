"""Equal shares of the rows for every process, without a row that counts twice. Not here: the order of the rows."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset

from tutelage.data.rows import IGNORE_INDEX, TokenRow


class FilledRows(Dataset[Any]):
    """The rows, then blank ones up to a multiple of `multiple`: the rows that all processes take in a batch each.

    Processes have to take equally many batches. Left to itself, accelerate gives those that would go short rows
    from the beginning of the epoch again, and the last step then differs from that of one process. A blank row is
    the first row with nothing to train.
    """

    def __init__(self, rows: Sequence[Any], multiple: int) -> None:
        self.num_rows = len(rows)
        self._rows = rows
        self._length = -(-len(rows) // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        return self._rows[index] if index < self.num_rows else _blank(self._rows[0])


def _blank(row: Any) -> Any:
    if isinstance(row, list):  # a pack
        return [_blank(row[0])]
    if isinstance(row, TokenRow):
        return dataclasses.replace(row, labels=[IGNORE_INDEX] * len(row.labels), weight=0.0)
    return dataclasses.replace(row, weight=0.0)
