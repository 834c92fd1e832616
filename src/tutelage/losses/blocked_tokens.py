"""nll and dft from blocks of the vocabulary.

The target is left out of the sum over the vocabulary: with L the log of that sum and s the target's logit,
1 − p = sigmoid(L − s), so that neither the loss nor the gradient of a target that is nearly certain is a
difference of numbers that are nearly equal.
"""

import math

import torch
from torch import Tensor

from tutelage.losses.gradient_sums import GradientSums
from tutelage.losses.statistics import TokenStats
from tutelage.losses.vocabulary_blocks import (
    LARGEST_SUM,
    Block,
    BlockedChunk,
    BlockedHead,
    TokenPlaces,
    Workspace,
    exponentials_,
    row_maxima,
    row_sums,
    summed,
)


class BlockedTokens(BlockedChunk):
    """A chunk's targets and weights. Results: `value_n`, `stats`. Tiles have to be kept if the head is trained."""

    value_n: Tensor
    stats: TokenStats

    def __init__(
        self,
        head: BlockedHead,
        sums: GradientSums,
        span: slice,
        targets_N: Tensor,
        weights_N: Tensor,
        workspace: Workspace,
        *,
        weighted_by_probability: bool,
    ) -> None:
        super().__init__(head, sums, span, workspace)
        self.targets_n = targets_N[span]
        self.weights_n = weights_N[span].to(head.weight.dtype)
        self.weighted_by_probability = weighted_by_probability
        self._scaled_nD = head.scaled(self.hidden_nD)
        self._places = TokenPlaces(self.targets_n, workspace.blocks)
        self._target_n = self._scaled_nD.new_zeros(self.rows)
        self._largest_n = self._scaled_nD.new_full((self.rows,), -math.inf)
        self._others: list[Tensor] = []

    def measure(self, number: int, block: Block) -> None:
        tile_pnw = self.workspace.tile(block, self.rows)
        self.head.product(self._scaled_nD, block, tile_pnw)
        self.head.add_bias(tile_pnw, block)
        torch.maximum(self._largest_n, row_maxima(tile_pnw), out=self._largest_n)
        if number == 0:
            self._reference_n = self._largest_n.clone()
        if self._places.any_inside(number):
            place = self._places.inside(number, block)
            self._target_n[place[1]] = tile_pnw[place]
            tile_pnw[place] = -math.inf
        exponentials_(tile_pnw.sub_(self._reference_n.unsqueeze(-1)))
        self._others.append(row_sums(tile_pnw))
        self.add_to_hidden(tile_pnw, block)

    def conclude(self) -> bool:
        others_n = summed(self._others)
        excess_n = self._reference_n + others_n.log() - self._target_n
        nll_n = torch.logaddexp(excess_n, torch.zeros_like(excess_n))
        probability_n = excess_n.neg().sigmoid()
        self.stats = TokenStats(nll_n, probability_n, self._target_n >= self._largest_n)
        weight_n = self.head.factor * self.weights_n
        self.value_n = nll_n
        if self.weighted_by_probability:
            self.value_n = probability_n * nll_n
            weight_n = weight_n * probability_n
        self._scale_n = weight_n / (others_n + (self._target_n - self._reference_n).exp())
        self._target_scale_n = weight_n * excess_n.sigmoid()
        return bool((nll_n.isfinite() & (others_n < LARGEST_SUM)).all())

    def differentiate(self, block: Block) -> None:
        if self.sums.of_head:
            self.add_to_head(self.workspace.tile(block, self.rows), block, self._scale_n)

    def finish(self) -> None:
        target_scale_n1 = self._target_scale_n.unsqueeze(-1)
        if self.sums.hidden is not None:
            at_target_nD = self.head.weight[self.targets_n].mul_(target_scale_n1)
            self.sums.hidden[self.span] = self.hidden_gradient(self._scale_n).sub_(at_target_nD)
        if self.sums.weight is not None:
            self.sums.weight.index_add_(0, self.targets_n, self.hidden_nD * target_scale_n1, alpha=-1)
        if self.sums.bias is not None:
            self.sums.bias.index_add_(0, self.targets_n, self._target_scale_n, alpha=-1)
