"""The losses of `dense`, computed from hidden states and the head's weight through the chunked core.

Shifting, masking and normalising happen here; the mathematics and the chunks are elsewhere.
"""

import torch
from torch import Tensor

from tutelage.errors import ConfigError, ShapeError
from tutelage.losses.chunked import TokenObjective, divergence_sum, token_objective
from tutelage.losses.head import Head
from tutelage.losses.per_position import Divergence, DivergenceKind
from tutelage.losses.positions import normalised, require_shape, select_trained


def linear_nll_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    num_items: Tensor | float | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`nll_loss(Head(weight, bias, softcap, scale).logits(hidden), labels, num_items)` without the logits in memory.

    hidden [B, T, D], weight [V, D], labels [B, T], bias [V]; position t predicts label t+1, -100 is left out.
    A scalar in nats, divided by `num_items` if given, else by the number of valid tokens; 0 with zero gradient if
    there is none. Gradients reach hidden, weight and bias, each if it requires grad. `chunk_size` counts positions.
    Raises ShapeError if shapes disagree or a label has no logit, ConfigError for an impossible softcap or chunk size.
    """
    return _token_loss("nll", hidden, Head(weight, bias, softcap, scale), labels, num_items, chunk_size)


def linear_dft_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    num_items: Tensor | float | None = None,
    chunk_size: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """`dft_loss` (−sg(p_t)·log p_t, arXiv:2508.05629) of the head's logits without the logits in memory.

    Arguments, shapes, normalisation and errors as in `linear_nll_loss`.
    """
    return _token_loss("dft", hidden, Head(weight, bias, softcap, scale), labels, num_items, chunk_size)


def linear_divergence(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    kind: DivergenceKind | Divergence = "reverse_kl",
    mask: Tensor | None = None,
    num_items: Tensor | float | None = None,
    chunk_size: int | None = None,
    *,
    teacher_weight: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    tokens: Tensor | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Σ mask · divergence(student ‖ teacher) / number of counted positions, a scalar in nats, without the logits.

    student_hidden, teacher_hidden [..., D]; weight [V, D]; bias [V]; mask [...], bool or weights (0 = left out; None
    counts every position); tokens [...], for the sampled estimator. `kind` is the name of a full divergence,
    or a `Divergence` with estimator, beta and temperature. Nothing is shifted: position by position.
    Both sides share the head unless `teacher_weight` [V, D'] (with its own `teacher_bias`, or none) is given.
    Divided by `num_items` if given, else by the number of non-zero mask entries; 0 with zero gradient if there is none.
    The teacher is a constant: gradients reach student_hidden, weight and bias through the student only.
    Raises ShapeError if shapes disagree or a token has no logit, ConfigError for an impossible divergence or
    if tokens are missing.
    """
    spec = kind if isinstance(kind, Divergence) else Divergence(kind)
    positions = tuple(student_hidden.shape[:-1])
    if tuple(teacher_hidden.shape[:-1]) != positions:
        raise ShapeError(
            f"teacher_hidden has positions {list(teacher_hidden.shape[:-1])}, student_hidden {list(positions)}; "
            "pass the hidden states of the same response tokens"
        )
    if spec.estimator == "sampled" and tokens is None:
        raise ConfigError("the sampled estimator needs the sampled tokens; pass tokens=, or use estimator 'full'")
    if mask is None:
        mask = torch.ones(positions, dtype=torch.bool, device=student_hidden.device)
    if tokens is None:
        tokens = torch.zeros(positions, dtype=torch.long, device=student_hidden.device)
    require_shape("mask", mask, positions, "student_hidden")
    require_shape("tokens", tokens, positions, "student_hidden")
    if teacher_weight is None:
        teacher_weight = weight
        teacher_bias = bias if teacher_bias is None else teacher_bias
    counted = mask != 0
    loss_sum = divergence_sum(
        student_hidden[counted],
        Head(weight, bias, softcap, scale),
        teacher_hidden[counted],
        Head(teacher_weight, teacher_bias, softcap, scale),
        tokens[counted],
        mask[counted],
        spec,
        chunk_size,
    )
    return normalised(loss_sum, num_items, int(counted.sum()))


def _token_loss(
    objective: TokenObjective,
    hidden: Tensor,
    head: Head,
    labels: Tensor,
    num_items: Tensor | float | None,
    chunk_size: int | None,
) -> Tensor:
    hidden_ND, targets_N = select_trained("hidden", hidden, labels)
    ones_N = torch.ones_like(targets_N, dtype=torch.float32)
    result = token_objective(hidden_ND, head, targets_N, ones_N, objective, chunk_size)
    return normalised(result.loss_sum, num_items, targets_N.numel())
