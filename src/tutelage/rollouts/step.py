"""A decode step of a few rows on a CPU: every operation writes into a buffer that is there for all layers.

With few rows the large products take less than half of a step as `Decoder` writes it down; the rest goes to some forty
operations a layer of ten microseconds and more each, for memory, views, and copies from one layout to another. Here
outputs stay as the products leave them, in blocks [B, M, W] with a head as one block, and views are made once.
Not here: the same step in plain words, for all other devices, types and sizes (`decoder.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.rollouts.cache import KeyValueCache
from tutelage.rollouts.products import MANY_ROWS, Blocks, Room

if TYPE_CHECKING:
    from tutelage.rollouts.decoder import Decoder

WIDEST_BLOCK = 64
"""Rows of a weight in one small product, where they are not a head's: 32, 64 and 96 are within 5 % of each other."""


@dataclass(frozen=True)
class BlockedLayer:
    """A layer's groups in blocks: a head each of queries, keys and values, up to `WIDEST_BLOCK` of the others."""

    queries_keys_values: Blocks
    output: Blocks
    gate_up: Blocks
    down: Blocks


def blocked_layers(decoder: "Decoder") -> list[BlockedLayer] | None:
    """The decoder's layers for `Step`, views of the same weights; None where blocks are not what they are made for."""
    if decoder.device.type != "cpu" or decoder.embedding.dtype != torch.float32 or decoder.head_width % 2:
        return None
    if not all(group.can_be_blocked for layer in decoder.layers for group in layer.groups):
        return None
    hidden, inner = decoder.embedding.shape[1], decoder.layers[0].gate_up.widths[0]
    wide, narrow = gcd(inner, WIDEST_BLOCK), gcd(hidden, WIDEST_BLOCK)
    return [
        BlockedLayer(
            layer.queries_keys_values.blocks(decoder.head_width),
            layer.output.blocks(narrow),
            layer.gate_up.blocks(wide),
            layer.down.blocks(narrow),
        )
        for layer in decoder.layers
    ]


def is_for(rows: int) -> bool:
    """Whether so many rows are few: a single one is a product with a vector, and many are one with a matrix."""
    return 1 < rows <= MANY_ROWS


