"""How probable a model finds several answers to one prompt, with the prompt computed once. Not here: `scoring.py`.

The answers of a question follow its prompt in one row. Each sees the prompt and itself, never its siblings: a mask
and position ids of its own. Four answers of 9 tokens to a prompt of 37 are 73 positions in place of 184, and fewer
still where the answers begin alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.losses import AnyHead
from tutelage.models.head import head_forward
from tutelage.models.inference import inference_mode_of
from tutelage.models.scoring import response_log_probs

PromptChoices = tuple[list[int], list[list[int]]]
"""Prompt ids, and the ids of each choice; every choice has at least one token."""

MASKABLE_ATTENTION = ("sdpa", "eager")
"""Implementations that take a mask of each position over each other."""
LARGEST_ERROR = 1e-3
"""Nats by which a shared row may differ from a plain one on the first question."""


def choice_log_probs(
    model: nn.Module, questions: Sequence[PromptChoices], pad_token_id: int, batch_size: int = 8
) -> list[list[Tensor]]:
    """log p(token | prompt and the choice so far) in nats, one float32 tensor [len(choice)] a choice of a question.

    The same as `response_log_probs` on every pair. Layers that carry a state along the row (recurrent ones) know no
    mask and would let one choice see another; so the first question is computed both ways, and where the two differ
    every question is computed the plain way.
    """
    if not _takes_masks(model) or not questions:
        return _plain(model, questions, pad_token_id, batch_size)
    first = questions[:1]
    expected, found = _plain(model, first, pad_token_id, batch_size)[0], _shared(model, first, pad_token_id)[0]
    if any(abs(float((a - b).sum())) > LARGEST_ERROR for a, b in zip(expected, found, strict=True)):
        return _plain(model, questions, pad_token_id, batch_size)
    order = sorted(range(len(questions)), key=lambda index: _Row.of(questions[index]).length)
    scores: dict[int, list[Tensor]] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        scores.update(zip(indices, _shared(model, [questions[index] for index in indices], pad_token_id), strict=True))
    return [scores[index] for index in range(len(questions))]


@dataclass(frozen=True)
class _Row:
    """trunk: the prompt and what all choices begin with; branches: what is left of each choice."""

    trunk: list[int]
    shared: int
    branches: list[list[int]]

    @classmethod
    def of(cls, question: PromptChoices) -> "_Row":
        prompt, choices = question
        shared = 0
        # The last token of a choice predicts nothing, so one token is always left for the branch.
        while all(len(choice) > shared + 1 for choice in choices) and len({choice[shared] for choice in choices}) == 1:
            shared += 1
        return cls([*prompt, *choices[0][:shared]], shared, [choice[shared:] for choice in choices])

    @property
    def length(self) -> int:
        return len(self.trunk) + sum(len(branch) - 1 for branch in self.branches)


def _takes_masks(model: nn.Module) -> bool:
    config: Any = getattr(getattr(model, "module", model), "config", None)
    return getattr(config, "_attn_implementation", None) in MASKABLE_ATTENTION


def _plain(
    model: nn.Module, questions: Sequence[PromptChoices], pad_token_id: int, batch_size: int
) -> list[list[Tensor]]:
    pairs = [(prompt, choice) for prompt, choices in questions for choice in choices]
    scores = iter(response_log_probs(model, pairs, pad_token_id, batch_size))
    return [[next(scores) for _ in choices] for _, choices in questions]


def _shared(model: nn.Module, questions: Sequence[PromptChoices], pad_token_id: int) -> list[list[Tensor]]:
    rows = [_Row.of(question) for question in questions]
    size, length = len(rows), max(row.length for row in rows)
    ids_BT = torch.full((size, length), pad_token_id)
    positions_BT = torch.zeros((size, length), dtype=torch.long)
    sees_BTT = torch.eye(length, dtype=torch.bool).repeat(size, 1, 1)  # padding sees itself: no empty softmax
    places: list[tuple[int, int]] = []
    for number, row in enumerate(rows):
        trunk = len(row.trunk)
        ids_BT[number, :trunk] = torch.tensor(row.trunk)
        positions_BT[number, :trunk] = torch.arange(trunk)
        sees_BTT[number, :trunk, :trunk] = torch.ones(trunk, trunk).tril().bool()
        start = trunk
        for branch in row.branches:
            end = start + len(branch) - 1
            ids_BT[number, start:end] = torch.tensor(branch[:-1], dtype=torch.long)
            positions_BT[number, start:end] = torch.arange(trunk, trunk + end - start)
            sees_BTT[number, start:end, :trunk] = True
            sees_BTT[number, start:end, start:end] = torch.ones(end - start, end - start).tril().bool()
            predicting = [*range(trunk - row.shared - 1, trunk), *range(start, end)]
            places += [(number, place) for place in predicting]
            start = end
    targets = [token for _, choices in questions for choice in choices for token in choice]
    logp_N = _log_probs(model, ids_BT, positions_BT, sees_BTT, places, targets)
    parts = iter(logp_N.split([len(choice) for _, choices in questions for choice in choices]))
    return [[next(parts) for _ in choices] for _, choices in questions]


def _log_probs(
    model: nn.Module,
    ids_BT: Tensor,
    positions_BT: Tensor,
    sees_BTT: Tensor,
    places: Sequence[tuple[int, int]],
    targets: Sequence[int],
) -> Tensor:
    parameter = next(model.parameters())
    device, dtype = parameter.device, parameter.dtype
    mask_B1TT = torch.zeros(sees_BTT[:, None].shape, dtype=dtype).masked_fill(
        ~sees_BTT[:, None], torch.finfo(dtype).min
    )
    inputs = {"input_ids": ids_BT, "position_ids": positions_BT, "attention_mask": mask_B1TT}
    row_N, place_N = torch.tensor(places, device=device).unbind(dim=1)

    def select(hidden_BTD: Tensor, head: AnyHead) -> Tensor:
        return torch.log_softmax(head.logits(hidden_BTD[row_N, place_N]), dim=-1)

    with inference_mode_of(model):
        logp_NV = head_forward(model, {name: tensor.to(device) for name, tensor in inputs.items()}, select)
        return logp_NV.gather(1, torch.tensor(targets, device=device)[:, None])[:, 0].float().cpu()
