"""A gated layer that holds less has the values and gradients that autograd gives, to the last bit."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks, saved_tensors_hooks
from torch.nn import functional
from torch.nn.modules import module as modules
from torch.testing import assert_close
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tutelage.models import attach_head, gated_mlp, head_forward
from tutelage.models.adapted_linear import adapt_linear_layers
from tutelage.models.gated_mlp import hold_less_of_gated_layers
from tutelage.models.loading import without_peft_deprecations
from tutelage.rollouts.supported_models import read_decoder

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "num_hidden_layers": 2,
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
ADAPTED = ["gate_proj", "up_proj", "down_proj"]


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **options))


def adapted(adapter_on: list[str], *, own_linear: bool) -> Any:
    """With adapters that are not 0."""
    with without_peft_deprecations():
        model = get_peft_model(llama(), LoraConfig(r=2, target_modules=adapter_on))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    if own_linear:
        adapt_linear_layers(model)
    return model


def gradients(model: Any) -> dict[str, Tensor]:
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    model.zero_grad()
    model(input_ids=ids).logits.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_by_hand() -> None:
    """gate = ln 3, up = 2: sigmoid 3/4, silu ¾ ln 3, and d silu = ¾ (1 + ¼ ln 3)."""
    log_3 = 1.0986122886681098
    gate = torch.tensor([log_3], dtype=torch.float64, requires_grad=True)
    up = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    product: Any = gated_mlp._GatedProduct.apply(gate, up)
    product.backward()
    assert product.item() == pytest.approx(1.5 * log_3, rel=1e-12)
    assert gate.grad is not None
    assert gate.grad.item() == pytest.approx(1.5 * (1 + log_3 / 4), rel=1e-12)
    assert up.grad is not None
    assert up.grad.item() == pytest.approx(0.75 * log_3, rel=1e-12)


@pytest.mark.parametrize("own_linear", [True, False])
@pytest.mark.parametrize("adapter_on", [ADAPTED, ["down_proj"], ["q_proj"], ["gate_proj"]])
def test_gradients_are_those_of_autograd(adapter_on: list[str], own_linear: bool) -> None:
    model = adapted(adapter_on, own_linear=own_linear)
    expected = gradients(model)
    hold_less_of_gated_layers(model)
    found = gradients(model)
    assert len(found) == 2 * 2 * len(adapter_on)
    assert_close(found, expected, rtol=0, atol=0)


def test_all_weights_trained() -> None:
    model = llama()
    expected = gradients(model)
    hold_less_of_gated_layers(model)
    found = gradients(model)
    assert len(found) == len(expected) == 2 * 9 + 3
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("own_linear", [True, False])
def test_the_product_is_not_held(own_linear: bool) -> None:
    """Autograd's own way is the other side of it: there the memory of the product lives until backward."""
    for holds_less in (False, True):
        model = adapted(ADAPTED, own_linear=own_linear)
        if holds_less:
            hold_less_of_gated_layers(model)
        products: list[weakref.ref[Any]] = []
        down = model.base_model.model.model.layers[0].mlp.down_proj
        down.register_forward_pre_hook(
            lambda _, inputs, products=products: products.append(weakref.ref(inputs[0].untyped_storage()))
        )
        if own_linear:
            assert down._plain_adapter(torch.zeros(1, 24)) == "default"
        logits = model(input_ids=torch.tensor([[5, 6, 7]])).logits
        assert len(products) == 1
        assert (products[0]() is None) == holds_less
        logits.sum().backward()


def test_a_copy_has_its_own_weights() -> None:
    model = llama()
    hold_less_of_gated_layers(model)
    copied = copy.deepcopy(model)
    x = torch.randn(1, 3, 8)
    with torch.no_grad():
        copied.model.layers[0].mlp.down_proj.weight.zero_()
        assert copied.model.layers[0].mlp(x).abs().max() == 0
        assert model.model.layers[0].mlp(x).abs().max() > 0


def test_another_activation_is_left_alone() -> None:
    model = llama(hidden_act="gelu")
    hold_less_of_gated_layers(model)
    assert "forward" not in model.model.layers[0].mlp.__dict__


def test_a_hook_on_the_activation_is_called() -> None:
    model = llama()
    hold_less_of_gated_layers(model)
    seen: list[Tensor] = []
    model.model.layers[1].mlp.act_fn.register_forward_hook(lambda *call: seen.append(call[2]))
    model(input_ids=torch.tensor([[5, 6, 7]]))
    assert [tuple(value.shape) for value in seen] == [(1, 3, 24)]


def gelu_called(model: Any) -> None:
    model.model.layers[1].mlp.act_fn = nn.GELU()


def gelu_as_forward(model: Any) -> None:
    model.model.layers[1].mlp.act_fn.forward = functional.gelu


@pytest.mark.parametrize("change", [gelu_called, gelu_as_forward])
def test_an_activation_that_is_changed_afterwards_is_called(change: Callable[[Any], None]) -> None:
    model, reference = llama(), llama()
    silu = gradients(reference)
    hold_less_of_gated_layers(model)
    change(model)
    change(reference)
    expected = gradients(reference)
    assert_close(gradients(model), expected, rtol=0, atol=0)
    assert float((expected["lm_head.weight"] - silu["lm_head.weight"]).abs().max()) > 1e-5
    with torch.no_grad():
        x = torch.randn(1, 3, 8)
        assert_close(model.model.layers[1].mlp(x), reference.model.layers[1].mlp(x), rtol=0, atol=0)


