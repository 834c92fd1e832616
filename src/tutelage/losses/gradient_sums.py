"""Where the gradients of a loss sum are collected: to the hidden states, the head's weight and its bias.

How the gradient to a logit is found is elsewhere.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.losses.head import AnyHead, Head
from tutelage.losses.per_position import compute_dtype


@dataclass
class GradientSums:
    """The gradients of the loss sum, in float32 or float64; None where nothing is trained."""

    inputs: Tensor
    head: AnyHead
    hidden: Tensor | None
    weight: Tensor | None
    """Not yet filled until `weight_holds_sum`: the first chunk by blocks writes it, without reading zeros."""
    bias: Tensor | None
    weight_holds_sum: bool = False

    @classmethod
    def for_trained(cls, hidden_ND: Tensor, head: AnyHead) -> "GradientSums":
        """Memory for whatever requires grad, nothing at all where gradients are disabled."""
        weight_VD, bias_V = (head.weight, head.bias) if isinstance(head, Head) else (None, None)
        return cls(
            hidden_ND, head, _zeros_if_trained(hidden_ND), _empty_if_trained(weight_VD), _zeros_if_trained(bias_V)
        )

    def fill_weight(self) -> None:
        """Zeros, if nothing was written yet."""
        if self.weight is not None and not self.weight_holds_sum:
            self.weight.zero_()
        self.weight_holds_sum = True

    @property
    def any(self) -> bool:
        """Whether anything is trained."""
        return self.hidden is not None or self.of_head

    @property
    def of_head(self) -> bool:
        """Whether the head is trained, its weight or its bias."""
        return self.weight is not None or self.bias is not None

    def add(self, span: slice, gradient_nV: Tensor, logits_nV: Tensor, left_out_n: Tensor) -> None:
        """Add what a chunk's gradient to its logits [n, V] gives; positions left out give 0 whatever they hold."""
        left_out_n1 = left_out_n.unsqueeze(-1)
        if not isinstance(self.head, Head):
            if self.hidden is not None:
                self.hidden[span] = gradient_nV.masked_fill_(left_out_n1, 0.0)
            return
        gradient_nV = self.head.gradient_before_scaling(gradient_nV, logits_nV).masked_fill_(left_out_n1, 0.0)
        if self.bias is not None:
            self.bias += gradient_nV.sum(0)
        # Products in the weight's dtype, as the forward product; only the sums are in float32.
        weight_VD = self.head.weight
        gradient_nV = gradient_nV.to(weight_VD.dtype)
        if self.hidden is not None:
            self.hidden[span] = gradient_nV @ weight_VD
        if self.weight is not None:
            self.fill_weight()
            self.weight += gradient_nV.mT @ self.inputs[span].masked_fill(left_out_n1, 0.0).to(weight_VD.dtype)

    def known(self) -> list[tuple[Tensor, Tensor]]:
        """The (tensor, gradient) pairs of what is trained."""
        self.fill_weight()
        pairs = [(self.inputs, self.hidden)]
        if isinstance(self.head, Head):
            pairs.append((self.head.weight, self.weight))
            if self.head.bias is not None:
                pairs.append((self.head.bias, self.bias))
        return [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]


def _zeros_if_trained(tensor: Tensor | None) -> Tensor | None:
    sums = _empty_if_trained(tensor)
    return None if sums is None else sums.zero_()


def _empty_if_trained(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not (torch.is_grad_enabled() and tensor.requires_grad):
        return None
    return torch.empty(tensor.shape, dtype=compute_dtype(tensor.dtype), device=tensor.device)
