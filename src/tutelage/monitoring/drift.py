"""How far the weights have moved from where they started. Not here: what that does to the outputs (`kl.py`)."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tutelage.models import WeightCopy
from tutelage.models.weight_copy import trainable_parameters


def weight_diff_norm(model: nn.Module, base: WeightCopy) -> float:
    """‖θ_t − θ_0‖_F over all trained tensors, summed in float64; under LoRA over A and B themselves.

    base: θ_0, the trainable tensors before training.
    """
    return base.distance(model)


def delta_w_norm(model: nn.Module, base: WeightCopy) -> float:
    """‖ΔW_t − ΔW_0‖_F, the change of the effective weights, summed in float64.

    A LoRA module counts with ΔW = scale · B A; B A itself is never formed (see `product_change_norm`). Tensors that
    are trained as they are (biases, full fine-tuning) count with their own difference, so that for full fine-tuning
    this is `weight_diff_norm`. base: θ_0; a LoRA factor it does not hold is frozen and counts as unchanged.
    """
    parameters = trainable_parameters(model)
    names = {id(parameter): name for name, parameter in parameters.items()}

    def before(tensor: Tensor) -> Tensor:
        return base.tensors.get(names.get(id(tensor), ""), tensor)

    square = 0.0
    factors: set[str] = set()
    for a_rI, b_Or, scale in _lora_factors(model):
        square += (scale * product_change_norm(b_Or, a_rI, before(b_Or), before(a_rI))) ** 2
        factors |= {names[id(tensor)] for tensor in (a_rI, b_Or) if id(tensor) in names}
    plain: Mapping[str, Tensor] = {name: value for name, value in base.tensors.items() if name not in factors}
    return math.sqrt(square + WeightCopy(plain).distance(model) ** 2)


@torch.no_grad()
def product_change_norm(b_Or: Tensor, a_rI: Tensor, base_b_Or: Tensor, base_a_rI: Tensor) -> float:
    """‖B A − B₀ A₀‖_F from r × r matrices, in float64.

    B A − B₀ A₀ = [B − B₀, B₀] · [A; A − A₀] = L R, and ‖L R‖² = tr((LᵀL)(RRᵀ)). Written with the differences, an
    unchanged pair gives exactly 0 and a small change is not lost beside large factors.
    """
    device = b_Or.device
    b, a = b_Or.detach().double().flatten(1), a_rI.detach().double().flatten(1)
    base_b, base_a = base_b_Or.to(device).double().flatten(1), base_a_rI.to(device).double().flatten(1)
    left_Os = torch.cat([b - base_b, base_b], dim=1)
    right_sI = torch.cat([a, a - base_a], dim=0)
    square = ((left_Os.T @ left_Os) * (right_sI @ right_sI.T)).sum()
    return float(square.clamp(min=0.0).sqrt())


def _lora_factors(model: nn.Module) -> Iterator[tuple[Tensor, Tensor, float]]:
    """(A, B, scale) of every active adapter of every LoRA module, embeddings and convolutions included."""
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        module: Any = layer
        for adapter in module.active_adapters:
            scale = float(module.scaling.get(adapter, 0.0))
            if adapter in module.lora_A:
                yield module.lora_A[adapter].weight, module.lora_B[adapter].weight, scale
            elif adapter in module.lora_embedding_A:
                yield module.lora_embedding_A[adapter], module.lora_embedding_B[adapter], scale
