"""Products of a few rows with large weights, the bulk of a decode step. Not here: what a decoder does with them.

A step reads every weight for a handful of rows. MKL's matrix product first rearranges its operands, which costs more
than the product itself where the rows are few; the same product as a batch of small ones, a block of the weight's
rows each, is read as it lies. Weights are never copied; those of an adapter are, side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tutelage.models import AdaptedLinear

MANY_ROWS = 256
"""With more rows than these the plain product is as fast."""
BLOCK, WIDE_BLOCK = 32, 512
"""Rows of a weight in one small product, and of a head, whose products are then copied in longer runs."""


@dataclass(frozen=True)
class Adapter:
    """What a LoRA layer adds: `(x Aᵀ) Bᵀ`, A [R, K], B [N, R] with the scaling in it."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class Linear:
    """A linear layer as it is now: its own weight [N, K] and bias [N], and what its active adapters add."""

    weight: Tensor
    bias: Tensor | None
    adapters: tuple[Adapter, ...]

    @classmethod
    def of(cls, module: Any) -> "Linear | None":
        """None for what is not known to be a plain product, plain LoRA on top included."""
        if type(module) in (LoraLinear, AdaptedLinear):
            base, adapters = module.base_layer, _active_adapters(module)
        else:
            base, adapters = module, ()
        if type(base) is not nn.Linear or adapters is None or type(base.weight.data) is not Tensor:
            return None  # sharded or quantised: what a product with it gives is its own affair
        if base.weight.shape != (base.out_features, base.in_features) or not base.weight.is_floating_point():
            return None
        return cls(base.weight.detach(), None if base.bias is None else base.bias.detach(), adapters)


def _active_adapters(module: Any) -> tuple[Adapter, ...] | None:
    """None for variants (DoRA, activated LoRA), biases of an adapter, and a merged adapter that is switched off."""
    if module.disable_adapters:
        return None if module.merged else ()
    if module.merged:
        return ()
    adapters: list[Adapter] = []
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        a, b = module.lora_A[name], module.lora_B[name]
        plain = all(type(part) is nn.Linear and part.bias is None for part in (a, b))
        if not plain or name in module.lora_variant or any(type(part.weight.data) is not Tensor for part in (a, b)):
            return None
        adapters.append(Adapter(a.weight.detach(), b.weight.detach() * module.scaling[name]))
    return tuple(adapters)


class SideBySide:
    """`[x W₁ᵀ + b₁ | x W₂ᵀ + b₂ | …]` for linear layers that read the same x, [M, K] -> [M, ΣN].

    Their adapters are one: A's above each other, B's along a diagonal, so that a group costs two small products.
    """

    def __init__(self, layers: list[Linear]) -> None:
        self._weights = [layer.weight for layer in layers]
        self.widths = [len(weight) for weight in self._weights]
        self._bias_N = _biases(layers)
        self._a_RK, self._b_NR = _joined_adapters(layers)

    @property
    def can_be_blocked(self) -> bool:
        """Whether weights lie row after row, and everything is float32."""
        tensors = [*self._weights, self._bias_N, self._a_RK, self._b_NR]
        return all(weight.is_contiguous() for weight in self._weights) and all(
            tensor is None or tensor.dtype == torch.float32 for tensor in tensors
        )

    def blocks(self, width: int) -> "Blocks":
        """The same in blocks of `width` outputs, a divisor of all widths; nothing is copied."""
        return Blocks(
            width,
            [weight_NK.view(-1, width, weight_NK.shape[1]).transpose(1, 2) for weight_NK in self._weights],
            None if self._bias_N is None else self._bias_N.view(-1, 1, width),
            None if self._a_RK is None else self._a_RK.T,
            None if self._b_NR is None else self._b_NR.view(-1, width, self._b_NR.shape[1]).transpose(1, 2),
        )

    def __call__(self, x_MK: Tensor, out_MN: Tensor | None = None) -> Tensor:
        """Written into `out_MN`, where it is given and an adapter is not of another type."""
        out_MN = x_MK.new_empty(len(x_MK), sum(self.widths)) if out_MN is None else out_MN
        for weight_NK, part_MN in zip(self._weights, out_MN.split(self.widths, dim=1), strict=True):
            multiply(x_MK, weight_NK, part_MN)
        if self._bias_N is not None:
            out_MN += self._bias_N
        if self._a_RK is None or self._b_NR is None:
            return out_MN
        inner_MR = x_MK.to(self._a_RK.dtype) @ self._a_RK.T
        if self._b_NR.dtype == out_MN.dtype:
            return out_MN.addmm_(inner_MR, self._b_NR.T)
        return (out_MN + inner_MR @ self._b_NR.T).to(out_MN.dtype)

    def add_to(self, total_MN: Tensor, x_MK: Tensor) -> None:
        """total += the product, of a single layer, without a place of its own where the rows are many."""
        tensors = [tensor for tensor in (self._a_RK, self._b_NR) if tensor is not None]
        exact = x_MK.dtype in (torch.float32, torch.float64) and all(part.dtype == x_MK.dtype for part in tensors)
        if len(x_MK) <= MANY_ROWS or not exact:
            total_MN += self(x_MK)
            return
        (weight_NK,) = self._weights
        total_MN.addmm_(x_MK, weight_NK.T)
        if self._bias_N is not None:
            total_MN += self._bias_N
        if self._a_RK is not None and self._b_NR is not None:
            total_MN.addmm_(x_MK @ self._a_RK.T, self._b_NR.T)


