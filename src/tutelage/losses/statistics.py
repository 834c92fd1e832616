"""What is measured at every position beside the loss: detached, in nats, always at temperature 1.

Only the measuring. Which of it is averaged, named and logged is the trainer's business.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.losses.per_position import at_tokens, expectation


class TokenStats(NamedTuple):
    """How well the student predicts its targets; every field has shape [N], except as it says."""

    nll: Tensor
    """-log p_t, in nats, also when the objective is dft."""
    probability: Tensor
    """p_t."""
    correct: Tensor
    """Whether the target is the argmax, the first of the most likely tokens (bool)."""
    entropy: Tensor
    """H(p) in nats; of shape [0] unless it was asked for, since it takes time of its own."""


class DivergenceStats(NamedTuple):
    """How far student p and teacher q are apart over the full vocabulary, in nats; every field has shape [N].

    At temperature 1 and without truncation whatever the loss uses, so that runs with different divergences
    and estimators can be compared.
    """

    reverse_kl: Tensor
    """KL(p ‖ q)."""
    forward_kl: Tensor
    """KL(q ‖ p)."""
    student_entropy: Tensor
    """H(p)."""
    teacher_entropy: Tensor
    """H(q)."""
    student_logp: Tensor
    """log p of the response token."""
    teacher_logp: Tensor
    """log q of the response token."""


def measure_tokens(logp_NV: Tensor, targets_N: Tensor, *, with_entropy: bool = False) -> TokenStats:
    """The student's log-probabilities [N, V] against its targets [N]."""
    target_logp_N = at_tokens(logp_NV, targets_N)
    return TokenStats(
        nll=-target_logp_N,
        probability=target_logp_N.exp(),
        correct=logp_NV.argmax(-1) == targets_N,
        entropy=-expectation(logp_NV.exp(), logp_NV) if with_entropy else logp_NV.new_empty(0),
    )


def measure_divergence(student_logp_NV: Tensor, teacher_logp_NV: Tensor, tokens_N: Tensor) -> DivergenceStats:
    """Both log-probabilities [N, V] at temperature 1, and the response tokens [N]."""
    log_ratio_NV = student_logp_NV - teacher_logp_NV
    p_NV = student_logp_NV.exp()
    reverse_kl_N = expectation(p_NV, log_ratio_NV)
    student_entropy_N = -expectation(p_NV, student_logp_NV)
    q_NV = torch.exp(teacher_logp_NV, out=p_NV)
    return DivergenceStats(
        reverse_kl=reverse_kl_N,
        forward_kl=-expectation(q_NV, log_ratio_NV),
        student_entropy=student_entropy_N,
        teacher_entropy=-expectation(q_NV, teacher_logp_NV),
        student_logp=at_tokens(student_logp_NV, tokens_N),
        teacher_logp=at_tokens(teacher_logp_NV, tokens_N),
    )
