"""nll and dft from blocks of the vocabulary.

The target is left out of the sum over the vocabulary: with L the log of that sum and s the target's logit,
1 − p = sigmoid(L − s), so that neither the loss nor the gradient of a target that is nearly certain is a
difference of numbers that are nearly equal.
"""

import math

import torch
from torch import Tensor

from tutelage.losses.exponential_sums import (
    LOWEST_REFERENCE,
    ExponentialSums,
    exponentiate_,
    rescaled_,
    row_maxima,
)
from tutelage.losses.gradient_sums import GradientSums
from tutelage.losses.statistics import TokenStats
from tutelage.losses.vocabulary_blocks import Block, BlockedChunk, BlockedHead, TokenPlaces, Workspace


class BlockedTokens(BlockedChunk):
    """A chunk's targets and weights. Results: `value_n`, `stats`. Tiles have to be kept if the head is trained.

    For the entropy the workspace has a spare tile.
    """

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
        with_entropy: bool,
    ) -> None:
        super().__init__(head, sums, span, weights_N, workspace)
        self.targets_n = targets_N[span]
        self.weighted_by_probability = weighted_by_probability
        self.with_entropy = with_entropy
        self._scaled_nD = head.scaled(self.hidden_nD)
        self._places = TokenPlaces(self.targets_n, workspace.blocks)
        self._target_n = self._scaled_nD.new_zeros(self.rows)
        self._largest_other_n = self._scaled_nD.new_full((self.rows,), -math.inf)
        self._first_n = torch.ones_like(self.targets_n, dtype=torch.bool)
        self._others = ExponentialSums()

    def measure(self, number: int, block: Block) -> None:
        tile_pnw = self.workspace.tile(block, self.rows)
        self.head.logits(self._scaled_nD, block, tile_pnw)
        if self._places.any_inside(number):
            self._take_out_targets(number, block, tile_pnw)
        largest_other_n = row_maxima(tile_pnw)
        torch.maximum(self._largest_other_n, largest_other_n, out=self._largest_other_n)
        factor_n = self._others.meet(largest_other_n)
        if factor_n is not None:
            self.rescale_hidden(factor_n)
        self._add_others(number, block, tile_pnw.sub_(self._others.reference_n.unsqueeze(-1)))
        self.add_to_hidden(tile_pnw, block)

    def _add_others(self, number: int, block: Block, tile_pnw: Tensor) -> None:
        """Exponentials in place, and what is summed of them."""
        spare_pnw = None
        if self.with_entropy:
            (spare_pnw,) = self.workspace.spare_tiles(block, self.rows, 1)
            if self._places.any_inside(number):
                tile_pnw[self._places.inside(number, block)] = LOWEST_REFERENCE  # −∞ · 0 would be no number
        exponentiate_(self._others, tile_pnw, spare_pnw, has_impossible=self.head.has_impossible)

    def _take_out_targets(self, number: int, block: Block, tile_pnw: Tensor) -> None:
        """Note the logits of the block's targets, and whether an earlier entry is as large: argmax would take that."""
        piece_k, row_k, column_k = self._places.inside(number, block)
        target_k = tile_pnw[piece_k, row_k, column_k]
        tile_pnw[piece_k, row_k, column_k] = -math.inf
        rows_kS = tile_pnw[:, row_k].transpose(0, 1).flatten(1)
        later_kS = torch.arange(rows_kS.shape[1]) > (self.targets_n[row_k] - block.start).unsqueeze(-1)
        earlier_k = torch.maximum(rows_kS.masked_fill_(later_kS, -math.inf).amax(-1), self._largest_other_n[row_k])
        self._target_n[row_k] = target_k
        self._first_n[row_k] = target_k > earlier_k

    def conclude(self) -> bool:
        others_n = self._others.total()
        excess_n = self._others.log_total() - self._target_n
        nll_n = torch.logaddexp(excess_n, torch.zeros_like(excess_n))
        probability_n = excess_n.neg().sigmoid()
        correct_n = self._first_n & (self._target_n >= self._largest_other_n)
        entropy_n = self._entropy(nll_n, probability_n, excess_n) if self.with_entropy else nll_n.new_empty(0)
        self.stats = TokenStats(nll_n, probability_n, correct_n, entropy_n)
        weight_n = self.head.factor * self.weights_n
        self.value_n = nll_n
        if self.weighted_by_probability:
            self.value_n = probability_n * nll_n
            weight_n = weight_n * probability_n
        # 1 − p, shared out among the others.
        self._target_scale_n = weight_n * excess_n.sigmoid()
        self._scale_n = torch.where(others_n > 0, self._target_scale_n / others_n, 0.0)
        return bool(nll_n.isfinite().all() and entropy_n.isfinite().all())

    def _entropy(self, nll_n: Tensor, probability_n: Tensor, excess_n: Tensor) -> Tensor:
        """−p log p − q log q + q · H(others), with q = 1 − p."""
        q_n, minus_log_q_n = excess_n.sigmoid(), torch.logaddexp(-excess_n, torch.zeros_like(excess_n))
        return probability_n * nll_n + torch.where(q_n > 0, q_n * (minus_log_q_n + self._others.entropy()), 0.0)

    def differentiate(self, number: int, block: Block) -> None:
        if self.sums.of_head:
            tile_pnw = self.workspace.tile(block, self.rows)
            fall_n = self._others.fall(number)
            if fall_n is not None:
                rescaled_(tile_pnw, fall_n.exp())
            self.add_to_head(tile_pnw, block, self._scale_n)

    def finish(self) -> None:
        target_scale_n1 = self._target_scale_n.unsqueeze(-1)
        if self.sums.hidden is not None:
            self.set_hidden(self._scale_n)
            self.sums.hidden[self.span] -= self.head.weight[self.targets_n].mul_(target_scale_n1)
        if self.sums.weight is not None:
            self.sums.weight.index_add_(0, self.targets_n, self.hidden_nD * target_scale_n1, alpha=-1)
        if self.sums.bias is not None:
            self.sums.bias.index_add_(0, self.targets_n, self._target_scale_n, alpha=-1)