class Room:
    """Where layers that follow one another read x [M, K] and leave their outputs, [B, M, W]."""

    def __init__(self, x_MK: Tensor, out_BMW: Tensor, counts: Sequence[int]) -> None:
        self.x_MK, self.out_BMW = x_MK, out_BMW
        self.parts = [(x_MK.expand(len(part), *x_MK.shape), part) for part in out_BMW.split(list(counts))]


@dataclass(frozen=True)
class Blocks:
    """What `SideBySide` computes, in blocks of W outputs: `out[b, m] = x[m] W[b]ᵀ`, with bias and adapters."""

    width: int
    weights: list[Tensor]
    """[B, K, W] for each layer"""
    bias: Tensor | None
    """[ΣB, 1, W]"""
    a: Tensor | None
    """[K, R]"""
    b: Tensor | None
    """[ΣB, R, W]"""

    @property
    def counts(self) -> list[int]:
        """Blocks of each layer."""
        return [len(weight_BKW) for weight_BKW in self.weights]

    def __call__(self, room: Room) -> None:
        for weight_BKW, (x_BMK, part_BMW) in zip(self.weights, room.parts, strict=True):
            _multiply_blocks(x_BMK, weight_BKW, part_BMW)
        if self.bias is not None:
            room.out_BMW.add_(self.bias)
        if self.a is not None and self.b is not None:
            inner_MR = room.x_MK @ self.a
            room.out_BMW.baddbmm_(inner_MR.expand(len(self.b), *inner_MR.shape), self.b)


def multiply(x_MK: Tensor, weight_NK: Tensor, out_MN: Tensor) -> None:
    """out = x Wᵀ, the fastest way there is for so many rows; out may be a part of wider rows."""
    rows, (width, depth) = len(x_MK), weight_NK.shape
    block = WIDE_BLOCK if width >= 16 * WIDE_BLOCK else BLOCK
    count = width // block
    known = x_MK.device.type == "cpu" and x_MK.dtype in (torch.float32, torch.float64) and weight_NK.is_contiguous()
    if rows > MANY_ROWS or not count or not known:
        torch.mm(x_MK, weight_NK.T, out=out_MN)
        return
    weight_BKW = weight_NK[: count * block].view(count, block, depth).transpose(1, 2)
    product_BMW = x_MK.new_empty(count, rows, block)
    _multiply_blocks(x_MK.expand(count, rows, depth), weight_BKW, product_BMW)
    out_MN[:, : count * block].unflatten(1, (count, block)).copy_(product_BMW.transpose(0, 1))
    if width > count * block:
        torch.mm(x_MK, weight_NK[count * block :].T, out=out_MN[:, count * block :])


def _multiply_blocks(x_BMK: Tensor, weight_BKW: Tensor, out_BMW: Tensor) -> None:
    """out = x W of each block, whose weights lie as [W, K]. A single row goes as products with a vector, which read
    [3072, 576] at 30 GB/s and more; `torch.mv` reads the whole at 12."""
    if x_BMK.shape[1] == 1:
        torch.bmm(weight_BKW.mT, x_BMK.mT, out=out_BMW.mT)
    else:
        torch.bmm(x_BMK, weight_BKW, out=out_BMW)


def _biases(layers: list[Linear]) -> Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in layers]
    )


def _joined_adapters(layers: list[Linear]) -> tuple[Tensor | None, Tensor | None]:
    """A [ΣR, K] and B [ΣN, ΣR] with zeros off the diagonal blocks."""
    adapters = [adapter for layer in layers for adapter in layer.adapters]
    if not adapters:
        return None, None
    b_NR = adapters[0].b.new_zeros(
        sum(len(layer.weight) for layer in layers), sum(len(adapter.a) for adapter in adapters)
    )
    row = column = 0
    for layer in layers:
        for adapter in layer.adapters:
            height, width = adapter.b.shape
            b_NR[row : row + height, column : column + width] = adapter.b
            column += width
        row += len(layer.weight)
    return torch.cat([adapter.a for adapter in adapters]), b_NR
