"""The readable reference: losses of whole logits, [batch, position, vocabulary] in memory.

Values and gradients come from `per_position`; the chunked functions are held against these. No heads here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.losses import per_position
from tutelage.losses.known_gradient import attach_gradients
from tutelage.losses.per_position import Divergence, DivergenceKind, ValueAndGradient, log_probabilities
from tutelage.losses.positions import normalised, require_shape, require_vocabulary, select_trained

_Rule = Callable[[Tensor, bool], ValueAndGradient]


def nll_loss(logits: Tensor, labels: Tensor, num_items: Tensor | float | None = None) -> Tensor:
    """Σ_t −log p_t / number of tokens, in nats, a scalar.

    logits [B, T, V] of any float type (computed in float32, or float64 if given); labels [B, T]. Position t
    predicts label t+1; -100 is left out. Divided by `num_items` (the tokens of the whole optimizer step) if
    given, else by the number of valid tokens; 0 with zero gradient if there is none.
    Raises ShapeError if the shapes disagree or a label has no logit.
    """
    return _token_loss(per_position.nll, logits, labels, num_items)


def dft_loss(logits: Tensor, labels: Tensor, num_items: Tensor | float | None = None) -> Tensor:
    """Σ_t −sg(p_t)·log p_t / number of tokens, in nats, a scalar. Eq. 9, arXiv:2508.05629.

    The probability p_t is a constant weight (sg: no gradient through it), so the gradient to the logits is
    p_t·(softmax − onehot). Arguments, normalisation and errors as in `nll_loss`.
    """
    return _token_loss(per_position.dft, logits, labels, num_items)


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(student ‖ teacher) per position, in nats: [..., V] and [..., V] -> [...]. Eq. 1, arXiv:2601.19897.

    The teacher is a constant: no gradient reaches its logits. Raises ShapeError if the shapes differ.
    """
    return divergence(student_logits, teacher_logits, Divergence("reverse_kl"))


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher ‖ student) per position, in nats: [..., V] and [..., V] -> [...].

    The teacher is a constant: no gradient reaches its logits. Raises ShapeError if the shapes differ.
    """
    return divergence(student_logits, teacher_logits, Divergence("forward_kl"))


def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float = 0.5) -> Tensor:
    """β·KL(teacher ‖ m) + (1−β)·KL(student ‖ m), m = β·teacher + (1−β)·student. Eq. 1, arXiv:2306.13649.

    Per position, in nats: [..., V] and [..., V] -> [...]. The teacher is a constant: no gradient reaches its
    logits. Raises ShapeError if the shapes differ, ConfigError unless 0 < beta < 1.
    """
    return divergence(student_logits, teacher_logits, Divergence("jsd", beta=beta))


def topk_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    k: int,
    kind: DivergenceKind = "reverse_kl",
    beta: float = 0.5,
) -> Tensor:
    """The divergence between buckets, per position, in nats: [..., V] and [..., V] -> [...].

    The support is the union of the student's and the teacher's k most likely tokens; all others share one
    tail bucket, so that teacher mass outside the student's top-k still gives a gradient. A lower bound of
    the full divergence, equal to it at k = V. The teacher is a constant.
    Raises ShapeError if the shapes differ, ConfigError for k < 1 or, with jsd, beta outside (0, 1).
    """
    return divergence(student_logits, teacher_logits, Divergence(kind, beta=beta, estimator="topk", top_k=k))


def sampled_divergence(student_logits: Tensor, teacher_logits: Tensor, tokens: Tensor) -> Tensor:
    """log p_y − log q_y for the sampled tokens y [...], in nats: [..., V] and [..., V] -> [...].

    The score-function estimator of the reverse KL: with y drawn from the student, value and gradient
    (log p_y − log q_y)·∇log p_y are unbiased at each position. The gradient is not the derivative of the value.
    The teacher is a constant. Raises ShapeError if the shapes disagree or a token has no logit.
    """
    return divergence(student_logits, teacher_logits, Divergence(estimator="sampled"), tokens)


def divergence(
    student_logits: Tensor, teacher_logits: Tensor, spec: Divergence, tokens: Tensor | None = None
) -> Tensor:
    """The divergence `spec` describes, per position, in nats: [..., V] and [..., V] -> [...].

    `tokens` [...] are needed by the sampled estimator only. The teacher is a constant.
    Raises ShapeError if the shapes disagree or a token has no logit, ConfigError if tokens are missing.
    """
    require_shape("teacher_logits", teacher_logits, tuple(student_logits.shape), "student_logits")
    positions = tuple(student_logits.shape[:-1])
    vocabulary = student_logits.shape[-1]
    tokens_N = None
    if tokens is not None:
        require_shape("tokens", tokens, positions, "student_logits")
        tokens_N = tokens.reshape(-1)
        require_vocabulary("tokens", tokens_N, vocabulary)
    teacher_NV = teacher_logits.reshape(-1, vocabulary)

    def rule(student_NV: Tensor, with_gradient: bool) -> ValueAndGradient:
        return per_position.divergence(
            log_probabilities(student_NV, spec.temperature),
            log_probabilities(teacher_NV, spec.temperature),
            spec,
            tokens_N,
            with_gradient=with_gradient,
        )

    return _apply(student_logits.reshape(-1, vocabulary), rule).reshape(positions)


def _token_loss(
    loss: Callable[..., ValueAndGradient], logits: Tensor, labels: Tensor, num_items: Tensor | float | None
) -> Tensor:
    logits_NV, targets_N = select_trained("logits", logits, labels)
    require_vocabulary("labels", targets_N, logits.shape[-1])

    def rule(logits_NV: Tensor, with_gradient: bool) -> ValueAndGradient:
        return loss(log_probabilities(logits_NV), targets_N, with_gradient=with_gradient)

    return normalised(_apply(logits_NV, rule).sum(), num_items, targets_N.numel())


def _apply(logits_NV: Tensor, rule: _Rule) -> Tensor:
    with_gradient = torch.is_grad_enabled() and logits_NV.requires_grad
    with torch.no_grad():
        value_N, gradient_NV = rule(logits_NV, with_gradient)
    return value_N if gradient_NV is None else attach_gradients(value_N, [(logits_NV, gradient_NV)])
