"""How probable a model finds given responses, and how far it is from another set of its weights on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.losses import AnyHead
from tutelage.models.head import head_forward
from tutelage.models.inference import inference_mode_of
from tutelage.models.layout import Layout, lay_out, takes_trees
from tutelage.models.weight_copy import WeightCopy

Pair = tuple[list[int], list[int]]
"""Prompt ids and response ids, joined as they are."""

POSITIONS_PER_CHUNK = 256
"""Positions whose logits exist at the same time: 50 MB for a vocabulary of 50k."""


@dataclass(frozen=True)
class ResponseKl:
    """Divergences in nats, summed over `tokens` tokens. reverse: KL(current ‖ reference); forward: KL(reference ‖
    current)."""

    reverse: float
    forward: float
    tokens: int


@dataclass(frozen=True)
class ResponseScore:
    """log_probs: of each response token in nats, float32 [len(response)]. greedy: each is the most probable token."""

    log_probs: Tensor
    greedy: bool


def response_hidden(model: nn.Module, pairs: Sequence[Pair]) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Hidden states [N, D] that predict the response tokens, rows in order, and the function to logits [n, V]."""
    layout = lay_out(model, [[*prompt, *response] for prompt, response in pairs])
    place_N = predicting_places(layout, pairs)

    def select(hidden_ND: Tensor, head: AnyHead) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return hidden_ND, head.logits

    return head_forward(model, layout.inputs, select, place_N)


def predicting_places(layout: Layout, pairs: Sequence[Pair]) -> Tensor:
    """The places [N] of the tokens before each response token: a token is predicted where its predecessor stands."""
    places = zip(layout.places, pairs, strict=True)
    return torch.cat([place[len(prompt) - 1 : len(prompt) + len(response) - 1] for place, (prompt, response) in places])


def response_log_probs(model: nn.Module, pairs: Sequence[Pair], batch_size: int = 8) -> list[Tensor]:
    """log p(token | all before it) in nats of every response token, one float32 tensor [len(response)] a pair."""
    return [score.log_probs for score in response_scores(model, pairs, batch_size)]


def response_scores(model: nn.Module, pairs: Sequence[Pair], batch_size: int = 8) -> list[ResponseScore]:
    """The same, and whether greedy decoding would give the response."""
    scores: list[ResponseScore | None] = [None] * len(pairs)
    with inference_mode_of(model):
        for indices in _batches(model, pairs, batch_size):
            batch = [pairs[index] for index in indices]
            hidden_ND, logits_of = response_hidden(model, batch)
            targets_N = torch.tensor([token for _, response in batch for token in response], device=hidden_ND.device)
            parts: list[Tensor] = []
            greedy: list[Tensor] = []
            for hidden_nD, targets_n in zip(
                hidden_ND.split(POSITIONS_PER_CHUNK), targets_N.split(POSITIONS_PER_CHUNK), strict=True
            ):
                logp_nV = torch.log_softmax(logits_of(hidden_nD), dim=-1)
                parts.append(logp_nV.gather(1, targets_n[:, None])[:, 0])
                greedy.append(logp_nV.argmax(dim=-1) == targets_n)
            logp_N, greedy_N = torch.cat(parts).float().cpu(), torch.cat(greedy).cpu()
            lengths = [len(response) for _, response in batch]
            for index, logp, is_greedy in zip(indices, logp_N.split(lengths), greedy_N.split(lengths), strict=True):
                scores[index] = ResponseScore(logp, bool(is_greedy.all()))
    return [score for score in scores if score is not None]


def response_kl(
    model: nn.Module, reference: WeightCopy, pairs: Sequence[Pair], batch_size: int = 8
) -> list[ResponseKl]:
    """KL between the model and the same model with the reference's weights, for each pair over its response.

    Both directions, summed in float64 over the response tokens.
    """
    found: dict[int, ResponseKl] = {}
    with inference_mode_of(model):
        for indices in _batches(model, pairs, batch_size):
            batch = [pairs[index] for index in indices]
            with reference.applied(model):
                # The head may be among the trained tensors: its logits are taken while the reference is in place.
                reference_logp_NV = _log_softmax_in_chunks(*response_hidden(model, batch))
            logp_NV = _log_softmax_in_chunks(*response_hidden(model, batch))
            difference_NV = logp_NV - reference_logp_NV
            reverse_N = (logp_NV.exp() * difference_NV).sum(dim=-1, dtype=torch.float64)
            forward_N = -(reference_logp_NV.exp() * difference_NV).sum(dim=-1, dtype=torch.float64)
            lengths = [len(response) for _, response in batch]
            for index, reverse_n, forward_n in zip(
                indices, reverse_N.split(lengths), forward_N.split(lengths), strict=True
            ):
                found[index] = ResponseKl(float(reverse_n.sum()), float(forward_n.sum()), len(reverse_n))
    return [found[index] for index in range(len(pairs))]


def _log_softmax_in_chunks(hidden_ND: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([torch.log_softmax(logits_of(part), dim=-1) for part in hidden_ND.split(POSITIONS_PER_CHUNK)])


def _batches(model: nn.Module, pairs: Sequence[Pair], batch_size: int) -> list[list[int]]:
    """Indices in batches of pairs that begin alike, or, where that is of no use, of similar length."""
    if takes_trees(model):
        order = sorted(range(len(pairs)), key=lambda index: [*pairs[index][0], *pairs[index][1]])
    else:
        order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
