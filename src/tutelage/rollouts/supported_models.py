"""Which models are sampled by this project's own decoder: known by their type, and found out once, by trying.

What is not certain is refused with a sentence that says why, and sampled by `transformers` itself (`fallback.py`):
other architectures, windows, rotations that depend on the length, quantised or sharded weights, hooks, other people's
forwards, adapters that are not plain LoRA. Not here: the trial (`trial.py`).
"""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from tutelage.models import BRANCHES, has_window, unwrapped
from tutelage.models.gated_mlp import SILU_CLASSES
from tutelage.rollouts.decoder import Decoder
from tutelage.rollouts.layers import Layer, Norm
from tutelage.rollouts.products import Linear, SideBySide
from tutelage.rollouts.trial import PROBE, gives_the_same

logger = logging.getLogger(__name__)

KNOWN_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Of `transformers`' own; a trial of a few tokens says nothing of the thousandth, so the type has to be known too."""
KNOWN_ATTENTION = (BRANCHES, "sdpa", "eager", "flash_attention_2", "flash_attention_3")
KNOWN_ROTATIONS = ("default", "linear", "llama3", "yarn")
"""Those whose frequencies are the same at every length."""
INERT_HOOKS = {
    # stay on a model that has once been asked for its hidden states, and do nothing when it is not
    ("transformers.utils.output_capturing", None),
    # gradient checkpointing: the embedding's output gets a gradient, of which there is none in sampling
    ("transformers.modeling_utils", "make_inputs_require_grads"),
}
"""Module, and name where not all of the module's are: what changes no hidden state."""
OWN = "tutelage."
LOWEST_VOCABULARY = max(map(max, PROBE)) + 1
"""Tokens that the trial needs."""


class _Refused(Exception):
    """Its text says why, as the second half of a sentence."""


@dataclass
class _Known:
    """What is remembered of a model, on the model."""

    verdicts: dict[tuple[Any, ...], bool] = field(default_factory=dict[tuple[Any, ...], bool])
    """Of trials, by what each holds for."""
    reasons: set[str] = field(default_factory=set[str])
    """Those that have been logged."""


def read_decoder(model: nn.Module) -> Decoder | None:
    """The model's tensors as a decoder, or None where it is not certain that they are one; the log says why, once.

    To be read again whenever the model may have changed; what is found out by trying is remembered.
    """
    inner = unwrapped(model)
    known: _Known = inner.__dict__.setdefault("_tutelage_decoder", _Known())
    try:
        _check_call(model, inner)
        _check_config(inner)
        _check_modules(inner)
        decoder = _read(inner)
        _check_by_trying(inner, decoder, known.verdicts)
    except _Refused as refused:
        reason = str(refused)
        if reason not in known.reasons:
            known.reasons.add(reason)
            name = type(inner).__name__
            logger.info("%s is sampled by transformers, which is slower than our own decoder: %s", name, reason)
        return None
    return decoder


def _check_call(model: nn.Module, inner: Any) -> None:
    if torch.is_autocast_enabled(inner.device.type):
        raise _Refused("autocast is on, and gives products a type of its own")
    wrapped: Any = getattr(model, "module", model)
    settings: dict[str, Any] = getattr(wrapped, "peft_config", {})
    if any(config.is_prompt_learning for config in settings.values()):
        raise _Refused("an adapter puts a learnt prompt before the tokens")


def _check_config(inner: Any) -> None:
    config, kind = inner.config, type(inner)
    if config.model_type not in KNOWN_TYPES:
        raise _Refused(f"its type is {config.model_type}, not one of {', '.join(KNOWN_TYPES)}")
    if not (kind.__module__.startswith("transformers.models.") and kind.__name__.endswith("ForCausalLM")):
        raise _Refused(f"{kind.__module__}.{kind.__name__} is no causal language model of transformers' own")
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if layers != {"full_attention"} or has_window(config):
        raise _Refused("in some layers tokens see only a window of those before them")
    attention = getattr(config, "_attn_implementation", None) or ""
    if attention not in KNOWN_ATTENTION:
        raise _Refused(f"its attention is '{attention}', not one of {', '.join(KNOWN_ATTENTION)}")
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotation not in KNOWN_ROTATIONS:
        raise _Refused(f"its rotation is '{rotation}', not one of {', '.join(KNOWN_ROTATIONS)}")
    if config.hidden_act != "silu":
        raise _Refused(f"its activation is '{config.hidden_act}', not silu")
    if config.vocab_size < LOWEST_VOCABULARY:
        raise _Refused(f"it has {config.vocab_size} tokens, and trying it takes {LOWEST_VOCABULARY}")


def _check_modules(inner: Any) -> None:
    """Whether calling a module does what its class says, and no more."""
    if modules._has_any_global_hook():
        raise _Refused("a hook is registered for all modules there are")
    for name, module in inner.named_modules():
        hooks: Iterable[Any] = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(_is_inert(hook) for hook in hooks):
            raise _Refused(f"{name or 'the model'} has a hook")
        forward = module.__dict__.get("forward")
        if forward is not None and not _is_own(forward, module):
            raise _Refused(f"{name or 'the model'} has a forward that is not its class's")


def _is_inert(hook: Any) -> bool:
    module, name = getattr(hook, "__module__", ""), getattr(hook, "__qualname__", "").rpartition(".")[2]
    return (module, None) in INERT_HOOKS or (module, name) in INERT_HOOKS


