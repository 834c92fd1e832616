"""Hands autograd a value whose gradients are known already. The one autograd.Function of the losses.

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
    tensor's dtype. Cannot be differentiated twice.
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
        scaled = [
            (gradient * grad.reshape(grad.shape + (1,) * (gradient.ndim - grad.ndim))).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return None, None, *scaled
