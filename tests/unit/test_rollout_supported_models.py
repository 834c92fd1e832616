"""What a layer has of its own beside its tensors is read at each call, whatever a trial has found before."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn
from transformers.activations import SiLUActivation

from tests.tiny import tiny_model, tiny_tokenizer
from tutelage.rollouts.supported_models import read_decoder


def scaled(layer: Any) -> None:
    layer.self_attn.scaling *= 2


def with_gelu(layer: Any) -> None:
    layer.mlp.act_fn = nn.GELU()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (scaled, "attention of layer 1 is scaled by 0.7071067811865476, that of layer 0 by 0.3535533905932738"),
        (with_gelu, "the activation of layer 1 is GELU, not silu"),
    ],
)
@pytest.mark.parametrize("tried_before", [True, False])
def test_a_layer_that_is_unlike_the_others_is_refused(
    tried_before: bool, change: Callable[[Any], None], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model(tiny_tokenizer())
    if tried_before:
        assert read_decoder(model) is not None
    change(model.model.layers[1])
    with caplog.at_level("INFO", logger="tutelage"):
        assert read_decoder(model) is None
    (record,) = caplog.records
    assert record.getMessage().endswith(f": {reason}")


@pytest.mark.parametrize("activation", [nn.SiLU, SiLUActivation])
def test_either_silu_is_read(activation: type[nn.Module]) -> None:
    model = tiny_model(tiny_tokenizer())
    for layer in model.model.layers:
        layer.mlp.act_fn = activation()
    assert read_decoder(model) is not None


def test_layers_that_are_scaled_alike_are_read() -> None:
    model = tiny_model(tiny_tokenizer())
    for layer in model.model.layers:
        scaled(layer)
    assert read_decoder(model) is not None
