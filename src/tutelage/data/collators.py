"""Batches of tensors from token rows: padded, or packed without padding.

Both give `input_ids` and `labels` (int64, not shifted, -100 where nothing is trained), `weights` (float32, one
factor per token) and `rows` (int64, the rows' indices in order). Masks come from lengths, never from a
comparison with the pad id, which often equals eos.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tutelage.data.rows import IGNORE_INDEX, TokenRow


def pad_batch(
    rows: Sequence[TokenRow], pad_token_id: int, padding_side: Literal["left", "right"] = "right"
) -> dict[str, Tensor]:
    """Rows padded to the longest: `input_ids, attention_mask, labels, weights` [B, T] and `rows` [B].

    Padding has attention 0, label -100 and weight 0.
    """
    length = max(len(row.input_ids) for row in rows)
    input_ids_BT = torch.full((len(rows), length), pad_token_id, dtype=torch.long)
    attention_mask_BT = torch.zeros((len(rows), length), dtype=torch.long)
    labels_BT = torch.full((len(rows), length), IGNORE_INDEX, dtype=torch.long)
    weights_BT = torch.zeros((len(rows), length))
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        span = slice(length - size, length) if padding_side == "left" else slice(0, size)
        input_ids_BT[index, span] = torch.tensor(row.input_ids)
        attention_mask_BT[index, span] = 1
        labels_BT[index, span] = torch.tensor(row.labels)
        weights_BT[index, span] = torch.tensor(row.weights)
    return {
        "input_ids": input_ids_BT,
        "attention_mask": attention_mask_BT,
        "labels": labels_BT,
        "weights": weights_BT,
        "rows": torch.tensor([row.row for row in rows]),
    }


def packed_batch(packs: Sequence[Sequence[TokenRow]]) -> dict[str, Tensor]:
    """All rows of all packs in one sequence: `input_ids, position_ids, labels, weights` [1, T] and `rows` [N].

    Positions restart at every row, and there is no attention mask: from that, transformers keeps attention
    within each row. It does so only without a cache, so call the model with `use_cache=False`. The first label
    of each row is -100, so that no token is predicted across rows.
    """
    rows = [row for pack in packs for row in pack]
    input_ids = [token for row in rows for token in row.input_ids]
    position_ids = [position for row in rows for position in range(len(row.input_ids))]
    labels = [label for row in rows for label in (IGNORE_INDEX, *row.labels[1:])]
    weights = [weight for row in rows for weight in row.weights]
    return {
        "input_ids": torch.tensor([input_ids]),
        "position_ids": torch.tensor([position_ids]),
        "labels": torch.tensor([labels]),
        "weights": torch.tensor([weights], dtype=torch.float32),
        "rows": torch.tensor([row.row for row in rows]),
    }
