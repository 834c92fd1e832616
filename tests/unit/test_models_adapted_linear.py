"""The short way through a LoRA layer gives PEFT's values and gradients, and is taken where it may be."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.modules import module as modules

from tutelage.models import adapted_linear
from tutelage.models.adapted_linear import AdaptedLinear, adapt_linear_layers


class OneLayer(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def adapted(with_bias: bool = True, **options: Any) -> Any:
    """A layer in float64 with an adapter of rank 2 that is not 0, and α / r = 3."""
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["layer"], **options)
    model = get_peft_model(OneLayer(with_bias), config).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    adapt_linear_layers(model)
    return model


def layer_of(model: Any) -> Any:
    layer = model.base_model.model.layer
    assert type(layer) is AdaptedLinear
    return layer


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time the short way was taken."""
    calls: list[int] = []
    apply = adapted_linear._AdaptedProduct.apply

    def counted(*args: Any) -> Any:
        calls.append(1)
        return apply(*args)

    monkeypatch.setattr(adapted_linear._AdaptedProduct, "apply", counted)
    return calls


def test_by_hand(taken: list[int]) -> None:
    """W = [[1, 2, 3], [0, 1, 0]], b = [1, 0], A = [[1, 0, 1], [0, 0, 0]], B = [[1, 0], [2, 0]], s = 3, x = [1, 1, 2]:
    W x + b = [10, 1], A x = [3, 0], 3 · B A x = [9, 18], y = [19, 19].

    For L = y₁ + 2 y₂, with g = [1, 2]: ∂L/∂x = Wᵀ g + 3 Aᵀ Bᵀ g = [1, 4, 3] + 15·[1, 0, 1]; ∂L/∂A = 3 (Bᵀ g) xᵀ, row
    one 15·[1, 1, 2]; ∂L/∂B = 3 g (A x)ᵀ, column one [9, 18].
    """
    model = adapted()
    layer = layer_of(model)
    with torch.no_grad():
        layer.base_layer.weight.copy_(torch.tensor([[1.0, 2, 3], [0, 1, 0]]))
        layer.base_layer.bias.copy_(torch.tensor([1.0, 0]))
        layer.lora_A["default"].weight.copy_(torch.tensor([[1.0, 0, 1], [0, 0, 0]]))
        layer.lora_B["default"].weight.copy_(torch.tensor([[1.0, 0], [2, 0]]))
    x = torch.tensor([1.0, 1, 2], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    assert y.tolist() == [19, 19]
    (y * torch.tensor([1.0, 2])).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [16, 4, 18]
    assert layer.lora_A["default"].weight.grad.tolist() == [[15, 15, 30], [0, 0, 0]]
    assert layer.lora_B["default"].weight.grad.tolist() == [[9, 0], [18, 0]]
    assert layer.base_layer.weight.grad is None
    assert len(taken) == 1


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 5, 3), (0, 3)])
def test_values_and_gradients_are_pefts(shape: tuple[int, ...], bias: bool, taken: list[int]) -> None:
    model = adapted(bias)
    layer = layer_of(model)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outcomes: list[list[Tensor]] = []
    for forward in (layer.forward, lambda x: LoraLinear.forward(layer, x)):
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        y = forward(inputs)
        y.sin().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.requires_grad]
        assert inputs.grad is not None
        outcomes.append([y.detach(), inputs.grad, *gradients])
    assert len(taken) == 1
    for short, expected in zip(*outcomes, strict=True):
        torch.testing.assert_close(short, expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_those_of_differences() -> None:
    layer = layer_of(adapted())
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    weights = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    assert torch.autograd.gradcheck(lambda *inputs: layer(inputs[0]), [x, *weights])


def test_an_adapter_that_is_off_or_merged_is_pefts_affair(taken: list[int]) -> None:
    model = adapted()
    layer = layer_of(model)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = layer(x)
    assert len(taken) == 1
    with model.disable_adapter():
        torch.testing.assert_close(layer(x), layer.base_layer(x), rtol=0, atol=0)
    layer.merge()
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    assert len(taken) == 1


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}, {"bias": "all"}], ids=str
)
def test_what_is_more_than_a_plain_adapter_goes_pefts_way(options: dict[str, Any], taken: list[int]) -> None:
    model = adapted(**options).train()
    layer = layer_of(model)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.manual_seed(5)
    found = layer(x)
    torch.manual_seed(5)
    assert torch.equal(found, LoraLinear.forward(layer, x))
    assert not taken
    if "lora_dropout" in options:
        model.eval()
        torch.testing.assert_close(layer(x), LoraLinear.forward(layer, x), rtol=1e-12, atol=1e-12)
        assert len(taken) == 1


def test_other_inputs_go_pefts_way(taken: list[int]) -> None:
    """Autocast, a hook, and a second adapter at work."""
    model = adapted().float()
    layer = layer_of(model)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    layer(x)
    assert len(taken) == 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    handle = layer.base_layer.register_forward_hook(lambda *args: None)
    layer(x)
    handle.remove()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["layer"]))
    model.base_model.set_adapter(["default", "second"])
    both = layer(x)
    torch.testing.assert_close(both, LoraLinear.forward(layer, x), rtol=0, atol=0)
    assert len(taken) == 1


HOOKS: dict[str, Callable[[Any], Any]] = {
    "all modules": lambda layer: modules.register_module_forward_hook(lambda *args: None),
    "backward of all modules": lambda layer: modules.register_module_full_backward_hook(lambda *args: None),
    "backward of the layer": lambda layer: layer.register_full_backward_hook(lambda *args: None),
    "backward of A": lambda layer: layer.lora_A["default"].register_full_backward_hook(lambda *args: None),
    "before backward of B": lambda layer: layer.lora_B["default"].register_full_backward_pre_hook(lambda *args: None),
    "the dropout": lambda layer: layer.lora_dropout["default"].register_forward_hook(lambda *args: None),
}


@pytest.mark.parametrize("register", HOOKS.values(), ids=HOOKS)
def test_hooks_go_pefts_way(register: Callable[[Any], Any], taken: list[int]) -> None:
    layer = layer_of(adapted())
    x = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    expected = layer(x)
    assert len(taken) == 1
    handle = register(layer)
    try:
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    finally:
        handle.remove()
    assert len(taken) == 1
    layer(x)
    assert len(taken) == 2


def test_a_forward_put_onto_a_layer_is_called(taken: list[int]) -> None:
    """As offloading does: twice A x is twice what the adapter adds."""
    layer = layer_of(adapted())
    x = torch.ones(4, 3, dtype=torch.float64)
    base, whole = layer.base_layer(x), layer(x)
    down = layer.lora_A["default"]
    down.forward = lambda x: 2 * type(down).forward(down, x)
    torch.testing.assert_close(layer(x), base + 2 * (whole - base), rtol=1e-12, atol=1e-12)
    assert len(taken) == 1
