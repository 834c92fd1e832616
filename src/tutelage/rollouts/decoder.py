"""A decoder of the Llama family as a function of the model's own tensors: some forty operations a layer, no modules.

Which models are this function is found out in `supported_models.py`. Not here: which token comes next (`engine.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from tutelage.rollouts.cache import KeyValueCache
from tutelage.rollouts.layers import Layer, Norm
from tutelage.rollouts.products import Linear, SideBySide, multiply
from tutelage.rollouts.step import MOST_ROWS, StepInBlocks, Weights

LONGEST_PREFILL = 1024
"""Prompt tokens computed at once; bounds the memory of a prefill."""

Attend = Callable[[int, Tensor, Tensor], Tensor]
"""From layer, queries [N, heads, D], and keys and values [N, 2 · key heads, D] to [N, heads · D]."""

Rotations = tuple[Tensor, Tensor]
"""Cosines and sines by position, each [length, D]: `Decoder.rotations`."""


@dataclass(frozen=True)
class Piece:
    """Tokens `start` to `end` of a prompt, whose first `inherited` keys and values are those of another row."""

    row: int
    tokens: Sequence[int]
    start: int
    end: int
    inherited_from: int = 0
    inherited: int = 0


@dataclass(frozen=True)
class Decoder:
    """The tensors are the model's own, so it is good for as long as nobody changes the model."""

    embedding: Tensor
    layers: list[Layer]
    norm: Norm
    head: Linear
    heads: int
    key_heads: int
    scaling: float
    rotary: Any
    """The model's own module, from a tensor for device and type and position ids to cosines and sines."""

    @property
    def device(self) -> torch.device:
        return self.embedding.device

    @property
    def head_width(self) -> int:
        return self.layers[0].queries_keys_values.widths[0] // self.heads

    def cache(self, rows: int, length: int) -> KeyValueCache:
        """Room for `rows` responses, prompts included, of `length` tokens each."""
        return KeyValueCache(
            len(self.layers), rows, self.key_heads, length, self.head_width, self.device, self.embedding.dtype
        )

    def logits(self, hidden_NH: Tensor, out_NV: Tensor) -> Tensor:
        """float32 [N, V], written into the first rows of `out_NV`."""
        logits_NV = out_NV[: len(hidden_NH)]
        plain = self.head.bias is None and not self.head.adapters and hidden_NH.dtype == out_NV.dtype
        if plain:
            multiply(hidden_NH, self.head.weight, logits_NV)
            return logits_NV
        return logits_NV.copy_(SideBySide([self.head])(hidden_NH))

    def rotations(self, length: int) -> Rotations:
        """Cosines and sines by position, [length, D]; the first half of the sines is negated: see `_rotated`."""
        position_1T = torch.arange(length, device=self.device)[None]
        cosine_TD, sine_TD = (part[0] for part in self.rotary(self.embedding[:1, None], position_ids=position_1T))
        half = sine_TD.shape[-1] // 2
        return cosine_TD, torch.cat((-sine_TD[:, :half], sine_TD[:, half:]), dim=-1)

    def step(self, tokens_N: Tensor, lengths: Sequence[int], cache: KeyValueCache, rotations: Rotations) -> Tensor:
        """Hidden states [N, H] of one more token in each of the cache's first N rows, which hold `lengths` tokens."""
        if self.step_in_blocks is None or len(lengths) > MOST_ROWS:
            return self.step_plainly(tokens_N, lengths, cache, rotations)
        cache.clear_up_to(max(lengths) + 1)
        return self.norm(self.step_in_blocks(tokens_N, lengths, cache, rotations))

    @cached_property
    def step_in_blocks(self) -> StepInBlocks | None:
        """For a few rows at once; None where there is none for this model."""
        return StepInBlocks.of(
            Weights(self.embedding, self.layers, self.heads, self.key_heads, self.head_width, self.scaling)
        )

    def step_plainly(
        self, tokens_N: Tensor, lengths: Sequence[int], cache: KeyValueCache, rotations: Rotations
    ) -> Tensor:
        """The same for any device, type and number of rows: the reference of `step_in_blocks`."""
        cache.clear_up_to(max(lengths) + 1)
        rows, longest, groups = len(lengths), max(lengths) + 1, self.heads // self.key_heads
        lengths_N = torch.tensor(lengths, device=self.device)
        places_S = cache.places(lengths_N)
        hidden_T = torch.arange(longest, device=self.device) > lengths_N[:, None]
        mask_NT = torch.zeros(hidden_T.shape, device=self.device, dtype=self.embedding.dtype)
        mask_N11T = mask_NT.masked_fill_(hidden_T, float("-inf"))[:, None, None]

        def attend(layer: int, query_NHD: Tensor, keys_values_NHD: Tensor) -> Tensor:
            cache.write(layer, places_S, keys_values_NHD.reshape(-1, self.head_width))
            key_NHTD, value_NHTD = cache.layer(layer)[:, :rows, :, :longest].unbind(0)
            # The queries that share a key head are positions of one head: nothing is repeated.
            query_NHGD = query_NHD.view(rows, self.key_heads, groups, self.head_width)
            attended_NHGD = functional.scaled_dot_product_attention(
                query_NHGD, key_NHTD, value_NHTD, attn_mask=mask_N11T, scale=self.scaling
            )
            return attended_NHGD.reshape(rows, -1)

        return self._through_layers(tokens_N, rotations, lengths_N, attend)

    def prefill(self, pieces: Sequence[Piece], cache: KeyValueCache, rotations: Rotations) -> Tensor:
        """Hidden states of the pieces' tokens, one piece after the other, without padding; fills the cache."""
        cache.clear_up_to(max(piece.end for piece in pieces))
        ids = [token for piece in pieces for token in piece.tokens[piece.start : piece.end]]
        positions = [position for piece in pieces for position in range(piece.start, piece.end)]
        tokens_N, positions_N = (torch.tensor(each, device=self.device) for each in (ids, positions))
        sizes = [piece.end - piece.start for piece in pieces]
        masks = [_causal_mask(piece, self.device) for piece in pieces]

        def attend(layer: int, query_NHD: Tensor, keys_values_NHD: Tensor) -> Tensor:
            cache_2RHTD = cache.layer(layer)
            keys_values_2HND = keys_values_NHD.unflatten(1, (2, self.key_heads)).permute(1, 2, 0, 3)
            attended_NHD = torch.empty_like(query_NHD)
            start = 0
            for piece, size, mask_QT in zip(pieces, sizes, masks, strict=True):
                row_2HTD = cache_2RHTD[:, piece.row]
                if piece.inherited:
                    row_2HTD[:, :, : piece.inherited] = cache_2RHTD[:, piece.inherited_from, :, : piece.inherited]
                if not size:
                    continue
                row_2HTD[:, :, piece.start : piece.end] = keys_values_2HND[:, :, start : start + size]
                key_HTD, value_HTD = row_2HTD[:, :, : piece.end].unbind(0)
                attended_HQD = functional.scaled_dot_product_attention(
                    query_NHD[start : start + size].transpose(0, 1)[None],
                    key_HTD[None],
                    value_HTD[None],
                    attn_mask=mask_QT,
                    is_causal=mask_QT is None,
                    scale=self.scaling,
                    enable_gqa=True,
                )[0]
                attended_NHD[start : start + size] = attended_HQD.transpose(0, 1)
                start += size
            return attended_NHD.flatten(1)

        return self._through_layers(tokens_N, rotations, positions_N, attend)

    def _through_layers(self, tokens_N: Tensor, rotations: Rotations, positions_N: Tensor, attend: Attend) -> Tensor:
        cosine_N1D, sine_N1D = (table_TD[positions_N][:, None] for table_TD in rotations)
        hidden_NH = self.embedding[tokens_N]
        # All layers write to the same memory: a thousand tokens in new memory are 12 MB of page faults a layer.
        normed_NH, first = torch.empty_like(hidden_NH), self.layers[0]
        room_NA, room_NI = (
            hidden_NH.new_empty(len(hidden_NH), sum(group.widths))
            for group in (first.queries_keys_values, first.gate_up)
        )
        for index, layer in enumerate(self.layers):
            layer.norm_before.into(hidden_NH, normed_NH)
            heads_NHD = layer.queries_keys_values(normed_NH, room_NA).unflatten(1, (-1, self.head_width))
            query_NHD, key_NHD, _ = heads_NHD.split((self.heads, self.key_heads, self.key_heads), dim=1)
            if layer.query_norm is not None and layer.key_norm is not None:
                layer.query_norm.into(query_NHD, query_NHD)
                layer.key_norm.into(key_NHD, key_NHD)
            rotated_NHD = heads_NHD[:, : self.heads + self.key_heads]
            rotated_NHD.copy_(_rotated(rotated_NHD, cosine_N1D, sine_N1D))
            layer.output.add_to(hidden_NH, attend(index, query_NHD, heads_NHD[:, self.heads :]))
            layer.norm_between.into(hidden_NH, normed_NH)
            gate_NI, up_NI = layer.gate_up(normed_NH, room_NI).split(layer.gate_up.widths, dim=1)
            layer.down.add_to(hidden_NH, functional.silu(gate_NI, inplace=True).mul_(up_NI))
        return self.norm(hidden_NH)


def _rotated(x_NHD: Tensor, cosine_N1D: Tensor, sine_N1D: Tensor) -> Tensor:
    """x cos + (−x₂, x₁) sin with x = (x₁, x₂); the minus is in the sines, so that the halves only change places."""
    return torch.addcmul(x_NHD * cosine_N1D, x_NHD.roll(x_NHD.shape[-1] // 2, dims=-1), sine_N1D)


def _causal_mask(piece: Piece, device: torch.device) -> Tensor | None:
    """Which keys [end] the piece's queries [end − start] see; None for the whole triangle."""
    if piece.start == 0 or piece.start == piece.end:
        return None
    keys_T, queries_Q = torch.arange(piece.end, device=device), torch.arange(piece.start, piece.end, device=device)
    return keys_T <= queries_Q[:, None]
