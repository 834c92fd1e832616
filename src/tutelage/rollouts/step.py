"""A decode step of a few rows on a CPU: every operation writes into a buffer that is there for all layers.

With few rows the large products take less than half of a step as `Decoder` writes it down; the rest goes to some forty
operations a layer of ten microseconds and more each, for memory, views, and copies from one layout to another. Here
outputs stay as the products leave them, in blocks [B, M, W] with a head as one block, and views are made once.
Not here: the same step in plain words, for all other devices, types and sizes (`decoder.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.rollouts.cache import KeyValueCache
from tutelage.rollouts.layers import Layer
from tutelage.rollouts.products import Blocks, Room

MOST_ROWS = 128
"""With more rows than these a step in plain words is as fast."""
WIDEST_BLOCK, NARROW_BLOCK = 64, 16
"""Rows of a weight in one small product, of gate and up and of what gives hidden states: [576, 1536] and eight rows go
at 18.8 GB/s in blocks of 16, at 14.4 in blocks of 64; [3072, 576] at 15 in either."""
NARROWEST_BLOCK = 16
"""Where sizes have no larger divisor than this the plain products are faster."""


@dataclass(frozen=True)
class Weights:
    """What a step reads: the model's own embedding [V, H] and layers, how their outputs are heads, the factor of the
    scores."""

    embedding: Tensor
    layers: Sequence[Layer]
    heads: int
    key_heads: int
    head_width: int
    scaling: float


@dataclass(frozen=True)
class BlockedLayer:
    """A layer's groups in blocks: a head each of queries, keys and values, up to `WIDEST_BLOCK` of the others."""

    queries_keys_values: Blocks
    output: Blocks
    gate_up: Blocks
    down: Blocks


class StepInBlocks:
    """The step of up to `MOST_ROWS` rows, with the buffers of the last number of rows."""

    def __init__(self, weights: Weights, layers: Sequence[BlockedLayer]) -> None:
        self._weights, self._layers = weights, layers
        self.buffers: Buffers | None = None

    @classmethod
    def of(cls, weights: Weights) -> "StepInBlocks | None":
        """None where the weights are not on a CPU, not float32, or of sizes that have no blocks; nothing is copied."""
        embedding_VH, layers, head_width = weights.embedding, weights.layers, weights.head_width
        if embedding_VH.device.type != "cpu" or embedding_VH.dtype != torch.float32 or head_width % 2:
            return None
        if not all(group.can_be_blocked for layer in layers for group in layer.groups):
            return None
        wide = gcd(layers[0].gate_up.widths[0], WIDEST_BLOCK)
        narrow = gcd(embedding_VH.shape[1], NARROW_BLOCK)
        if min(wide, narrow) < NARROWEST_BLOCK:
            return None
        blocked = [
            BlockedLayer(
                layer.queries_keys_values.blocks(head_width),
                layer.output.blocks(narrow),
                layer.gate_up.blocks(wide),
                layer.down.blocks(narrow),
            )
            for layer in layers
        ]
        return cls(weights, blocked)

    def __call__(
        self, tokens_M: Tensor, lengths: Sequence[int], cache: KeyValueCache, rotations: tuple[Tensor, Tensor]
    ) -> Tensor:
        """Hidden states [M, H] before the last norm, in a buffer that the next step overwrites. See `Decoder.step`."""
        if self.buffers is None or self.buffers.rows != len(lengths):
            self.buffers = Buffers(self._weights, self._layers[0], len(lengths))
        with torch.inference_mode():
            self._through_layers(self.buffers, tokens_M, lengths, cache, rotations)
        return self.buffers.hidden_MH

    def _through_layers(
        self,
        at: "Buffers",
        tokens_M: Tensor,
        lengths: Sequence[int],
        cache: KeyValueCache,
        rotations: tuple[Tensor, Tensor],
    ) -> None:
        weights, hidden_MH, normed_MH = self._weights, at.hidden_MH, at.normed_MH
        longest = max(lengths) + 1
        lengths_M = torch.tensor(lengths)
        places_S = cache.places(lengths_M).view(at.rows, -1).T.flatten()
        hidden_MT = torch.arange(longest) > lengths_M[:, None]
        mask_MT = hidden_MH.new_zeros(hidden_MT.shape).masked_fill_(hidden_MT, float("-inf"))
        mask_S1T = mask_MT.repeat_interleave(weights.key_heads, dim=0)[:, None]
        cosine_MD, sine_MD = (table_TD[lengths_M] for table_TD in rotations)
        scores_SGT = hidden_MH.new_empty(*at.query_SGD.shape[:2], longest)
        weights_SGT = torch.empty_like(scores_SGT)
        keys_LSTD, values_LSTD = cache.first(at.rows, longest).unbind(1)
        turns = _Turns(*at.turned, cosine_MD, sine_MD)
        torch.index_select(weights.embedding, 0, tokens_M, out=hidden_MH)
        for index, (layer, blocks, key_SDT, value_STD) in enumerate(
            zip(weights.layers, self._layers, keys_LSTD.transpose(2, 3).unbind(), values_LSTD.unbind(), strict=True)
        ):
            layer.norm_before.into(hidden_MH, normed_MH)
            blocks.queries_keys_values(at.in_heads)
            if layer.query_norm is not None and layer.key_norm is not None:
                layer.query_norm.into(at.query_AMD, at.query_AMD)
                layer.key_norm.into(at.key_AMD, at.key_AMD)
            turns.turn()
            at.new_value_AMD.copy_(at.value_AMD)
            cache.write(index, places_S, at.keys_values_SD)
            torch.mul(at.rotated_query_MAD, weights.scaling, out=at.query_MAD)
            torch.bmm(at.query_SGD, key_SDT, out=scores_SGT)
            torch.softmax(scores_SGT.add_(mask_S1T), -1, out=weights_SGT)
            torch.bmm(weights_SGT, value_STD, out=at.attended_SGD)
            blocks.output(at.output)
            at.hidden_BMW.add_(at.output.out_BMW)
            layer.norm_between.into(hidden_MH, normed_MH)
            blocks.gate_up(at.gate_up)
            torch.mul(functional.silu(at.gate_BMW, inplace=True), at.up_BMW, out=at.inner_BMW)
            blocks.down(at.down)
            at.hidden_BMW.add_(at.down.out_BMW)


