"""A linear layer with a LoRA adapter whose product is added into the layer's own output.

PEFT writes the adapter's output, scales it and adds it: three passes over [N, out], two of them into new memory. Here
it is one product that accumulates, forwards and backwards. Not here: making adapters (`loading.py`).
"""

from typing import Any, cast

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from tutelage.models.plain_call import is_only_its_class


class AdaptedLinear(LoraLinear):
    """`peft.tuners.lora.Linear` with a shorter way for a plain adapter on a linear layer."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        adapter = None if args or kwargs else self._plain_adapter(x)
        if adapter is None:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        down_RI, up_OR = self.lora_A[adapter].weight, self.lora_B[adapter].weight
        return cast("Tensor", _AdaptedProduct.apply(x, base.weight, base.bias, down_RI, up_OR, self.scaling[adapter]))

    def _plain_adapter(self, x: Tensor) -> str | None:
        """The one adapter at work, or None where PEFT's own way is needed: several of them, variants such as DoRA,
        dropout, trained or quantised or sharded weights, mixed precision, hooks, forwards put onto a layer."""
        if self.disable_adapters or self.merged or torch.is_autocast_enabled(x.device.type):
            return None
        if self._backward_hooks or self._backward_pre_hooks:
            return None
        active = [name for name in self.active_adapters if name in self.lora_A]
        if len(active) != 1 or active[0] in self.lora_variant:
            return None
        (name,) = active
        dropout: Any = self.lora_dropout[name]
        if (self.training and getattr(dropout, "p", 0.0) > 0) or not is_only_its_class(dropout):
            return None
        layers = self.base_layer, self.lora_A[name], self.lora_B[name]
        if not all(_is_plain(layer, x.dtype) for layer in layers) or any(
            layer.bias is not None for layer in layers[1:]
        ):
            return None
        base: Any = self.base_layer
        is_trained = base.weight.requires_grad or (base.bias is not None and base.bias.requires_grad)
        return None if is_trained else name


def adapt_linear_layers(model: nn.Module) -> None:
    """Make every LoRA linear layer of a PEFT model an `AdaptedLinear`, in place."""
    for module in model.modules():
        if type(module) is LoraLinear:
            module.__class__ = AdaptedLinear


def _is_plain(layer: Any, dtype: torch.dtype) -> bool:
    return (
        type(layer) is nn.Linear
        and layer.weight.dtype == dtype
        and type(layer.weight.data) is Tensor
        and layer.weight.ndim == 2  # a shard is flat
        and is_only_its_class(layer)
    )


class _AdaptedProduct(torch.autograd.Function):
    """y = x Wᵀ + b + s·(x Aᵀ) Bᵀ with W and b frozen; x [..., I], W [O, I], b [O], A [R, I], B [O, R], y [..., O]."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  # torch types it as (ctx, *args)
        ctx: Any, x: Tensor, weight_OI: Tensor, bias_O: Tensor | None, down_RI: Tensor, up_OR: Tensor, scaling: float
    ) -> Tensor:
        x_NI = x.reshape(-1, x.shape[-1])
        inner_NR = x_NI @ down_RI.mT
        y_NO = functional.linear(x_NI, weight_OI, bias_O)
        y_NO.addmm_(inner_NR, up_OR.mT, alpha=scaling)
        ctx.save_for_backward(x_NI, weight_OI, down_RI, up_OR, inner_NR)
        ctx.scaling, ctx.shape = scaling, x.shape
        return y_NO.view(*x.shape[:-1], y_NO.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # as above
        x_NI, weight_OI, down_RI, up_OR, inner_NR = ctx.saved_tensors
        grad_NO = grad.reshape(-1, grad.shape[-1])
        grad_inner_NR = (grad_NO @ up_OR).mul_(ctx.scaling)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = grad_NO @ weight_OI
            grad_x_NI.addmm_(grad_inner_NR, down_RI)
            grad_x = grad_x_NI.view(ctx.shape)
        grad_down_RI = grad_inner_NR.mT @ x_NI if ctx.needs_input_grad[3] else None
        grad_up_OR = (grad_NO.mT @ inner_NR).mul_(ctx.scaling) if ctx.needs_input_grad[4] else None
        return grad_x, None, None, grad_down_RI, grad_up_OR, None
