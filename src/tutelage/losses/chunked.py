"""Loss and gradient through the head, chunk by chunk: no [batch, position, vocabulary] tensor.

The gradients to hidden states, weight and bias are formed in the forward pass, next to the logits they come
from, so nothing is recomputed. Chunks go by blocks of the vocabulary where loss and head allow it, else by rows
of logits, as do chunks in which something is not finite. What to divide by, which positions to pass and what to
log are the caller's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tutelage.errors import ConfigError, ShapeError, nearest
from tutelage.losses import per_position
from tutelage.losses.blocked_divergence import BlockedDivergence, BlockedTeacher
from tutelage.losses.blocked_tokens import BlockedTokens
from tutelage.losses.gradient_sums import GradientSums
from tutelage.losses.head import AnyHead, Head
from tutelage.losses.known_gradient import attach_gradients
from tutelage.losses.per_position import Divergence, ValueAndGradient, log_probabilities
from tutelage.losses.positions import require_shape, require_vocabulary
from tutelage.losses.statistics import DivergenceStats, TokenStats, measure_divergence, measure_tokens
from tutelage.losses.vocabulary_blocks import BlockedChunk, BlockedHead, Workspace, can_go_by_blocks, go_through

TokenObjective = Literal["nll", "dft"]

ROW_CHUNK_ELEMENTS = 2**24
"""Logits per chunk by rows unless told otherwise: 64 MiB in float32, of which a few copies live at a time."""

BLOCK_CHUNK_ELEMENTS = 30_000_000
"""Logits kept of a chunk by blocks unless told otherwise, the teacher's included: 120 MB in float32, once. Reverse KL
with a vocabulary of 152k takes 1.17 times its products with 40 million, 1.21 with 30, 1.27 with 20."""

MAX_BLOCK_CHUNK_ROWS = 1024
"""Rows of a chunk by blocks unless told otherwise: with more, products gain nothing and tiles leave the caches."""

MIN_CHUNK_ROWS = 32
"""Below this many rows the product with the head no longer uses the hardware well."""

ROW_MULTIPLE = 16
"""Chunks have a multiple of it where they may: kernels of matrix products take so many rows at a time."""

# Logits of a chunk, which positions they belong to, whether the gradient is needed -> loss and statistics.
_Rows = Callable[[Tensor, slice, bool], tuple[ValueAndGradient, Any]]
# Where gradients go, the positions of each chunk, memory for the tiles -> the chunks.
_Chunks = Callable[[GradientSums, list[slice], Workspace], Iterator[BlockedChunk]]

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


@dataclass(frozen=True)
class _ByBlocks:
    """How a loss goes by blocks."""

    chunks: _Chunks
    weight: Tensor
    """The head's, for dtype and device."""
    sides: int
    """1, or 2 if there are logits of a teacher."""
    spare_tiles: int
    """Tiles of a chunk's rows and one block that it works in besides."""
    keeps_tiles: bool