class Buffers:
    """For M rows, and views of them; `hidden_MH` is what goes on from layer to layer."""

    def __init__(self, weights: Weights, blocks: BlockedLayer, rows: int) -> None:
        self.rows = rows
        heads, key_heads, width = weights.heads, weights.key_heads, weights.head_width
        new, size = weights.embedding.new_empty, weights.embedding.shape[1]
        with torch.inference_mode():  # buffers that autograd knows nothing of: 5 % of a step of 8 rows
            self.hidden_MH, self.normed_MH = new(rows, size), new(rows, size)
            self.attended_SGD = new(rows * key_heads, heads // key_heads, width)
            heads_AMD = new(heads + 2 * key_heads, rows, width)
            self.query_AMD, self.key_AMD, self.value_AMD = heads_AMD.split((heads, key_heads, key_heads))
            # Rotated queries and keys, and the values behind the keys, as they go into the cache.
            rotated_AMD = torch.empty_like(heads_AMD)
            self.rotated_query_MAD = rotated_AMD[:heads].transpose(0, 1)
            self.keys_values_SD = rotated_AMD[heads:].view(-1, width)
            self.new_value_AMD = rotated_AMD[heads + key_heads :]
            self.turned = (heads_AMD[:-key_heads], rotated_AMD[:-key_heads])
            # One batch for each row and key head, whose queries are positions of one head: nothing is repeated.
            self.query_SGD = torch.empty_like(self.attended_SGD)
            self.query_MAD = self.query_SGD.view(rows, heads, width)
            self.in_heads = Room(self.normed_MH, heads_AMD, blocks.queries_keys_values.counts)
            self.output = _room(self.attended_SGD.view(rows, -1), blocks.output)
            self.gate_up = _room(self.normed_MH, blocks.gate_up)
            self.gate_BMW, self.up_BMW = self.gate_up.out_BMW.chunk(2)
            inner_MI = new(rows, weights.layers[0].gate_up.widths[0])
            self.inner_BMW = _in_blocks(inner_MI, self.gate_BMW.shape[2])
            self.down = _room(inner_MI, blocks.down)
            self.hidden_BMW = _in_blocks(self.hidden_MH, self.down.out_BMW.shape[2])


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
    return Room(x_MK, x_MK.new_empty(sum(blocks.counts), len(x_MK), blocks.width), blocks.counts)


def _in_blocks(x_MN: Tensor, width: int) -> Tensor:
    """The same numbers as [N / width, M, width]."""
    return x_MN.view(len(x_MN), -1, width).transpose(0, 1)
