"""The tensors of one layer of a decoder of the Llama family. Not here: what is done with them, a prefill or a step."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.rollouts.products import SideBySide


@dataclass(frozen=True)
class Norm:
    """x / √(mean(x²) + ε) · w, computed in float32 whatever the type, as the family does."""

    weight: Tensor
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            return functional.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)
        wide = x.float()
        return self.weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)).to(x.dtype)

    def into(self, x: Tensor, out: Tensor) -> Tensor:
        """The same, written into `out`, which may be x.

        On a CPU as x / hypot(|x|, √(ε n)) · w √n: four operations, and nothing new for them to write to.
        """
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return out.copy_(self(x))
        scaled_weight, floor = self._scaled
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return torch.div(x, torch.hypot(length, floor, out=length), out=out).mul_(scaled_weight)

    @cached_property
    def _scaled(self) -> tuple[Tensor, Tensor]:
        """w √n, and √(ε n)."""
        size = len(self.weight)
        return self.weight * size**0.5, self.weight.new_tensor((self.epsilon * size) ** 0.5)


@dataclass(frozen=True)
class Layer:
    norm_before: Norm
    queries_keys_values: SideBySide
    query_norm: Norm | None
    key_norm: Norm | None
    output: SideBySide
    norm_between: Norm
    gate_up: SideBySide
    down: SideBySide

    @property
    def groups(self) -> tuple[SideBySide, ...]:
        return self.queries_keys_values, self.output, self.gate_up, self.down
