"""The way from tokens to the head, so that a loss sees hidden states and never all logits at once.

`head_forward` runs inside the model's own `forward`, below whatever wraps it (data parallelism, autocast, PEFT).
Not here: the losses that are applied there (`losses`).
"""

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tutelage.losses import AnyHead, Head, IdentityHead
from tutelage.models.gated_mlp import last_gated_layer_only_at
from tutelage.models.inference import inference_mode_of
from tutelage.models.sharding import inside_call_of
from tutelage.models.wrappers import unwrapped

logger = logging.getLogger(__name__)

HeadFunction = Callable[[Tensor, AnyHead], Any]
"""Takes hidden states [B, T, D], or [N, D] where places are named, and the head that turns them into logits."""

Result = TypeVar("Result")


def head_forward(
    model: nn.Module,
    inputs: dict[str, Tensor],
    function: Callable[[Tensor, AnyHead], Result],
    place_N: Tensor | None = None,
) -> Result:
    """`function(hidden_BTD, head)` computed inside the model's forward pass, or `function(hidden_ND, head)` with the
    hidden states at the places `place_N`, int64, of [B · T], of which some may be the same.

    inputs: what the decoder takes: `input_ids`, `attention_mask`, `position_ids`. Where the head cannot be found,
    the hidden states are the logits themselves and the head is the identity. With places the last layer computes
    nothing elsewhere that only it needs. Of a sharded model a loss is to be a tensor or stand in a tuple: FSDP looks
    for it there to learn when the backward pass begins.
    """
    attach_head(model)
    return model(**inputs, use_cache=False, head_function=function, head_place_N=place_N)


def attach_head(model: nn.Module) -> bool:
    """Teach the causal language model inside `model` the arguments of `head_forward`. Idempotent.

    Whether its head was found; a function gets its full logits otherwise, and a line in the log says so.
    """
    causal_lm = unwrapped(model)
    if hasattr(causal_lm, "_tutelage_head_found"):
        return causal_lm._tutelage_head_found
    original = causal_lm.forward
    read_head = _head_reader(causal_lm)
    if read_head is None:
        logger.warning(
            "%s: its head is not a plain linear layer on the decoder; losses use its full logits",
            type(causal_lm).__name__,
        )

    @functools.wraps(original)
    def forward(
        *args: Any, head_function: HeadFunction | None = None, head_place_N: Tensor | None = None, **kwargs: Any
    ) -> Any:
        if head_function is None:
            return original(*args, **kwargs)
        # The number of items is for a loss of the model's own, which nobody asks for here.
        kwargs = {key: value for key, value in kwargs.items() if value is not None and key != "num_items_in_batch"}
        reader = read_head
        if reader is None:
            logits_BTV = original(*args, **kwargs).logits
            return head_function(_at(logits_BTV, head_place_N), IdentityHead(logits_BTV.shape[-1]))
        decoder: Any = causal_lm.base_model
        with last_gated_layer_only_at(decoder, head_place_N):
            hidden_BTD = decoder(*args, **kwargs).last_hidden_state

        def at_the_head(hidden_BTD: Tensor) -> Any:
            return head_function(_at(hidden_BTD, head_place_N), reader())

        return inside_call_of(causal_lm.get_output_embeddings(), at_the_head, hidden_BTD)

    causal_lm.forward = forward  # pyright: ignore[reportAttributeAccessIssue]
    causal_lm._tutelage_head_found = read_head is not None  # pyright: ignore[reportAttributeAccessIssue]
    return causal_lm._tutelage_head_found


def _at(x_BTX: Tensor, place_N: Tensor | None) -> Tensor:
    return x_BTX if place_N is None else x_BTX.flatten(0, 1)[place_N]


def _head_reader(causal_lm: Any) -> Callable[[], Head] | None:
    """A function that reads the head's present tensors, or None if dense logits are the only way.

    What the architecture does between head and logits (soft-capping, scaling) is read from its config; whether
    that is all it does is found by comparing a few logits, so an unknown architecture cannot be wrong silently.
    """
    layer = causal_lm.get_output_embeddings()
    if type(layer) is not nn.Linear or causal_lm.base_model is causal_lm:
        return None
    if type(layer.weight.data) is not Tensor:
        return None  # sharded or quantised: what a product with it gives is its own affair
    config = causal_lm.config.get_text_config()
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)

    def read() -> Head:
        return Head(weight=layer.weight, bias=layer.bias, softcap=softcap, scale=scale)

    device = layer.weight.device
    probe_BT = torch.arange(8, device=device).remainder(config.vocab_size)[None]
    with inference_mode_of(causal_lm):
        expected_BTV = causal_lm(input_ids=probe_BT, use_cache=False).logits.float()
        hidden_BTD = causal_lm.base_model(input_ids=probe_BT, use_cache=False).last_hidden_state
        logits_BTV = read().logits(hidden_BTD.flatten(0, 1)).view_as(expected_BTV)
    coarse = layer.weight.dtype in (torch.bfloat16, torch.float16)
    tolerance = (0.05 if coarse else 1e-4) * max(1.0, float(expected_BTV.abs().max()))
    return read if float((expected_BTV - logits_BTV).abs().max()) <= tolerance else None
