"""The mathematics, in one place: each loss as its value per position and its gradient to the logits.

Rows of log-probabilities in, values and analytic gradients out. The gradients are written so that equal
student and teacher give exactly 0, which autograd through log_softmax does not. No autograd, no masks,
no chunks and no normalisation here.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tutelage.errors import ConfigError, nearest

DivergenceKind = Literal["reverse_kl", "forward_kl", "jsd"]
Estimator = Literal["full", "topk", "sampled"]


@dataclass(frozen=True)
class Divergence:
    """Which distance between student p and teacher q is minimised, and how it is computed.

    Raises ConfigError for an unknown kind or estimator, for `beta`, `top_k` or `temperature` out of range
    where they are used, and for the sampled estimator of anything but the reverse KL.
    """

    kind: DivergenceKind = "reverse_kl"
    """`reverse_kl` KL(p ‖ q); `forward_kl` KL(q ‖ p); `jsd` β·KL(q ‖ m) + (1−β)·KL(p ‖ m), m = βq + (1−β)p."""

    beta: float = 0.5
    """The teacher's share β of the mixture m, 0 < β < 1. Used by `jsd`."""

    estimator: Estimator = "full"
    """`full` sums over the vocabulary; `topk` over the union of both top-k and one tail bucket;
    `sampled` is the score-function estimator on the token the student sampled."""

    top_k: int = 100
    """Entries each of student and teacher puts into the support. Used by `topk`."""

    temperature: float = 1.0
    """Both logits are divided by it before the softmax."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(DivergenceKind):
            known = get_args(DivergenceKind)
            raise ConfigError(
                f"divergence kind '{self.kind}' is not one of {', '.join(known)}{nearest(self.kind, known)}"
            )
        if self.estimator not in get_args(Estimator):
            known = get_args(Estimator)
            raise ConfigError(
                f"divergence estimator '{self.estimator}' is not one of {', '.join(known)}"
                f"{nearest(self.estimator, known)}"
            )
        if self.kind == "jsd" and not 0.0 < self.beta < 1.0:
            raise ConfigError(
                f"jsd needs 0 < beta < 1, got beta={self.beta}; for the extremes use 'forward_kl' or 'reverse_kl'"
            )
        if self.estimator == "topk" and self.top_k < 1:
            raise ConfigError(f"top-k divergence needs k >= 1, got k={self.top_k}; choose for example k=100")
        if not (self.temperature > 0.0 and math.isfinite(self.temperature)):
            raise ConfigError(
                f"the loss temperature must be positive and finite, got {self.temperature}; "
                "1.0 leaves logits as they are"
            )
        if self.estimator == "sampled" and self.kind != "reverse_kl":
            raise ConfigError(
                f"the sampled estimator estimates the reverse KL only, got kind '{self.kind}'; "
                "use kind 'reverse_kl', or estimator 'full' or 'topk'"
            )


class ValueAndGradient(NamedTuple):
    """Values [N] in nats, and the gradient of each to its own row of logits [N, V] (None if not asked for)."""

    value: Tensor
    gradient: Tensor | None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; everything else is computed in float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def log_probabilities(logits_NV: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature), in float32 or float64, shape [N, V]."""
    logits_NV = logits_NV.to(compute_dtype(logits_NV.dtype))
    if temperature != 1.0:
        logits_NV = logits_NV / temperature
    return torch.log_softmax(logits_NV, dim=-1)


def at_tokens(rows_NV: Tensor, tokens_N: Tensor) -> Tensor:
    """The entry of each row at its token, shape [N]."""
    return rows_NV.gather(-1, tokens_N.unsqueeze(-1)).squeeze(-1)


def expectation(probability_NV: Tensor, value_NV: Tensor) -> Tensor:
    """Σ_i p_i x_i, shape [N], where an entry with p_i = 0 counts 0 also if x_i is infinite or NaN."""
    return (probability_NV * value_NV).masked_fill_(probability_NV == 0, 0.0).sum(-1)


def nll(logp_NV: Tensor, targets_N: Tensor, *, with_gradient: bool = True) -> ValueAndGradient:
    """-log p_t, with gradient softmax − onehot_t."""
    target_logp_N = at_tokens(logp_NV, targets_N)
    gradient_NV = _softmax_minus_onehot(logp_NV, targets_N) if with_gradient else None
    return ValueAndGradient(-target_logp_N, gradient_NV)


