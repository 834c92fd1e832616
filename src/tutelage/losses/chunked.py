"""Loss and gradient through the head, chunk by chunk: no [batch, position, vocabulary] tensor.

The gradients to hidden states, weight and bias are formed in the forward pass, next to the logits they come
from, so nothing is recomputed. What to divide by, which positions to pass and what to log are the caller's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

from tutelage.errors import ConfigError, ShapeError, nearest
from tutelage.losses import per_position
from tutelage.losses.head import AnyHead, Head
from tutelage.losses.known_gradient import attach_gradients
from tutelage.losses.per_position import Divergence, ValueAndGradient, compute_dtype, log_probabilities
from tutelage.losses.positions import require_shape, require_vocabulary
from tutelage.losses.statistics import DivergenceStats, TokenStats, measure_divergence, measure_tokens

TokenObjective = Literal["nll", "dft"]

CHUNK_ELEMENTS = 2**24
"""Logits per chunk unless told otherwise: 64 MiB in float32, of which a few copies live at a time."""

MIN_CHUNK_ROWS = 32
"""Below this many rows the product with the head no longer uses the hardware well."""

# Logits of a chunk, which positions they belong to, whether the gradient is needed -> loss and statistics.
_Stats = TypeVar("_Stats")
_Rows = Callable[[Tensor, slice, bool], tuple[ValueAndGradient, _Stats]]

_TOKEN_RULES = {"nll": per_position.nll, "dft": per_position.dft}


@dataclass(frozen=True)
class TokenResult:
    """Σ_n weight_n · loss_n (a scalar, differentiable, in nats), and what was measured at each position."""

    loss_sum: Tensor
    stats: TokenStats


@dataclass(frozen=True)
class DivergenceResult:
    """Σ_n weight_n · divergence_n (a scalar, differentiable, in nats), and what was measured at each position."""

    loss_sum: Tensor
    stats: DivergenceStats


def token_objective(
    hidden_ND: Tensor,
    head: AnyHead,
    targets_N: Tensor,
    weights_N: Tensor,
    objective: TokenObjective = "nll",
    chunk_size: int | None = None,
) -> TokenResult:
    """Σ_n w_n · (−log p_n) for `nll`, Σ_n w_n · (−sg(p_n)·log p_n) for `dft` (arXiv:2508.05629), not normalised.

    Position n of `hidden_ND` predicts `targets_N[n]`: nothing is shifted. A position of weight 0 is measured but
    gives neither loss nor gradient, whatever it holds. Gradients reach the hidden states and the head's weight
    and bias, each if it requires grad. `chunk_size` counts positions. With an `IdentityHead` hidden states are logits.
    Raises ShapeError if shapes disagree or a target has no logit, ConfigError for an unknown objective or chunk size.
    """
    if objective not in _TOKEN_RULES:
        raise ConfigError(
            f"token objective '{objective}' is not one of {', '.join(_TOKEN_RULES)}{nearest(objective, _TOKEN_RULES)}"
        )
    _require_positions(hidden_ND, head, "hidden", {"targets": targets_N, "weights": weights_N})
    require_vocabulary("targets", targets_N, head.vocabulary)
    rule = _TOKEN_RULES[objective]

    def rows(logits_nV: Tensor, span: slice, with_gradient: bool) -> tuple[ValueAndGradient, TokenStats]:
        logp_nV = log_probabilities(logits_nV)
        loss = rule(logp_nV, targets_N[span], with_gradient=with_gradient)
        return loss, measure_tokens(logp_nV, targets_N[span])

    loss_sum, stats = _weighted_sum(hidden_ND, head, weights_N, rows, chunk_size)
    return TokenResult(loss_sum, TokenStats(*map(torch.cat, zip(*stats, strict=True))))


def divergence_objective(
    student_hidden_ND: Tensor,
    student_head: AnyHead,
    teacher_hidden_ND: Tensor,
    teacher_head: AnyHead,
    tokens_N: Tensor,
    weights_N: Tensor,
    divergence: Divergence,
    chunk_size: int | None = None,
) -> DivergenceResult:
    """Σ_n w_n · divergence(student ‖ teacher)_n at the positions that produced `tokens_N`, not normalised.

    The teacher, hidden states and head, is a constant. The two hidden sizes may differ, the vocabularies may not.
    The sampled estimator expects `tokens_N` drawn from the student at the divergence's temperature; the others
    use the tokens for statistics only. Weights, gradients and `chunk_size` as in `token_objective`.
    Raises ShapeError if shapes disagree or a token has no logit, ConfigError for an impossible chunk size.
    """
    positions = {"tokens": tokens_N, "weights": weights_N}
    _require_positions(student_hidden_ND, student_head, "student hidden", positions)
    _require_positions(teacher_hidden_ND, teacher_head, "teacher hidden", positions)
    if student_head.vocabulary != teacher_head.vocabulary:
        raise ShapeError(
            f"the student's head has {student_head.vocabulary} logits, the teacher's {teacher_head.vocabulary}; "
            "a divergence needs one vocabulary, so use a teacher with the student's tokenizer"
        )
    require_vocabulary("tokens", tokens_N, student_head.vocabulary)

    def rows(student_logits_nV: Tensor, span: slice, with_gradient: bool) -> tuple[ValueAndGradient, DivergenceStats]:
        teacher_logits_nV = teacher_head.logits(teacher_hidden_ND[span])
        student_logp_nV = log_probabilities(student_logits_nV)
        teacher_logp_nV = log_probabilities(teacher_logits_nV)
        stats = measure_divergence(student_logp_nV, teacher_logp_nV, tokens_N[span])
        if divergence.temperature != 1.0:
            student_logp_nV = log_probabilities(student_logits_nV, divergence.temperature)
            teacher_logp_nV = log_probabilities(teacher_logits_nV, divergence.temperature)
        del teacher_logits_nV
        loss = per_position.divergence(
            student_logp_nV, teacher_logp_nV, divergence, tokens_N[span], with_gradient=with_gradient
        )
        return loss, stats

    loss_sum, stats = _weighted_sum(student_hidden_ND, student_head, weights_N, rows, chunk_size)
    return DivergenceResult(loss_sum, DivergenceStats(*map(torch.cat, zip(*stats, strict=True))))


def _require_positions(hidden_ND: Tensor, head: AnyHead, name: str, per_position_tensors: dict[str, Tensor]) -> None:
    if hidden_ND.ndim != 2:
        raise ShapeError(
            f"{name} has shape {list(hidden_ND.shape)}, expected [positions, size]; flatten batch and position first"
        )
    width = head.weight.shape[1] if isinstance(head, Head) else head.vocabulary
    require_shape(name, hidden_ND, (hidden_ND.shape[0], width), "its head")
    for other, tensor in per_position_tensors.items():
        require_shape(other, tensor, (hidden_ND.shape[0],), name)


def _weighted_sum(
    hidden_ND: Tensor, head: AnyHead, weights_N: Tensor, rows: _Rows[_Stats], chunk_size: int | None
) -> tuple[Tensor, list[_Stats]]:
    """Σ_n w_n · value_n with its gradients, and the statistics chunk by chunk."""
    if chunk_size is None:
        chunk_size = max(MIN_CHUNK_ROWS, CHUNK_ELEMENTS // head.vocabulary)
    if chunk_size < 1:
        raise ConfigError(f"chunk_size={chunk_size} holds no position; pass 1 or more, or None for the default")
    sums = _GradientSums.for_trained(hidden_ND, head)
    losses: list[Tensor] = []
    stats: list[_Stats] = []
    with torch.no_grad():
        # At least one chunk, so that no position at all gives a sum of 0 and statistics of length 0.
        for start in range(0, max(hidden_ND.shape[0], 1), chunk_size):
            span = slice(start, start + chunk_size)
            logits_nV = head.logits(hidden_ND[span])
            (value_n, gradient_nV), chunk_stats = rows(logits_nV, span, sums.any)
            weights_n = weights_N[span].to(value_n.dtype)
            losses.append(torch.where(weights_n != 0, weights_n * value_n, 0.0).sum())
            stats.append(chunk_stats)
            if gradient_nV is not None:
                gradient_nV.mul_(weights_n.unsqueeze(-1))
                sums.add(span, gradient_nV, logits_nV, left_out_n=weights_n == 0)
        loss_sum = torch.stack(losses).sum()
    return attach_gradients(loss_sum, sums.known()), stats


@dataclass
class _GradientSums:
    """The gradients of the loss sum, in float32 or float64; None where nothing is trained."""

    inputs: Tensor
    head: AnyHead
    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def for_trained(cls, hidden_ND: Tensor, head: AnyHead) -> "_GradientSums":
        weight_VD, bias_V = (head.weight, head.bias) if isinstance(head, Head) else (None, None)
        return cls(
            hidden_ND, head, _zeros_if_trained(hidden_ND), _zeros_if_trained(weight_VD), _zeros_if_trained(bias_V)
        )

    @property
    def any(self) -> bool:
        return self.hidden is not None or self.weight is not None or self.bias is not None

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
            self.weight += gradient_nV.mT @ self.inputs[span].masked_fill(left_out_n1, 0.0).to(weight_VD.dtype)

    def known(self) -> list[tuple[Tensor, Tensor]]:
        """The (tensor, gradient) pairs of what is trained."""
        pairs = [(self.inputs, self.hidden)]
        if isinstance(self.head, Head):
            pairs.append((self.head.weight, self.weight))
            if self.head.bias is not None:
                pairs.append((self.head.bias, self.bias))
        return [(tensor, gradient) for tensor, gradient in pairs if gradient is not None]


def _zeros_if_trained(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or not (torch.is_grad_enabled() and tensor.requires_grad):
        return None
    return torch.zeros(tensor.shape, dtype=compute_dtype(tensor.dtype), device=tensor.device)
