"""Gated layers that keep two tensors for the backward pass where autograd keeps four.

down(silu(gate) · up): autograd holds gate, silu(gate), up, and their product, which an adapter below needs too. Here
only gate and up are held, and the rest is computed again, elementwise: 8 bytes less for each token and inner feature in
float32, a third of what a Llama layer holds. And of the last layer, whose outputs meet no other token, only the places
that are read have to be computed. Not here: linear layers with an adapter (`adapted_linear.py`).
"""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional
from transformers.activations import SiLUActivation

from tutelage.models.plain_call import has_hooks, is_only_its_class

KNOWN_CLASSES = ("LlamaMLP", "MistralMLP", "Qwen2MLP", "Qwen3MLP")
"""Of transformers: `down_proj(act_fn(gate_proj(x)) * up_proj(x))` and nothing else."""
KNOWN_DECODERS = ("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model")
"""Theirs: a gated layer ends each layer, its outputs are added to its inputs, and a norm of each position follows."""
SILU_CLASSES = (nn.SiLU, SiLUActivation)
"""The activations that are `torch.nn.functional.silu`."""


def hold_less_of_gated_layers(model: nn.Module) -> None:
    """Put the forward of this module onto every gated layer of `KNOWN_CLASSES` whose activation is silu, in place."""
    for module in model.modules():
        kind = type(module)
        if kind.__name__ not in KNOWN_CLASSES or not kind.__module__.startswith("transformers.models."):
            continue
        if type(module.act_fn) in SILU_CLASSES and "forward" not in module.__dict__:
            # A bound method, which a deep copy of the model binds to the copy.
            module.forward = types.MethodType(_forward, module)


@contextmanager
def last_gated_layer_only_at(decoder: Any, place_N: Tensor | None) -> Iterator[None]:
    """While this lasts, the last layer of `decoder` computes its gated layer at the places `place_N` of [B · T] alone.

    Elsewhere the decoder's last hidden states are then not those of the model. Nothing changes for a decoder or a layer
    that is not known, or one that somebody watches, without places, and where nearly all of them are named.
    """
    layer = _last_gated_layer(decoder)
    if layer is None or place_N is None:
        yield
        return
    layer._only_at = place_N.unique()  # what several sequences begin with predicts the next token of each
    try:
        yield
    finally:
        del layer._only_at


def _last_gated_layer(decoder: Any) -> Any:
    """None unless it has the forward of this module, no hooks, draws nothing, and is not computed again in the
    backward pass."""
    kind = type(decoder)
    if kind.__name__ not in KNOWN_DECODERS or not kind.__module__.startswith("transformers.models."):
        return None
    last = decoder.layers[-1]
    module: Any = getattr(last, "mlp", None)
    if module is None or getattr(module.__dict__.get("forward"), "__func__", None) is not _forward:
        return None
    # Dropout draws for each token, and what is drawn would depend on which tokens are read.
    draws = any(isinstance(part, nn.Dropout) and part.p and part.training for part in module.modules())
    return None if draws or has_hooks(module) or getattr(last, "gradient_checkpointing", False) else module


def _forward(self: Any, x: Tensor) -> Tensor:
    place_N = self.__dict__.get("_only_at")
    if place_N is None or 10 * len(place_N) > 9 * x.shape[:-1].numel():
        return _gated(self, x)
    x_MD = x.flatten(0, -2)
    return torch.zeros_like(x_MD).index_copy(0, place_N, _gated(self, x_MD[place_N])).view_as(x)


def _gated(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    if type(self.act_fn) not in SILU_CLASSES or not is_only_its_class(self.act_fn):
        return self.down_proj(self.act_fn(gate) * up)
    if not torch.is_grad_enabled() or not (gate.requires_grad or up.requires_grad):
        return self.down_proj(gated_product(gate, up))
    if _others_decide_what_is_held():
        return self.down_proj(self.act_fn(gate) * up)
    product = cast("Tensor", _GatedProduct.apply(gate, up))
    held = _Held(gate.detach(), up.detach(), product)
    with saved_tensors_hooks(held.pack, held.unpack):
        return self.down_proj(product)


def _others_decide_what_is_held() -> bool:
    """Whether hooks of saved tensors are at work or forbidden; True where PyTorch does not say.

    Of hooks the innermost act alone: ours would keep tensors from an offload to the CPU, and, where a layer is
    checkpointed, from being let go.
    """
    if _top_hooks is None or _hooks_allowed is None:
        return True
    return _top_hooks(True) is not None or not _hooks_allowed()


# Nothing public says it.
_top_hooks: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # pyright: ignore
_hooks_allowed: Any = getattr(torch._C._autograd, "_saved_tensors_hooks_is_enabled", None)  # pyright: ignore


def gated_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up, elementwise, with silu(x) = x / (1 + e^−x)."""
    return functional.silu(gate).mul_(up)


class _Held:
    """What autograd holds in place of the product, and the product again when it asks."""

    def __init__(self, gate: Tensor, up: Tensor, product: Tensor) -> None:
        self._gate, self._up = gate, up
        self._place, self._size = product.data_ptr(), product.numel()

    def pack(self, tensor: Tensor) -> Any:
        is_product = tensor.data_ptr() == self._place and tensor.numel() == self._size and tensor.is_contiguous()
        return tensor.shape if is_product else tensor

    def unpack(self, packed: Any) -> Tensor:
        return packed if isinstance(packed, Tensor) else gated_product(self._gate, self._up).view(packed)


class _GatedProduct(torch.autograd.Function):
    """silu(gate) · up, of which gate and up are held."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it as (ctx, *args)
        ctx.save_for_backward(gate, up)
        return gated_product(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as above
        gate, up = ctx.saved_tensors
        of_gate = of_up = None
        if ctx.needs_input_grad[0]:
            of_gate = torch.ops.aten.silu_backward(grad * up, gate)
        if ctx.needs_input_grad[1]:
            of_up = functional.silu(gate).mul_(grad)
        return of_gate, of_up