def dft(logp_NV: Tensor, targets_N: Tensor, *, with_gradient: bool = True) -> ValueAndGradient:
    """-sg(p_t)·log p_t, with gradient p_t·(softmax − onehot_t). Eq. 9, arXiv:2508.05629.

    sg: the probability is a constant weight. A target of probability 0 has value 0 and gradient 0.
    """
    target_logp_N = at_tokens(logp_NV, targets_N)
    target_p_N = target_logp_N.exp()
    value_N = (-target_p_N * target_logp_N).masked_fill_(target_p_N == 0, 0.0)
    if not with_gradient:
        return ValueAndGradient(value_N, None)
    gradient_NV = _softmax_minus_onehot(logp_NV, targets_N)
    return ValueAndGradient(value_N, gradient_NV.mul_(target_p_N.unsqueeze(-1)))


def divergence(
    student_logp_NV: Tensor,
    teacher_logp_NV: Tensor,
    spec: Divergence,
    tokens_N: Tensor | None = None,
    *,
    with_gradient: bool = True,
) -> ValueAndGradient:
    """`spec`'s divergence per position, and its gradient to the student's logits before the temperature.

    Both inputs are log-probabilities at `spec.temperature`. An entry that has probability 0 contributes 0;
    one the teacher excludes and the student does not makes the reverse KL infinite and its gradient not finite.
    `tokens_N` is needed by the sampled estimator only.
    """
    if spec.estimator == "sampled":
        if tokens_N is None:
            raise ConfigError("the sampled estimator needs the sampled tokens; pass them, or use estimator 'full'")
        result = _sampled(student_logp_NV, teacher_logp_NV, tokens_N, with_gradient)
    else:
        vocabulary = student_logp_NV.shape[-1]
        k = min(spec.top_k, vocabulary) if spec.estimator == "topk" else vocabulary
        pair = _pair(student_logp_NV, teacher_logp_NV, k)
        if spec.kind == "reverse_kl":
            result = _reverse_kl(pair, with_gradient)
        elif spec.kind == "forward_kl":
            result = _forward_kl(pair, with_gradient)
        else:
            result = _jsd(pair, spec.beta, with_gradient)
    if result.gradient is not None and spec.temperature != 1.0:
        result.gradient.div_(spec.temperature)
    return result


class _Pair(NamedTuple):
    """Student and teacher, entry by entry and bucket by bucket.

    A bucket is an entry of the support, or the tail: all entries outside it, lumped together. Each tail entry
    carries the log mass of the whole tail, so that Σ_i p_i f(bucket_i) runs over buckets with their masses.
    All [N, V]; `tail` is True outside the support, None if nothing is.
    """

    student_logp: Tensor
    teacher_logp: Tensor
    student_bucket: Tensor
    teacher_bucket: Tensor
    tail: Tensor | None


def _pair(student_logp_NV: Tensor, teacher_logp_NV: Tensor, k: int) -> _Pair:
    if k >= student_logp_NV.shape[-1]:
        return _Pair(student_logp_NV, teacher_logp_NV, student_logp_NV, teacher_logp_NV, None)
    tail_NV = torch.ones_like(student_logp_NV, dtype=torch.bool)
    for logp_NV in (student_logp_NV, teacher_logp_NV):
        tail_NV.scatter_(-1, logp_NV.topk(k, dim=-1).indices, False)
    return _Pair(
        student_logp_NV,
        teacher_logp_NV,
        _with_tail_mass(student_logp_NV, tail_NV),
        _with_tail_mass(teacher_logp_NV, tail_NV),
        tail_NV,
    )


def _with_tail_mass(logp_NV: Tensor, tail_NV: Tensor) -> Tensor:
    tail_logp_N1 = logp_NV.masked_fill(~tail_NV, -math.inf).logsumexp(-1, keepdim=True)
    return torch.where(tail_NV, tail_logp_N1, logp_NV)


def _reverse_kl(pair: _Pair, with_gradient: bool) -> ValueAndGradient:
    """Σ p_i r_i with r = log p − log q; gradient p_i (r_i − value)."""
    p_NV = pair.student_logp.exp()
    ratio_NV = pair.student_bucket - pair.teacher_bucket
    value_N = expectation(p_NV, ratio_NV)
    return ValueAndGradient(value_N, _centred(p_NV, ratio_NV, value_N) if with_gradient else None)