class Step:
    """Buffers for M rows, and the step in them."""

    def __init__(self, decoder: "Decoder", layers: Sequence[BlockedLayer], rows: int) -> None:
        self._decoder, self._layers, self._rows = decoder, layers, rows
        heads, key_heads, width = decoder.heads, decoder.key_heads, decoder.head_width
        with torch.inference_mode():  # buffers that autograd knows nothing of: 5 % of a step of 8 rows
            hidden_MH = torch.empty(rows, decoder.embedding.shape[1])
            normed_MH = torch.empty_like(hidden_MH)
            attended_SGD = torch.empty(rows * key_heads, heads // key_heads, width)
            heads_AMD = torch.empty(heads + 2 * key_heads, rows, width)
            self._hidden_MH, self._normed_MH, self._attended_SGD = hidden_MH, normed_MH, attended_SGD
            self._query_AMD, self._key_AMD, self._value_AMD = heads_AMD.split((heads, key_heads, key_heads))
            # Rotated queries and keys, and the values behind the keys, as they go into the cache.
            rotated_AMD = torch.empty_like(heads_AMD)
            self._rotated_query_MAD = rotated_AMD[:heads].transpose(0, 1)
            self._keys_values_SD = rotated_AMD[heads:].view(-1, width)
            self._new_value_AMD = rotated_AMD[heads + key_heads :]
            self._turned = (heads_AMD[:-key_heads], rotated_AMD[:-key_heads])
            # One batch for each row and key head, whose queries are positions of one head: nothing is repeated.
            self._query_SGD = torch.empty_like(attended_SGD)
            self._query_MAD = self._query_SGD.view(rows, heads, width)
            self._in_heads = Room(normed_MH, heads_AMD, layers[0].queries_keys_values.counts)
            self._out = _room(attended_SGD.view(rows, -1), layers[0].output)
            self._gate_up = _room(normed_MH, layers[0].gate_up)
            self._gate_BMW, self._up_BMW = self._gate_up.out_BMW.chunk(2)
            inner_MI = torch.empty(rows, decoder.layers[0].gate_up.widths[0])
            self._inner_BMW = _in_blocks(inner_MI, self._gate_BMW.shape[2])
            self._down = _room(inner_MI, layers[0].down)
            self._hidden_BMW = _in_blocks(hidden_MH, self._down.out_BMW.shape[2])

    def __call__(
        self, tokens_M: Tensor, lengths: Sequence[int], cache: KeyValueCache, rotations: tuple[Tensor, Tensor]
    ) -> Tensor:
        """What `Decoder.step` gives."""
        with torch.inference_mode():
            self._through_layers(tokens_M, lengths, cache, rotations)
        return self._decoder.norm(self._hidden_MH)  # outside, where the result is a tensor like any other

    def _through_layers(
        self, tokens_M: Tensor, lengths: Sequence[int], cache: KeyValueCache, rotations: tuple[Tensor, Tensor]
    ) -> None:
        decoder, hidden_MH, normed_MH = self._decoder, self._hidden_MH, self._normed_MH
        longest = max(lengths) + 1
        lengths_M = torch.tensor(lengths)
        places_S = cache.places(lengths_M).view(self._rows, -1).T.flatten()
        hidden_MT = torch.arange(longest) > lengths_M[:, None]
        mask_MT = torch.zeros(hidden_MT.shape).masked_fill_(hidden_MT, float("-inf"))
        mask_S1T = mask_MT.repeat_interleave(decoder.key_heads, dim=0)[:, None]
        cosine_MD, sine_MD = (table_TD[lengths_M] for table_TD in rotations)
        scores_SGT = torch.empty(*self._query_SGD.shape[:2], longest)
        weights_SGT = torch.empty_like(scores_SGT)
        keys_LSTD, values_LSTD = cache.first(self._rows, longest).unbind(1)
        turns = _Turns(*self._turned, cosine_MD, sine_MD)
        torch.index_select(decoder.embedding, 0, tokens_M, out=hidden_MH)
        for index, (layer, blocks, key_SDT, value_STD) in enumerate(
            zip(decoder.layers, self._layers, keys_LSTD.transpose(2, 3).unbind(), values_LSTD.unbind(), strict=True)
        ):
            layer.norm_before.into(hidden_MH, normed_MH)
            blocks.queries_keys_values(self._in_heads)
            if layer.query_norm is not None and layer.key_norm is not None:
                layer.query_norm.into(self._query_AMD, self._query_AMD)
                layer.key_norm.into(self._key_AMD, self._key_AMD)
            turns.turn()
            self._new_value_AMD.copy_(self._value_AMD)
            cache.write(index, places_S, self._keys_values_SD)
            torch.mul(self._rotated_query_MAD, decoder.scaling, out=self._query_MAD)
            torch.bmm(self._query_SGD, key_SDT, out=scores_SGT)
            torch.softmax(scores_SGT.add_(mask_S1T), -1, out=weights_SGT)
            torch.bmm(weights_SGT, value_STD, out=self._attended_SGD)
            blocks.output(self._out)
            self._hidden_BMW.add_(self._out.out_BMW)
            layer.norm_between.into(hidden_MH, normed_MH)
            blocks.gate_up(self._gate_up)
            torch.mul(functional.silu(self._gate_BMW, inplace=True), self._up_BMW, out=self._inner_BMW)
            blocks.down(self._down)
            self._hidden_BMW.add_(self._down.out_BMW)


class _Turns:
    """x cos + (−x₂, x₁) sin for all heads of a row; the sines' first half is negated already (`Decoder.rotations`)."""

    def __init__(self, x_AMD: Tensor, out_AMD: Tensor, cosine_MD: Tensor, sine_MD: Tensor) -> None:
        self._x, self._out, self._cosine = x_AMD, out_AMD, cosine_MD
        (x_1, x_2), (out_1, out_2) = x_AMD.chunk(2, dim=-1), out_AMD.chunk(2, dim=-1)
        sine_1, sine_2 = sine_MD.chunk(2, dim=-1)
        self._halves = ((out_1, x_2, sine_1), (out_2, x_1, sine_2))

    def turn(self) -> None:
        torch.mul(self._x, self._cosine, out=self._out)
        for out, other, sine in self._halves:
            out.addcmul_(other, sine)


def _room(x_MK: Tensor, blocks: Blocks) -> Room:
    return Room(x_MK, torch.empty(sum(blocks.counts), len(x_MK), blocks.width), blocks.counts)


def _in_blocks(x_MN: Tensor, width: int) -> Tensor:
    """The same numbers as [N / width, M, width]."""
    return x_MN.view(len(x_MN), -1, width).transpose(0, 1)