def test_hooks_of_the_backward_pass_and_of_all_modules_are_called() -> None:
    model = llama()
    hold_less_of_gated_layers(model)
    seen: list[str] = []
    act_fn = model.model.layers[1].mlp.act_fn
    handles = [
        act_fn.register_full_backward_hook(lambda *call: seen.append("after")),
        act_fn.register_full_backward_pre_hook(lambda *call: seen.append("before")),
    ]
    gradients(model)
    assert seen == ["before", "after"]
    for handle in handles:
        handle.remove()
    seen.clear()
    handle = modules.register_module_forward_hook(
        lambda module, *call: seen.append("forward") if module is act_fn else None
    )
    try:
        gradients(model)
    finally:
        handle.remove()
    assert seen == ["forward"]
    gradients(model)
    assert len(seen) == 1


@pytest.mark.parametrize("own_linear", [True, False])
def test_hooks_of_the_caller_see_all_that_is_saved(own_linear: bool) -> None:
    """As an offload to the CPU has them: of nested hooks the innermost act alone."""
    saved: list[list[int]] = []
    for holds_less in (False, True):
        model = adapted(ADAPTED, own_linear=own_linear)
        expected = gradients(model)
        if holds_less:
            hold_less_of_gated_layers(model)
        sizes: list[int] = []

        def pack(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            found = gradients(model)
        assert_close(found, expected, rtol=0, atol=0)
        saved.append(sizes)
    assert sorted(saved[0]) == sorted(saved[1])
    assert len(saved[0]) > 50


def test_where_hooks_are_forbidden_it_computes_still() -> None:
    model = llama()
    expected = gradients(model)
    hold_less_of_gated_layers(model)
    with disable_saved_tensors_hooks("not here"):
        found = gradients(model)
    assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_that_is_switched_on_afterwards_lets_go_of_gate_and_up(use_reentrant: bool) -> None:
    model = llama().train()
    hold_less_of_gated_layers(model)
    expected = gradients(model)
    model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    model.enable_input_require_grads()
    outputs: list[weakref.ref[Any]] = []
    handles = [
        layer.register_forward_hook(lambda *call: outputs.append(weakref.ref(call[2].untyped_storage())))
        for layer in (model.model.layers[0].mlp.gate_proj, model.model.layers[0].mlp.up_proj)
    ]
    logits = model(input_ids=torch.tensor([[5, 6, 7]]), use_cache=False).logits
    assert [output() for output in outputs] == [None, None]
    logits.sum().backward()
    for handle in handles:
        handle.remove()
    assert_close(gradients(model), expected, rtol=0, atol=0)


def test_it_is_sampled_by_our_decoder_still() -> None:
    model = llama()
    hold_less_of_gated_layers(model)
    assert read_decoder(model) is not None


KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=4)),
}
IDS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 13, 14]])
PLACES = torch.tensor([7, 2, 2, 4])


def at_places(model: Any, place_N: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Hidden states there, and the gradients of the sum of their squares."""
    model.zero_grad()
    hidden_ND = head_forward(model, {"input_ids": IDS}, lambda hidden, head: hidden, place_N)
    hidden_ND.square().sum().backward()
    return hidden_ND.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place_N", [PLACES, PLACES[:0]], ids=["places", "none"])
def test_the_last_layer_is_right_where_it_is_read(kind: str, place_N: Tensor) -> None:
    """Hidden states and all gradients, some places named twice; and the layer sees those places and no more."""
    torch.manual_seed(0)
    plain = KINDS[kind]().double()
    model = copy.deepcopy(plain)
    hold_less_of_gated_layers(model)
    attach_head(model)  # which tries a few tokens
    seen: list[int] = []
    last = model.model.layers[-1].mlp
    last.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[:-1].numel()))
    expected, found = at_places(plain, place_N), at_places(model, place_N)
    assert seen == [len(place_N.unique())]
    assert_close(found, expected)
    seen.clear()
    assert_close(model(IDS).logits, plain(IDS).logits)
    assert seen == [IDS.numel()]


def all_layers(model: Any) -> Any:
    return model.model.layers


WATCHED: dict[str, Callable[[Any], Any]] = {
    "a hook on the layer": lambda model: all_layers(model)[-1].mlp.register_forward_hook(lambda *_: None),
    "checkpointing": lambda model: model.train().activation_checkpointing_enable(),
    "dropout": lambda model: setattr(
        all_layers(model)[-1].mlp, "down_proj", nn.Sequential(nn.Dropout(0.5), nn.Linear(24, 8)).requires_grad_(False)
    ),
    "another activation": lambda model: setattr(all_layers(model)[-1].mlp, "act_fn", nn.GELU()),
    "a forward of its own": lambda model: setattr(
        all_layers(model)[-1].mlp, "forward", lambda x: functional.silu(x) + x
    ),
    "a decoder that is not known": lambda model: setattr(model.model, "__class__", type("Own", (LlamaModel,), {})),
}


@pytest.mark.parametrize("change", WATCHED)
def test_the_last_layer_is_right_however_it_was_changed(change: str) -> None:
    torch.manual_seed(0)
    plain = KINDS["llama"]()
    model = copy.deepcopy(plain)
    hold_less_of_gated_layers(model)
    found: list[Any] = []
    for each in (plain, model):
        attach_head(each)
        torch.manual_seed(1)
        WATCHED[change](each)
        found.append(at_places(each, PLACES))
    assert_close(found[1], found[0])


def test_where_nearly_all_places_are_read_nothing_is_picked_out() -> None:
    model = KINDS["llama"]()
    hold_less_of_gated_layers(model)
    attach_head(model)  # which tries a few tokens
    seen: list[int] = []
    all_layers(model)[-1].mlp.down_proj.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[:-1].numel()))
    for count in (8, 9, 10):
        at_places(model, torch.arange(count))
    assert seen == [8, 9, 10]