def _is_own(forward: Any, module: nn.Module) -> bool:
    """This project's forwards compute what they stand for: `attach_head`'s, around the class's own."""
    wrapped = getattr(forward, "__wrapped__", None)
    code = getattr(forward, "__globals__", {}).get("__name__", "")
    return code.startswith(OWN) and getattr(wrapped, "__func__", wrapped) in (None, type(module).forward)


def _read(inner: Any) -> Decoder:
    decoder, config = inner.base_model, inner.config
    if type(decoder.embed_tokens) is not nn.Embedding:
        raise _Refused(f"its embedding is a {type(decoder.embed_tokens).__name__}")
    for part in _parts(decoder):
        if type(part).__module__ != type(inner).__module__:
            raise _Refused(f"a {type(part).__name__} has taken the place of a part of its own")
    layers = list(decoder.layers[: config.num_hidden_layers])
    _check_layers(layers)
    embedding_VH = decoder.embed_tokens.weight.detach()
    _check_tensors(embedding_VH, inner)
    return Decoder(
        embedding=embedding_VH,
        layers=[_read_layer(layer, number) for number, layer in enumerate(layers)],
        norm=_norm(decoder.norm),
        head=_linear(inner.get_output_embeddings(), "the head"),
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        scaling=layers[0].self_attn.scaling,
        rotary=decoder.rotary_emb,
    )


def _check_layers(layers: list[Any]) -> None:
    """What a layer may have of its own beside its tensors. A trial would see it, but only the first time."""
    first = layers[0].self_attn.scaling
    for number, layer in enumerate(layers):
        scaling, activation = layer.self_attn.scaling, type(layer.mlp.act_fn)
        if scaling != first:
            raise _Refused(f"attention of layer {number} is scaled by {scaling}, that of layer 0 by {first}")
        if activation not in SILU_CLASSES:
            raise _Refused(f"the activation of layer {number} is {activation.__name__}, not silu")


def _parts(decoder: Any) -> Iterator[nn.Module]:
    """What is read without calling it; linear layers look after themselves."""
    yield from (decoder, decoder.norm, decoder.rotary_emb)
    for layer in decoder.layers:
        yield from (layer, layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
        yield from (norm for name, norm in layer.self_attn.named_children() if name.endswith("_norm"))


def _read_layer(module: Any, number: int) -> Layer:
    attention, mlp = module.self_attn, module.mlp

    def side_by_side(owner: Any, *names: str) -> SideBySide:
        return SideBySide([_linear(getattr(owner, name, None), f"{name} of layer {number}") for name in names])

    has_norms = hasattr(attention, "q_norm")
    return Layer(
        norm_before=_norm(module.input_layernorm),
        queries_keys_values=side_by_side(attention, "q_proj", "k_proj", "v_proj"),
        query_norm=_norm(attention.q_norm) if has_norms else None,
        key_norm=_norm(attention.k_norm) if has_norms else None,
        output=side_by_side(attention, "o_proj"),
        norm_between=_norm(module.post_attention_layernorm),
        gate_up=side_by_side(mlp, "gate_proj", "up_proj"),
        down=side_by_side(mlp, "down_proj"),
    )


def _linear(module: Any, name: str) -> Linear:
    linear = Linear.of(module)
    if linear is None:
        raise _Refused(f"{name} is no plain linear layer, with or without plain LoRA")
    return linear


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)


def _check_tensors(embedding_VH: Tensor, inner: Any) -> None:
    """One device and one floating type, an adapter's own type apart; whole tensors, not parts or placeholders."""
    if not embedding_VH.is_floating_point():
        raise _Refused(f"its embedding is {embedding_VH.dtype}")
    for name, parameter in inner.named_parameters():
        if type(parameter.data) is not Tensor or parameter.is_meta:
            raise _Refused(f"{name} is sharded, quantised or not loaded")
        if parameter.device != embedding_VH.device:
            raise _Refused(f"{name} is on {parameter.device}, the embedding on {embedding_VH.device}")
        if ".lora_" not in name and parameter.dtype != embedding_VH.dtype:
            raise _Refused(f"{name} is {parameter.dtype}, the embedding {embedding_VH.dtype}")


def _check_by_trying(inner: Any, decoder: Decoder, verdicts: dict[tuple[Any, ...], bool]) -> None:
    """Only what was found out is remembered, not that nothing could be."""
    kind = _kind(inner, decoder)
    if kind not in verdicts:
        try:
            verdict = gives_the_same(inner, _read)
        except Exception as error:  # whatever a model says whose layers are not of the sizes its configuration names
            raise _Refused(f"trying it failed with {type(error).__name__}: {error}") from error
        if verdict is None:
            raise _Refused("its logits are not finite, so that nothing can be compared")
        verdicts[kind] = verdict
    if not verdicts[kind]:
        raise _Refused("our decoder has other logits for it")


def _kind(inner: Any, decoder: Decoder) -> tuple[Any, ...]:
    """What a trial holds for: which layers have adapters and which of them are at work, not what these add."""
    adapters = tuple(
        (name, str((module.active_adapters, module.disable_adapters, module.merged)))
        for name, module in inner.named_modules()
        if hasattr(module, "lora_B")
    )
    return str(decoder.device), decoder.embedding.dtype, inner.config._attn_implementation, adapters
