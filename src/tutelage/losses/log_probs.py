"""Log-probabilities of given tokens, for losses that are functions of them: ratios of policies, clipped or not.

The chunked head gives their gradients as it gives those of the NLL. Not here: such losses, and chunks.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tutelage.losses.chunked import TokenResult, token_objective
from tutelage.losses.head import AnyHead, Head
from tutelage.losses.known_gradient import attach_gradients


class TokenLogProbs(NamedTuple):
    """Both in nats, float32 or float64, shape [N]."""

    log_prob: Tensor
    """log p of each token; differentiable, once."""
    entropy: Tensor
    """H(p), a constant. Of shape [0] unless it was asked for."""


def token_log_probs(
    hidden_ND: Tensor,
    head: AnyHead,
    tokens_N: Tensor,
    *,
    temperature: float = 1.0,
    with_entropy: bool = False,
    chunk_size: int | None = None,
) -> TokenLogProbs:
    """log softmax(logits / temperature) at the tokens, position n of `hidden_ND` predicting `tokens_N[n]`.

    Gradients reach the hidden states and the head's weight and bias, each if it requires grad. With a frozen head they
    are formed next to the logits; a trained one is gone through a second time when the gradient to each log-probability
    is known, since a sum for each position would be as large as the head. Errors as in `token_objective`.
    """
    if not isinstance(head, Head):
        hidden_ND = head.logits(hidden_ND) / temperature
    elif temperature != 1.0:
        head = head.at_temperature(temperature)
    weight_VD, bias_V = (head.weight, head.bias) if isinstance(head, Head) else (None, None)
    options = {"with_entropy": with_entropy, "chunk_size": chunk_size}
    is_trained = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (weight_VD, bias_V)
    )
    if is_trained:
        entropies: list[Tensor] = []
        known = hidden_ND, weight_VD, bias_V, head, tokens_N, options, entropies
        log_prob_N = cast("Tensor", _Recomputed.apply(*known))  # pyright: ignore[reportUnknownMemberType]
        return TokenLogProbs(log_prob_N, entropies[0])
    # A row of hidden states has a part in one NLL only: the gradient of the sum is the gradient of each.
    leaf_ND = hidden_ND.detach().requires_grad_(torch.is_grad_enabled() and hidden_ND.requires_grad)
    result = _nll_sum(leaf_ND, head, tokens_N, options)
    log_prob_N = -result.stats.nll
    if leaf_ND.requires_grad:
        (gradient_ND,) = torch.autograd.grad(result.loss_sum, leaf_ND)
        log_prob_N = attach_gradients(log_prob_N, [(hidden_ND, gradient_ND.neg_())])
    return TokenLogProbs(log_prob_N, result.stats.entropy)


def _nll_sum(
    hidden_ND: Tensor, head: AnyHead, tokens_N: Tensor, options: dict[str, Any], weights_N: Tensor | None = None
) -> TokenResult:
    if weights_N is None:
        weights_N = torch.ones(tokens_N.shape, device=tokens_N.device)
    return token_objective(hidden_ND, head, tokens_N, weights_N, **options)


class _Recomputed(torch.autograd.Function):
    """log p [N] of hidden states [N, D], weight [V, D] and bias [V]."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it as (ctx, *args)
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        head: Head,
        tokens_N: Tensor,
        options: dict[str, Any],
        entropies: list[Tensor],
    ) -> Tensor:
        stats = _nll_sum(hidden_ND, head, tokens_N, options).stats
        entropies.append(stats.entropy)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, tokens_N)
        ctx.head, ctx.options = head, {**options, "with_entropy": False}
        device = hidden_ND.device.type
        ctx.autocast = {"dtype": torch.get_autocast_dtype(device), "enabled": torch.is_autocast_enabled(device)}
        return -stats.nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as above
        hidden_ND, weight_VD, bias_V, tokens_N = ctx.saved_tensors
        inputs = (hidden_ND, weight_VD, bias_V)
        leaves: list[Any] = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip(inputs, ctx.needs_input_grad[:3], strict=True)
        ]
        head = Head(leaves[1], leaves[2], ctx.head.softcap, ctx.head.scale)
        with torch.enable_grad(), torch.autocast(hidden_ND.device.type, **ctx.autocast):
            loss_sum = _nll_sum(leaves[0], head, tokens_N, ctx.options, -grad_N).loss_sum
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        found = iter(torch.autograd.grad(loss_sum, wanted))
        gradients = [next(found) if leaf is not None and leaf.requires_grad else None for leaf in leaves]
        return *gradients, None, None, None, None