def _forward_kl(pair: _Pair, with_gradient: bool) -> ValueAndGradient:
    """Σ q_i (log q_i − log p_i); gradient p_i − q_i, and in the tail p_i − p_i·Q/P with the tail masses Q, P."""
    q_NV = pair.teacher_logp.exp()
    ratio_NV = pair.teacher_bucket - pair.student_bucket
    value_N = expectation(q_NV, ratio_NV)
    if not with_gradient:
        return ValueAndGradient(value_N, None)
    p_NV = pair.student_logp.exp()
    if pair.tail is None:
        return ValueAndGradient(value_N, p_NV.sub_(q_NV))
    # exp(log p_i + log Q − log P) cannot overflow, since p_i <= P, and equals p_i bit for bit when Q = P.
    shared_NV = ratio_NV.add_(pair.student_logp).exp_().masked_fill_(p_NV == 0, 0.0)
    return ValueAndGradient(value_N, p_NV.sub_(torch.where(pair.tail, shared_NV, q_NV)))


def _jsd(pair: _Pair, beta: float, with_gradient: bool) -> ValueAndGradient:
    """β Σ q_i t_i + (1−β) Σ p_i s_i with t = log q − log m, s = log p − log m; gradient (1−β) p_i (s_i − Σ p s).

    The derivative through m cancels: −(βq + (1−β)p)/m + 1 = 0.
    """
    p_NV = pair.student_logp.exp()
    q_NV = pair.teacher_logp.exp()
    teacher_ratio_NV, student_ratio_NV = mixture_log_ratios(pair.teacher_bucket - pair.student_bucket, beta)
    teacher_value_N = expectation(q_NV, teacher_ratio_NV)
    student_value_N = expectation(p_NV, student_ratio_NV)
    value_N = beta * teacher_value_N + (1.0 - beta) * student_value_N
    if not with_gradient:
        return ValueAndGradient(value_N, None)
    return ValueAndGradient(value_N, _centred(p_NV, student_ratio_NV, student_value_N).mul_(1.0 - beta))


def mixture_log_ratios(gap_NV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log q − log m and log p − log m for m = βq + (1−β)p, from log q − log p, which is overwritten."""
    # log m = max(log p, log q) + log1p(c·expm1(−|gap|)), c the share of the smaller: exactly log p at gap 0.
    smaller_share_NV = torch.where(gap_NV > 0, gap_NV.new_full((), 1.0 - beta), gap_NV.new_full((), beta))
    excess_NV = gap_NV.abs().neg_().expm1_().mul_(smaller_share_NV).log1p_()
    teacher_ratio_NV = gap_NV.clamp(max=0.0).sub_(excess_NV)
    return teacher_ratio_NV, gap_NV.clamp_(min=0.0).add_(excess_NV).neg_()


def _sampled(
    student_logp_NV: Tensor, teacher_logp_NV: Tensor, tokens_N: Tensor, with_gradient: bool
) -> ValueAndGradient:
    """log p_y − log q_y, y ~ p; gradient (log p_y − log q_y)(onehot_y − p), whose expectation is the reverse KL's."""
    value_N = at_tokens(student_logp_NV, tokens_N) - at_tokens(teacher_logp_NV, tokens_N)
    if not with_gradient:
        return ValueAndGradient(value_N, None)
    gradient_NV = _softmax_minus_onehot(student_logp_NV, tokens_N)
    return ValueAndGradient(value_N, gradient_NV.mul_(-value_N.unsqueeze(-1)))


def _centred(p_NV: Tensor, ratio_NV: Tensor, mean_N: Tensor) -> Tensor:
    """p_i (r_i − mean), 0 where p_i = 0; overwrites `ratio_NV`."""
    return ratio_NV.sub_(mean_N.unsqueeze(-1)).mul_(p_NV).masked_fill_(p_NV == 0, 0.0)


def _softmax_minus_onehot(logp_NV: Tensor, tokens_N: Tensor) -> Tensor:
    tokens_N1 = tokens_N.unsqueeze(-1)
    return logp_NV.exp().scatter_add_(-1, tokens_N1, logp_NV.new_full(tokens_N1.shape, -1.0))
