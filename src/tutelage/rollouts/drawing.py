"""From a model's logits to the next tokens. Not here: where the logits come from."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import TopPLogitsWarper

LARGEST_BLOCK = 512
"""Tokens whose probabilities are added up before the one that is drawn is looked for among them."""


def uniforms(seed: int, count: int) -> Tensor:
    """A row's own draws, float64 [count] in [0, 1): the n-th for its n-th token."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Drawing:
    """temperature 0 is greedy; top_p keeps the fewest tokens whose probabilities reach it, after the temperature."""

    temperature: float
    top_p: float
    stop_ids: Collection[int]
    min_new_tokens: int = 0

    @property
    def is_greedy(self) -> bool:
        return self.temperature <= 0

    def __call__(self, logits_NV: Tensor, uniform_N: Tensor | None, lengths: Sequence[int]) -> Tensor:
        """The next token of each row, int64 [N]; `logits_NV` is float32 and is overwritten.

        lengths: how many tokens each row has so far; none of `stop_ids` comes before min_new_tokens.
        """
        early = [row for row, length in enumerate(lengths) if length < self.min_new_tokens]
        known = [token for token in self.stop_ids if token < logits_NV.shape[-1]]
        if early and known:
            rows, stops = (torch.tensor(ids, device=logits_NV.device) for ids in (early, known))
            logits_NV[rows[:, None], stops] = float("-inf")
        if self.is_greedy or uniform_N is None:
            return logits_NV.argmax(dim=-1)
        if self.temperature != 1.0:
            logits_NV /= self.temperature
        if self.top_p < 1.0:
            logits_NV = TopPLogitsWarper(self.top_p)(torch.empty(0), logits_NV)  # pyright: ignore[reportArgumentType]
        return inverse_cdf(logits_NV, uniform_N)


def inverse_cdf(logits_NV: Tensor, uniform_N: Tensor) -> Tensor:
    """The first token whose cumulative probability is above the row's uniform number; `logits_NV` is overwritten.

    Probabilities are added up in float64, by blocks first: a vocabulary of 49152 is then searched as 96 sums and one
    block of 512. A token of probability 0 is never drawn.
    """
    rows, size = logits_NV.shape
    weights_NV = logits_NV.sub_(logits_NV.amax(dim=-1, keepdim=True)).exp_()
    block = max(width for width in range(1, min(LARGEST_BLOCK, size) + 1) if size % width == 0)
    weights_NBW = weights_NV.view(rows, size // block, block)
    cdf_NB = weights_NBW.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    target_N1 = uniform_N[:, None] * cdf_NB[:, -1:]
    block_N1 = _first_above(cdf_NB, target_N1)
    row_N = torch.arange(rows, device=logits_NV.device)
    before_N1 = torch.where(block_N1 > 0, cdf_NB.gather(1, (block_N1 - 1).clamp_(min=0)), 0.0)
    cdf_NW = weights_NBW[row_N, block_N1[:, 0]].double().cumsum_(dim=-1).add_(before_N1)
    return (block_N1 * block + _first_above(cdf_NW, target_N1))[:, 0]


def _first_above(cdf_NV: Tensor, target_N1: Tensor) -> Tensor:
    """The first place above the target, which rounding may have put at the very end: it is taken back inside."""
    end_N1 = cdf_NV[:, -1:].contiguous()
    inside_N1 = torch.minimum(target_N1, torch.nextafter(end_N1, torch.zeros_like(end_N1)))
    return torch.searchsorted(cdf_NV, inside_N1, right=True).clamp_(max=cdf_NV.shape[-1] - 1)
