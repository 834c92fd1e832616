"""Sums and counts of what a step measures, so that a logged mean is a mean over tokens, steps and ranks."""

from typing import Any

import torch
from torch import Tensor


class MetricSums:
    """Named sums with their counts; `pop_means` divides and forgets."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, float] = {}

    def add(self, name: str, total: Tensor | float, count: float) -> None:
        """Add a sum over `count` items. Kept on the device: nothing waits for it until the mean is asked for."""
        value = torch.as_tensor(total).detach().double()
        self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._counts[name] = self._counts.get(name, 0.0) + count

    def pop_means(self, accelerator: Any = None) -> dict[str, float]:
        """Mean of every metric over all ranks; those without items are left out. All ranks need the same names."""
        names = sorted(self._sums)
        if not names:
            return {}
        totals_M2 = torch.tensor([[float(self._sums[name]), self._counts[name]] for name in names], dtype=torch.float64)
        if accelerator is not None and accelerator.num_processes > 1:
            totals_M2 = accelerator.reduce(totals_M2.to(accelerator.device), reduction="sum").cpu()
        self._sums, self._counts = {}, {}
        return {
            name: float(total / count)
            for name, (total, count) in zip(names, totals_M2.tolist(), strict=True)
            if count > 0
        }
