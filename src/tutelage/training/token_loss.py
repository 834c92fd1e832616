"""The loss on given answers through the chunked head. Not here: which objective that is (`token_trainer.py`)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tutelage.data.rows import IGNORE_INDEX
from tutelage.losses import TokenStats, token_objective
from tutelage.models import Layout, head_forward, lay_out


def token_loss_sum(model: Any, inputs: Mapping[str, Any], objective: Any) -> tuple[Tensor, TokenStats]:
    """Σ weight · loss over the valid positions of a padded or packed batch, through the chunked head.

    inputs: `input_ids` [B, T], `labels` [B, T] (unshifted, −100 ignored), `weights` [B, T] (of the token itself).
    """
    layout, keep_BT = _laid_out(model, inputs)
    place_L, labels_L, weights_L = layout.all_places, inputs["labels"][keep_BT], inputs["weights"][keep_BT]
    lengths = torch.tensor([len(place) for place in layout.places], device=labels_L.device)
    labels_L[lengths.cumsum(0) - lengths] = IGNORE_INDEX  # nothing predicts the first token of a sequence
    trained_L = labels_L[1:] != IGNORE_INDEX

    def through_head(hidden_ND: Tensor, head: Any) -> tuple[Tensor, TokenStats]:
        result = token_objective(hidden_ND, head, labels_L[1:][trained_L], weights_L[1:][trained_L], objective)
        return result.loss_sum, result.stats

    return head_forward(model, layout.inputs, through_head, place_L[:-1][trained_L])


def _laid_out(model: Any, inputs: Mapping[str, Any]) -> tuple[Layout, Tensor]:
    """The sequences of a batch, and the mask [B, T] of their tokens."""
    ids_BT = inputs["input_ids"]
    if "attention_mask" in inputs:
        keep_BT = inputs["attention_mask"].bool()
        return lay_out(model, [ids_T[keep_T].tolist() for ids_T, keep_T in zip(ids_BT, keep_BT, strict=True)]), keep_BT
    starts = (inputs["position_ids"][0] == 0).nonzero()[1:, 0].tolist()
    places = list(torch.arange(ids_BT.shape[1], device=ids_BT.device).tensor_split(starts))
    packed = Layout({"input_ids": ids_BT, "position_ids": inputs["position_ids"]}, places)
    keep_BT = torch.ones_like(ids_BT, dtype=torch.bool)
    return lay_out(model, [ids_BT[0, place].tolist() for place in places], otherwise=packed), keep_BT
