"""Distances between weights, against numbers worked out by hand and against the dense product."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.models import WeightCopy
from tutelage.monitoring import delta_w_norm, weight_diff_norm
from tutelage.monitoring.drift import product_change_norm

# PEFT 0.21 asks for an attribute that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")


def matrix(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows)


def lora_model(**options: object) -> nn.Module:
    lora = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "down_proj"], **options)  # pyright: ignore[reportArgumentType]
    return get_peft_model(tiny_model(tiny_tokenizer()), lora)


def perturb(model: nn.Module, seed: int, size: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=generator)


def dense_deltas(model: nn.Module) -> list[torch.Tensor]:
    return [
        module.get_delta_weight("default").detach().double()  # pyright: ignore[reportCallIssue]
        for module in model.modules()
        if hasattr(module, "get_delta_weight")
    ]


def test_product_of_one_rank_by_hand():
    """B = (1, 2)ᵀ, A = (3, 4), B₀ = 0: ‖BA‖ = ‖B‖ · ‖A‖ = √5 · 5."""
    norm = product_change_norm(matrix([1.0], [2.0]), matrix([3.0, 4.0]), torch.zeros(2, 1), matrix([7.0, 7.0]))
    assert norm == pytest.approx(5 * math.sqrt(5))


def test_product_change_by_hand():
    """[[3, 4], [6, 8]] − [[3, 0], [0, 0]] = [[0, 4], [6, 8]], of norm √(16 + 36 + 64)."""
    norm = product_change_norm(matrix([1.0], [2.0]), matrix([3.0, 4.0]), matrix([1.0], [0.0]), matrix([3.0, 0.0]))
    assert norm == pytest.approx(math.sqrt(116))


def test_a_small_change_is_not_lost_beside_large_factors():
    """BA − B₀A = (B − B₀)A exactly; with entries of 10⁴ and a change of 2⁻¹⁰ the squares differ by 10⁻²⁰ of them."""
    a_rI = torch.full((2, 5), 1e4)
    base_b_Or = torch.full((4, 2), 8192.0)
    b_Or = base_b_Or.clone()
    b_Or[0, 0] += 2.0**-10
    expected = 2.0**-10 * 1e4 * math.sqrt(5)
    assert product_change_norm(b_Or, a_rI, base_b_Or, a_rI) == pytest.approx(expected, rel=1e-12)
    assert product_change_norm(base_b_Or, a_rI, base_b_Or, a_rI) == 0.0


@pytest.mark.parametrize("use_rslora", [False, True])
def test_delta_w_norm_is_that_of_the_dense_products_also_for_a_trained_adapter(use_rslora: bool):
    model = lora_model(use_rslora=use_rslora)
    perturb(model, seed=1)  # the adapter comes trained: B is not 0
    base, before = WeightCopy.of(model), dense_deltas(model)
    assert delta_w_norm(model, base) == 0.0
    perturb(model, seed=2)
    after = dense_deltas(model)
    assert len(after) == 4
    expected = math.sqrt(sum(float((b - a).square().sum()) for a, b in zip(before, after, strict=True)))
    assert expected > 1.0
    assert delta_w_norm(model, base) == pytest.approx(expected, rel=1e-6)


def test_weight_diff_norm_counts_the_factors_themselves():
    model = lora_model()
    base = WeightCopy.of(model)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if "lora_B" in name)[0, 0] += 3.0
        next(p for name, p in model.named_parameters() if "lora_A" in name)[1, 1] += 4.0
    assert weight_diff_norm(model, base) == pytest.approx(5.0, rel=1e-6)


def test_full_fine_tuning_has_one_distance():
    model = nn.Linear(2, 2)
    base = WeightCopy.of(model)
    with torch.no_grad():
        model.weight[0, 1] += 1.0
        model.bias[1] -= 2.0
    assert weight_diff_norm(model, base) == pytest.approx(math.sqrt(5), rel=1e-6)
    assert delta_w_norm(model, base) == weight_diff_norm(model, base)


def test_biases_trained_beside_the_adapter_count_as_they_are():
    """scale · B A with scale = alpha/r = 2, B = (1, 0)ᵀ, A = (0, 6): norm 12; the bias moves by 5: √(144 + 25) = 13."""
    model = get_peft_model(
        nn.Sequential(nn.Linear(2, 2)),  # pyright: ignore[reportArgumentType]
        LoraConfig(r=1, lora_alpha=2, target_modules=["0"], bias="all"),
    )
    base = WeightCopy.of(model)
    values = {"lora_A": matrix([0.0, 6.0]), "lora_B": matrix([1.0], [0.0])}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            for key, value in values.items():
                if key in name:
                    parameter.copy_(value)
            if name.endswith("bias"):
                parameter += torch.tensor([3.0, 4.0])
    assert delta_w_norm(model, base) == pytest.approx(13.0, rel=1e-6)
