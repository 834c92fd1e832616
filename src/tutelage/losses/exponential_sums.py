"""Sums of exponentials over the blocks of the vocabulary, row by row, without an overflow.

The exponentials are taken relative to a reference, which is about the largest logit that came so far. What is
summed up, and where the exponentials are kept, is elsewhere.
"""

import math
from collections import defaultdict

import torch
from torch import Tensor
from torch.nn import functional

LARGEST_RISE = 30.0
"""A logit further above its reference raises it: e³⁰ = 1e13 is far from an overflow even as a sum of products."""

SMALLEST_EXPONENTIAL = 1e-28
"""An exponential below it (e⁻⁶⁴ of its reference) counts as 0. No float64 sum notices, and the products that
follow would become denormal numbers, with which a matrix product takes up to 200 times as long."""

LOWEST_REFERENCE = -1e30
"""The reference while all logits are −∞: finite, so that their exponentials are 0."""


def exponentials_(logits_pnw: Tensor) -> Tensor:
    """exp in place, with 0 for what is too small."""
    return functional.threshold(logits_pnw.exp_(), SMALLEST_EXPONENTIAL, 0.0, inplace=True)


def rescaled_(exponentials_pnw: Tensor, factor_n: Tensor) -> Tensor:
    """Each row times its factor in place, with 0 for what is too small."""
    return functional.threshold(exponentials_pnw.mul_(factor_n.unsqueeze(-1)), SMALLEST_EXPONENTIAL, 0.0, inplace=True)


def exponentiate_(
    sums: "ExponentialSums", logits_pnw: Tensor, spare_pnw: Tensor | None, *, has_impossible: bool
) -> None:
    """Exponentials in place and their sum; given a spare tile, also the sum of their products with the logits.

    has_impossible: whether logits may be −∞.
    """
    if spare_pnw is None:
        exponentials_(logits_pnw)
    else:
        exponentials_(spare_pnw.copy_(logits_pnw))
        if has_impossible:
            logits_pnw.clamp_(min=LOWEST_REFERENCE)  # −∞ · 0 is no number
        sums.add(logits_pnw.mul_(spare_pnw), "logits")
        logits_pnw.copy_(spare_pnw)
    sums.add(logits_pnw)


class ExponentialSums:
    """Σ e^(z − reference) of each row, and Σ e^(z − reference) · x for other x, in one part for each block.

    Each block begins with `meet` or `stay`. A reference that rises leaves what older blocks have made as it is: `fall`
    says by how much those are relative to a lower one. It rises by more than `LARGEST_RISE` if at all, so seldom.
    """

    def __init__(self) -> None:
        self._references: list[Tensor] = []
        self._parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def meet(self, largest_n: Tensor) -> Tensor | None:
        """Take notice of a block's largest logits; what to multiply sums of older exponentials by, None for 1."""
        if not self._references:
            self._references.append(largest_n.clamp(min=LOWEST_REFERENCE))
            return None
        reference_n = self.reference_n
        above_n = largest_n - reference_n > LARGEST_RISE
        if above_n.any():
            self._references.append(torch.where(above_n, largest_n, reference_n))
            return (reference_n - self.reference_n).exp()
        self._references.append(reference_n)
        return None

    def stay(self) -> None:
        """Instead of `meet`: the block keeps the reference, to be asked afterwards whether that `was_too_low`."""
        self._references.append(self.reference_n)

    def was_too_low(self) -> bool:
        """Whether the sums of the last block are so large that it should have risen."""
        # The sum of e¹⁶ = 9 million exponentials: in a block with fewer entries, one of them is above the rise.
        return bool((self._parts["1"][-1] > math.exp(LARGEST_RISE + 16.0)).any())

    def forget_block(self) -> None:
        """Leave out the last block, which will be added again."""
        for parts in (self._references, *self._parts.values()):
            parts.pop()

    @property
    def reference_n(self) -> Tensor:
        """What to subtract from the logits of the present block."""
        return self._references[-1]

    def fall(self, number: int) -> Tensor | None:
        """The reference of block `number` less the present one, None if it is the same."""
        then_n = self._references[number]
        return None if then_n is self.reference_n else then_n - self.reference_n

    def add(self, tile_pnw: Tensor, name: str = "1") -> None:
        """A block's exponentials, or their products with what `name` says."""
        self._parts[name].append(row_sums(tile_pnw))

    def total(self, name: str = "1") -> Tensor:
        """Σ e^(z − reference) · x over all blocks, [n]."""
        return (torch.stack(self._parts[name]) * self._falls().exp()).sum(0)

    def mean(self, name: str) -> Tensor:
        """Σ softmax(z) · x, [n]."""
        return self.total(name) / self.total()

    def log_total(self) -> Tensor:
        """log Σ e^z, [n]."""
        return self.reference_n + self.total().log()

    def entropy(self) -> Tensor:
        """H(softmax(z)) in nats, [n], if the products with z − reference were added as "logits"."""
        falls_bn = self._falls()
        products_bn = torch.stack(self._parts["logits"]) + falls_bn * torch.stack(self._parts["1"])
        total_n = self.total()
        return total_n.log() - (products_bn * falls_bn.exp()).sum(0) / total_n

    def _falls(self) -> Tensor:
        return torch.stack(self._references) - self.reference_n


def row_sums(tile_pnw: Tensor) -> Tensor:
    """[n]"""
    return tile_pnw.sum(-1).sum(0)


def row_maxima(tile_pnw: Tensor) -> Tensor:
    """[n]"""
    return tile_pnw.amax(-1).amax(0)
