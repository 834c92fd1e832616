"""Attention over sequences that lie end to end, each within itself and what it branches off from.

An implementation for transformers' registry: with `branches` among a model's arguments, every branch attends to its
ancestors and causally to itself, and nothing is computed for pairs that may not see each other. Without, it is
transformers' `sdpa`. Not here: how sequences become branches (`layout.py`).
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tutelage.errors import ModelError

BRANCHES = "sdpa_of_branches"
"""The name under which transformers knows it."""

NOT_FOR_BRANCHES = ("softcap", "position_bias", "s_aux", "sliding_window", "cache")
"""Arguments of other kinds of attention, which `branch_attention` does not compute."""


@dataclass(frozen=True)
class Branches:
    """Runs of consecutive positions. lengths: tokens of each, in the order they lie in. ancestors: for each, the
    branches it comes after, from the first on."""

    lengths: list[int]
    ancestors: list[list[int]]
    _masks: dict[int, Tensor] = field(default_factory=dict[int, Tensor])

    def mask(self, branch: int, device: torch.device) -> Tensor:
        """bool [own, ancestors' + own]: what the tokens of a branch see. The same for all layers, so it is kept."""
        if branch not in self._masks:
            own = self.lengths[branch]
            before = sum(self.lengths[ancestor] for ancestor in self.ancestors[branch])
            self._masks[branch] = torch.ones(own, before + own, dtype=torch.bool, device=device).tril(before)
        return self._masks[branch]


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    branches: Branches | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """query [1, heads, T, D], key and value [1, key heads, T, D] -> [1, T, heads, D]; `attention_mask` counts only
    without branches. Raises ModelError for attention of another kind."""
    if branches is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    for name in NOT_FOR_BRANCHES:
        if options.get(name) is not None:
            raise ModelError(
                f"attention with {name} cannot be computed branch by branch; lay the sequences out in rows"
            )
    # split, and not slices: the gradient of a split is one concatenation, that of each slice a tensor of zeros.
    queries, keys, values = (states.split(branches.lengths, dim=2) for states in (query, key, value))
    outputs: list[Tensor] = []
    for branch, ancestors in enumerate(branches.ancestors):
        seen = [*ancestors, branch]
        outputs.append(
            scaled_dot_product_attention(
                queries[branch],
                torch.cat([keys[one] for one in seen], dim=2) if ancestors else keys[branch],
                torch.cat([values[one] for one in seen], dim=2) if ancestors else values[branch],
                attn_mask=branches.mask(branch, query.device) if ancestors else None,
                dropout_p=dropout,
                is_causal=not ancestors,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


AttentionInterface.register(BRANCHES, branch_attention)
AttentionMaskInterface.register(BRANCHES, sdpa_mask)