def token_objective(
    hidden_ND: Tensor,
    head: AnyHead,
    targets_N: Tensor,
    weights_N: Tensor,
    objective: TokenObjective = "nll",
    chunk_size: int | None = None,
    *,
    with_entropy: bool = False,
) -> TokenResult:
    """Σ_n w_n · (−log p_n) for `nll`, Σ_n w_n · (−sg(p_n)·log p_n) for `dft` (arXiv:2508.05629), not normalised.

    Position n of `hidden_ND` predicts `targets_N[n]`: nothing is shifted. A position of weight 0 is measured but
    gives neither loss nor gradient, whatever it holds. Gradients reach the hidden states and the head's weight
    and bias, each if it requires grad. `chunk_size` counts positions. With an `IdentityHead` hidden states are logits.
    `with_entropy`: the statistics have the entropy too.
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
        return loss, measure_tokens(logp_nV, targets_N[span], with_entropy=with_entropy)

    sums = GradientSums.for_trained(hidden_ND, head)
    by_blocks = None
    if isinstance(head, Head) and can_go_by_blocks(head):

        def chunks(sums: GradientSums, spans: list[slice], workspace: Workspace) -> Iterator[BlockedTokens]:
            blocked = BlockedHead.of(head)
            for span in spans:
                yield BlockedTokens(
                    blocked,
                    sums,
                    span,
                    targets_N,
                    weights_N,
                    workspace,
                    weighted_by_probability=objective == "dft",
                    with_entropy=with_entropy,
                )

        spare_tiles = 1 if with_entropy else 0
        by_blocks = _ByBlocks(chunks, head.weight.detach(), sides=1, spare_tiles=spare_tiles, keeps_tiles=sums.of_head)
    loss_sum, stats = _weighted_sum(sums, weights_N, rows, by_blocks, chunk_size)
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
    sides = (student_hidden_ND, student_head, teacher_hidden_ND, teacher_head)
    loss_sum, stats = _divergence(*sides, tokens_N, weights_N, divergence, chunk_size, measured=True)
    return DivergenceResult(loss_sum, DivergenceStats(*map(torch.cat, zip(*stats, strict=True))))


def divergence_sum(
    student_hidden_ND: Tensor,
    student_head: AnyHead,
    teacher_hidden_ND: Tensor,
    teacher_head: AnyHead,
    tokens_N: Tensor,
    weights_N: Tensor,
    divergence: Divergence,
    chunk_size: int | None = None,
) -> Tensor:
    """The `loss_sum` of `divergence_objective` without its statistics, which take time of their own."""
    sides = (student_hidden_ND, student_head, teacher_hidden_ND, teacher_head)
    return _divergence(*sides, tokens_N, weights_N, divergence, chunk_size, measured=False)[0]


def _divergence(
    student_hidden_ND: Tensor,
    student_head: AnyHead,
    teacher_hidden_ND: Tensor,
    teacher_head: AnyHead,
    tokens_N: Tensor,
    weights_N: Tensor,
    divergence: Divergence,
    chunk_size: int | None,
    *,
    measured: bool,
) -> tuple[Tensor, list[DivergenceStats]]:
    positions = {"tokens": tokens_N, "weights": weights_N}
    _require_positions(student_hidden_ND, student_head, "student hidden", positions)
    _require_positions(teacher_hidden_ND, teacher_head, "teacher hidden", positions)
    if student_head.vocabulary != teacher_head.vocabulary:
        raise ShapeError(
            f"the student's head has {student_head.vocabulary} logits, the teacher's {teacher_head.vocabulary}; "
            "a divergence needs one vocabulary, so use a teacher with the student's tokenizer"
        )
    require_vocabulary("tokens", tokens_N, student_head.vocabulary)

    def rows(
        student_logits_nV: Tensor, span: slice, with_gradient: bool
    ) -> tuple[ValueAndGradient, DivergenceStats | None]:
        teacher_logits_nV = teacher_head.logits(teacher_hidden_ND[span])
        student_logp_nV = log_probabilities(student_logits_nV)
        teacher_logp_nV = log_probabilities(teacher_logits_nV)
        stats = measure_divergence(student_logp_nV, teacher_logp_nV, tokens_N[span]) if measured else None
        if divergence.temperature != 1.0:
            student_logp_nV = log_probabilities(student_logits_nV, divergence.temperature)
            teacher_logp_nV = log_probabilities(teacher_logits_nV, divergence.temperature)
        del teacher_logits_nV
        loss = per_position.divergence(
            student_logp_nV, teacher_logp_nV, divergence, tokens_N[span], with_gradient=with_gradient
        )
        return loss, stats

    sums = GradientSums.for_trained(student_hidden_ND, student_head)
    by_blocks = None
    if (
        isinstance(student_head, Head)
        and isinstance(teacher_head, Head)
        and can_go_by_blocks(student_head)
        and can_go_by_blocks(teacher_head)
        and student_head.weight.dtype == teacher_head.weight.dtype
        and divergence.estimator == "full"
    ):

        def chunks(sums: GradientSums, spans: list[slice], workspace: Workspace) -> Iterator[BlockedDivergence]:
            head = BlockedHead.of(student_head, divergence.temperature)
            own = (
                None
                if student_head.shares_logits(teacher_head)
                else BlockedHead.of(teacher_head, divergence.temperature)
            )
            teacher = BlockedTeacher(teacher_hidden_ND, own)
            tokens = tokens_N if measured else None
            for span in spans:
                yield BlockedDivergence(head, sums, span, teacher, tokens, weights_N, divergence, workspace)

        keeps = BlockedDivergence.keeps_tiles(divergence, with_gradient=sums.any)
        by_blocks = _ByBlocks(
            chunks,
            student_head.weight.detach(),
            sides=2,
            spare_tiles=BlockedDivergence.SPARE_TILES,
            keeps_tiles=keeps,
        )
    return _weighted_sum(sums, weights_N, rows, by_blocks, chunk_size)


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
    sums: GradientSums, weights_N: Tensor, rows: _Rows, by_blocks: _ByBlocks | None, chunk_size: int | None
) -> tuple[Tensor, list[Any]]:
    """Σ_n w_n · value_n with its gradients, and the statistics chunk by chunk."""
    if chunk_size is not None and chunk_size < 1:
        raise ConfigError(f"chunk_size={chunk_size} holds no position; pass 1 or more, or None for the default")
    positions = sums.inputs.shape[0]
    measured: list[tuple[int, Tensor, Any]] = []
    by_rows: list[slice] = [slice(0, positions)]
    with torch.no_grad():
        if by_blocks is not None and positions:
            most = chunk_size or _block_chunk_rows(by_blocks, sums.head.vocabulary)
            by_rows = []
            for chunk, concluded in _go_by_blocks(sums, by_blocks, _spans(slice(0, positions), most)):
                if concluded:
                    measured.append((chunk.span.start, chunk.value_n, chunk.stats))
                else:
                    by_rows.append(chunk.span)
        most = chunk_size or max(MIN_CHUNK_ROWS, ROW_CHUNK_ELEMENTS // sums.head.vocabulary)
        for span in [part for whole in by_rows for part in _spans(whole, most)]:
            logits_nV = sums.head.logits(sums.inputs[span])
            (value_n, gradient_nV), stats = rows(logits_nV, span, sums.any)
            measured.append((span.start, value_n, stats))
            if gradient_nV is not None:
                weights_n = weights_N[span].to(value_n.dtype)
                sums.add(span, gradient_nV.mul_(weights_n.unsqueeze(-1)), logits_nV, left_out_n=weights_n == 0)
        measured.sort(key=lambda chunk: chunk[0])
        value_N = torch.cat([value_n for _, value_n, _ in measured])
        weights_N = weights_N.to(value_N.dtype)
        loss_sum = torch.where(weights_N != 0, weights_N * value_N, 0.0).sum()
    return attach_gradients(loss_sum, sums.known()), [stats for _, _, stats in measured]


def _block_chunk_rows(by_blocks: _ByBlocks, vocabulary: int) -> int:
    if not by_blocks.keeps_tiles:
        return MAX_BLOCK_CHUNK_ROWS
    rows = BLOCK_CHUNK_ELEMENTS // (by_blocks.sides * vocabulary) // ROW_MULTIPLE * ROW_MULTIPLE
    return min(max(rows, MIN_CHUNK_ROWS), MAX_BLOCK_CHUNK_ROWS)


def _go_by_blocks(sums: GradientSums, by_blocks: _ByBlocks, spans: list[slice]) -> Iterator[tuple[BlockedChunk, bool]]:
    rows = spans[0].stop - spans[0].start
    workspace = Workspace.for_tiles(
        by_blocks.weight,
        sums.head.vocabulary,
        rows * by_blocks.sides,
        keeps=by_blocks.keeps_tiles,
        spare_rows=by_blocks.spare_tiles * rows,
    )
    return go_through(by_blocks.chunks(sums, spans, workspace), workspace.blocks)


def _spans(whole: slice, most: int) -> list[slice]:
    """Slices of at most `most` positions, about equal, the smallest last; an empty one if there are no positions."""
    positions = whole.stop - whole.start
    if positions <= most:
        return [whole]
    size = -(-positions // -(-positions // most))
    size = min(most, -(-size // ROW_MULTIPLE) * ROW_MULTIPLE)
    return [slice(start, min(start + size, whole.stop)) for start in range(whole.start, whole.stop, size)]
