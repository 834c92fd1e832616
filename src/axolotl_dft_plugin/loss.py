"""The loss, from logits or inside the model's forward pass. Torch; everything else of the package can be read without.

Both ways give the same sums, held to each other by a test. Not here: when which is used (`trainer.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100

Sums = dict[str, Tensor]
"""Sums over the trained positions, scalars: `dft_loss` (nats, differentiable), `nll` (nats), `probability`, `tokens`.

A dict, since that is what a trainer and whatever wraps its model take from a forward pass.
"""


def dense_sums(logits_BTV: Tensor, labels_BT: Tensor) -> Sums:
    """Σ −sg(p_t)·log p_t and what is logged beside it. Eq. 9, arXiv:2508.05629.

    logits_BTV [B, T, V] of any float type, computed in float32 (float64 stays); labels_BT [B, T]. Position t predicts
    label t+1, −100 is left out. The probability is exp(−NLL), a constant weight: no second softmax, no gradient.
    No trained position gives 0 with zero gradient.
    """
    targets_BT = labels_BT[:, 1:].to(logits_BTV.device)
    trained_BT = targets_BT != IGNORE_INDEX
    logits_NV = logits_BTV[:, :-1][trained_BT]
    if logits_NV.dtype != torch.float64:
        logits_NV = logits_NV.float()
    nll_N = functional.cross_entropy(logits_NV, targets_BT[trained_BT], reduction="none")
    probability_N = nll_N.detach().neg().exp()
    # A target of probability 0 has an infinite NLL, and 0 · ∞ is NaN.
    loss_N = torch.where(probability_N > 0, probability_N * nll_N, 0.0)
    return _sums(loss_N.sum(), nll_N.detach(), probability_N)


def sums_in_forward(labels_BT: Tensor) -> Callable[[Tensor, Any], Sums]:
    """The same sums as a function of hidden states [B, T, D] and `tutelage`'s head: no [B, T, V] logits.

    For `tutelage.models.head.attach_head`, which calls it in the model's own forward pass.
    """
    from tutelage.losses import token_objective

    def through_head(hidden_BTD: Tensor, head: Any) -> Sums:
        targets_BT = labels_BT[:, 1:].to(hidden_BTD.device)
        trained_BT = targets_BT != IGNORE_INDEX
        targets_N = targets_BT[trained_BT]
        ones_N = torch.ones(targets_N.shape, device=targets_N.device)
        result = token_objective(hidden_BTD[:, :-1][trained_BT], head, targets_N, ones_N, "dft")
        sums = _sums(result.loss_sum, result.stats.nll, result.stats.probability)
        # Where a model is spread over devices, a trainer expects its loss on the device of the batch.
        return {name: value.to(labels_BT.device) for name, value in sums.items()}

    return through_head


def per_token(loss_sum: Tensor, tokens: Tensor | float) -> Tensor:
    """The sum over the number of tokens; over 1 where there is none, so that an all-masked batch gives 0."""
    return loss_sum / torch.as_tensor(tokens, device=loss_sum.device).clamp(min=1)


def added(sums: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> Sums:
    """Both sums together, detached and on their device: nothing waits for them until they are logged."""
    exact = exact_dtype(more["tokens"].device)
    return {name: sums.get(name, 0) + value.detach().to(exact) for name, value in more.items()}


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64 where the device surely has it: an evaluation may have more tokens than float32 can count."""
    return torch.float64 if device.type in ("cpu", "cuda") else torch.float32


def _sums(loss_sum: Tensor, nll_N: Tensor, probability_N: Tensor) -> Sums:
    return {
        "dft_loss": loss_sum,
        "nll": nll_N.sum(),
        "probability": probability_N.sum(),
        "tokens": torch.tensor(float(nll_N.numel()), device=nll_N.device),
    }
