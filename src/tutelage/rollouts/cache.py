"""Keys and values of all layers, one row for each response in the making. Not here: who computes and reads them."""

import torch
from torch import Tensor

ZEROED = 64
"""Columns cleared at a time: what lies behind a row's end is masked, but has to be a number."""


class KeyValueCache:
    """`[layers, 2, rows, heads, length, D]`, keys and then values, a row's first token in column 0.

    layers · 2 · rows · heads · length · D numbers are reserved at once: 46 KB for each token of a 135M Llama in
    float32, 335 MB for 32 rows of 228 tokens; `engine.py` bounds rows and length. Where a system hands memory out as it
    is touched, only the columns that were used count, in all rows: as many as the longest row has.
    """

    def __init__(
        self, layers: int, rows: int, heads: int, length: int, width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._all = torch.empty((layers, 2, rows, heads, length, width), device=device, dtype=dtype)
        self._flat_LSD = self._all.view(layers, -1, width)
        self._cleared = 0

    def clear_up_to(self, length: int) -> None:
        """No column below `length` holds anything but numbers from here on."""
        if length > self._cleared:
            end = min(-(-length // ZEROED) * ZEROED, self._all.shape[4])
            self._all[..., self._cleared : end, :] = 0.0
            self._cleared = end

    def clear_row(self, row: int) -> None:
        """A row that is to be used again holds nothing but numbers from here on."""
        self._all[:, :, row, :, : self._cleared] = 0.0

    def layer(self, layer: int) -> Tensor:
        """`[2, rows, heads, length, D]`, to read and to write."""
        return self._all[layer]

    def first(self, rows: int, length: int) -> Tensor:
        """`[layers, 2, rows · heads, length, D]`: the first columns of the first rows, to read."""
        return self._all[:, :, :rows].flatten(2, 3)[:, :, :, :length]

    def places(self, columns_N: Tensor) -> Tensor:
        """Where the token in column `columns_N[n]` of row n stands, for `write`: int64 [N · 2 · heads]."""
        _, _, rows, heads, length, _ = self._all.shape
        kind = torch.arange(2, device=columns_N.device)[None, :, None] * rows
        row = torch.arange(len(columns_N), device=columns_N.device)[:, None, None]
        head = torch.arange(heads, device=columns_N.device)
        return (((kind + row) * heads + head) * length + columns_N[:, None, None]).flatten()

    def write(self, layer: int, places_S: Tensor, keys_values_SD: Tensor) -> None:
        self._flat_LSD[layer].index_copy_(0, places_S, keys_values_SD)

    def move(self, source: int, target: int, length: int) -> None:
        """The first `length` columns of one row to another, in all layers."""
        self._all[:, :, target, :, :length] = self._all[:, :, source, :, :length]
