"""In which order the rows come: a function of seed and epoch alone, so that a continued run finds it again."""

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler


class EpochSampler(Sampler[int]):
    """A new order of the rows each epoch. The last `num_blank` indices, those of blank rows, stay last."""

    def __init__(self, num_rows: int, seed: int, num_blank: int = 0) -> None:
        self._num_rows = num_rows
        self._num_blank = num_blank
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._num_rows + self._num_blank

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self._num_rows, generator=generator).tolist()
        return iter([*order, *range(self._num_rows, len(self))])


class GroupSampler(Sampler[int]):
    """Each row `group` times in a row, `rows_per_step` rows a step; the rows that fill no step are left out.

    A step's rows come `repeats` times: once for each micro-batch, of which the first one samples for all. That is how
    TRL's GRPO trainer wants them; its own sampler has another order after a run is continued than before.
    """

    def __init__(self, rows: Sized, seed: int, *, group: int, rows_per_step: int, repeats: int) -> None:
        self._order = EpochSampler(len(rows), seed)
        self._group, self._rows_per_step, self._repeats = group, rows_per_step, repeats
        self._steps = len(rows) // rows_per_step

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return self._steps * self._repeats * self._rows_per_step * self._group

    def __iter__(self) -> Iterator[int]:
        order = list(self._order)
        for step in range(self._steps):
            rows = order[step * self._rows_per_step : (step + 1) * self._rows_per_step]
            for _ in range(self._repeats):
                yield from (row for row in rows for _ in range(self._group))
