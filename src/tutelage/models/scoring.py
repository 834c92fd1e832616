"""How probable a model finds given responses, and how far it is from another set of its weights on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tutelage.losses import AnyHead
from tutelage.models.head import head_forward
from tutelage.models.inference import inference_mode_of
from tutelage.models.weight_copy import WeightCopy

Pair = tuple[list[int], list[int]]
"""Prompt ids and response ids, joined as they are."""

POSITIONS_PER_CHUNK = 256
"""Positions whose logits exist at the same time: 50 MB for a vocabulary of 50k."""


@dataclass(frozen=True)
class ResponseKl:
    """Token-averaged divergences in nats. reverse: KL(current ‖ reference); forward: KL(reference ‖ current)."""

    reverse: float
    forward: float
    tokens: int


def response_inputs(
    pairs: Sequence[Pair], pad_token_id: int, device: torch.device | str = "cpu"
) -> tuple[dict[str, Tensor], Tensor]:
    """Right-padded `input_ids` and `attention_mask` [B, T], and the mask [B, T] of positions that predict a response.

    Position t predicts token t+1, so the first predicting position is the prompt's last token.
    """
    length = max(len(prompt) + len(response) for prompt, response in pairs)
    ids_BT = torch.full((len(pairs), length), pad_token_id)
    attention_BT = torch.zeros((len(pairs), length), dtype=torch.long)
    predicts_BT = torch.zeros((len(pairs), length), dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        end = len(prompt) + len(response)
        ids_BT[row, :end] = torch.tensor([*prompt, *response])
        attention_BT[row, :end] = 1
        predicts_BT[row, len(prompt) - 1 : end - 1] = True
    inputs = {"input_ids": ids_BT.to(device), "attention_mask": attention_BT.to(device)}
    return inputs, predicts_BT.to(device)


def response_hidden(
    model: nn.Module, pairs: Sequence[Pair], pad_token_id: int
) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """Hidden states [N, D] that predict the response tokens, rows in order, and the function to logits [n, V]."""
    device = next(model.parameters()).device
    inputs, predicts_BT = response_inputs(pairs, pad_token_id, device)

    def select(hidden_BTD: Tensor, head: AnyHead) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        return hidden_BTD[predicts_BT], head.logits

    return head_forward(model, inputs, select)


def response_log_probs(model: nn.Module, pairs: Sequence[Pair], pad_token_id: int, batch_size: int = 8) -> list[Tensor]:
    """log p(token | all before it) in nats of every response token, one float32 tensor [len(response)] a pair."""
    scores: list[Tensor | None] = [None] * len(pairs)
    with inference_mode_of(model):
        for indices in _batches_by_length(pairs, batch_size):
            batch = [pairs[index] for index in indices]
            hidden_ND, logits_of = response_hidden(model, batch, pad_token_id)
            targets_N = torch.tensor([token for _, response in batch for token in response], device=hidden_ND.device)
            parts = [
                torch.log_softmax(logits_of(hidden_nD), dim=-1).gather(1, targets_n[:, None])[:, 0]
                for hidden_nD, targets_n in zip(
                    hidden_ND.split(POSITIONS_PER_CHUNK), targets_N.split(POSITIONS_PER_CHUNK), strict=True
                )
            ]
            logp_N = torch.cat(parts).float().cpu()
            lengths = [len(response) for _, response in batch]
            for index, logp in zip(indices, logp_N.split(lengths), strict=True):
                scores[index] = logp
    return [score for score in scores if score is not None]


def response_kl(
    model: nn.Module, reference: WeightCopy, pairs: Sequence[Pair], pad_token_id: int, batch_size: int = 8
) -> ResponseKl:
    """KL between the model and the same model with the reference's weights, over the response positions.

    Both directions, summed in float64 and divided by the number of response tokens.
    """
    reverse = forward = 0.0
    tokens = 0
    with inference_mode_of(model):
        for indices in _batches_by_length(pairs, batch_size):
            batch = [pairs[index] for index in indices]
            with reference.applied(model):
                # The head may be among the trained tensors: its logits are taken while the reference is in place.
                hidden_ND, logits_of = response_hidden(model, batch, pad_token_id)
                reference_logp_NV = _log_softmax_in_chunks(hidden_ND, logits_of)
            hidden_ND, logits_of = response_hidden(model, batch, pad_token_id)
            logp_NV = _log_softmax_in_chunks(hidden_ND, logits_of)
            difference_NV = logp_NV - reference_logp_NV
            reverse += float((logp_NV.exp() * difference_NV).sum(dtype=torch.float64))
            forward -= float((reference_logp_NV.exp() * difference_NV).sum(dtype=torch.float64))
            tokens += hidden_ND.shape[0]
    return ResponseKl(reverse / max(tokens, 1), forward / max(tokens, 1), tokens)


def _log_softmax_in_chunks(hidden_ND: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.cat([torch.log_softmax(logits_of(part), dim=-1) for part in hidden_ND.split(POSITIONS_PER_CHUNK)])


def _batches_by_length(pairs: Sequence[Pair], batch_size: int) -> list[list[int]]:
    """Indices in batches of similar length, so that little is computed on padding."""
    order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
