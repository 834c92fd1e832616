"""Which positions count, whether tensors fit together, and by what a sum is divided.

Shared by the dense and the chunked functions. No loss is computed here.
"""

import torch
from torch import Tensor

from tutelage.errors import ShapeError

IGNORE_INDEX = -100
"""The label of a position that is not trained."""


def require_shape(name: str, tensor: Tensor, expected: tuple[int, ...], like: str) -> None:
    """Raise ShapeError unless `tensor` has the `expected` shape, which it shares with `like`."""
    if tuple(tensor.shape) != expected:
        raise ShapeError(
            f"{name} has shape {list(tensor.shape)}, expected {list(expected)} to go with {like}; "
            "pass tensors of the same positions"
        )


def require_vocabulary(name: str, tokens_N: Tensor, vocabulary: int) -> None:
    """Raise ShapeError unless every token id has a logit."""
    if tokens_N.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(tokens_N))
    wrong = low if low < 0 else high
    if low < 0 or high >= vocabulary:
        raise ShapeError(
            f"{name} holds token id {wrong}, but the logits have entries 0 to {vocabulary - 1}; "
            f"use the tokenizer of this model, and {IGNORE_INDEX} for positions to leave out"
        )


def select_trained(name: str, rows_BTX: Tensor, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [N, X] that predict a label, and those labels [N]: position t predicts label t+1, -100 is left out.

    Selecting before computing keeps NaN and infinity at the other positions out of loss and gradient.
    """
    if rows_BTX.ndim != 3:
        raise ShapeError(
            f"{name} has shape {list(rows_BTX.shape)}, expected three axes [batch, position, {name}]; "
            "add the missing axis"
        )
    require_shape("labels", labels_BT, tuple(rows_BTX.shape[:2]), name)
    targets_BT = labels_BT[:, 1:]
    trained_BT = targets_BT != IGNORE_INDEX
    return rows_BTX[:, :-1][trained_BT], targets_BT[trained_BT]


def normalised(loss_sum: Tensor, num_items: Tensor | float | None, counted: int) -> Tensor:
    """The sum over `num_items` if given, else over the number of counted positions; a sum over nothing is 0."""
    if num_items is None:
        return loss_sum / max(counted, 1)
    if isinstance(num_items, Tensor):
        num_items = num_items.to(loss_sum.device)
        return loss_sum / torch.where(num_items > 0, num_items, torch.ones_like(num_items))
    return loss_sum / (num_items if num_items > 0 else 1)
