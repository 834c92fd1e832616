"""Hands autograd a value whose gradients are known already.

What value and gradients are is computed by the callers, outside autograd.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attach_gradients(value: Tensor, known: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """`value` with each tensor of the (tensor, gradient) pairs as an input.

    A gradient is shaped like its tensor, whose first axes are the axes of `value` if it has any: a scalar goes with
    every gradient, values [N] with [N, V], row by row. It is scaled in its own precision and returned in the
    tensor's dtype. Cannot be differentiated twice. The gradients are given away: unless the graph is retained, the
    backward pass scales them where they are, and a parameter's `grad` may be that very memory.
    """
    if not known:
        return value
    tensors, gradients = zip(*known, strict=True)
    return cast("Tensor", _KnownGradient.apply(value, gradients, *tensors))  # pyright: ignore[reportUnknownMemberType]


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        retained = _graph_is_retained()
        scaled = [
            _scaled(gradient, grad, in_place=not retained).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, None, *scaled


def _scaled(gradient: Tensor, grad: Tensor, *, in_place: bool) -> Tensor:
    if not in_place:
        return gradient * _columns(grad, gradient)
    # Asking a number of a GPU would wait for it.
    if grad.ndim == 0 and grad.device.type == "cpu" and grad == 1:
        return gradient
    return gradient.mul_(_columns(grad, gradient))


def _columns(grad: Tensor, gradient: Tensor) -> Tensor:
    return grad.reshape(grad.shape + (1,) * (gradient.ndim - grad.ndim))


def _graph_is_retained() -> bool:
    """Whether this backward pass may be followed by another; True where PyTorch does not say."""
    ask: Any = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)  # pyright: ignore[reportPrivateUsage,reportAttributeAccessIssue,reportUnknownMemberType,reportUnknownArgumentType] - nothing public says it
    return True if ask is None else bool(ask())
