"""Whether a model is the function that `decoder.py` computes: known by its type, and found out once, by trying.

Whatever is not certain is refused, and sampled by `transformers` itself: other architectures, windows, rotations that
depend on the length, quantised or sharded weights, hooks, other people's forwards, adapters that are not plain LoRA.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as modules

from tutelage.models import BRANCHES, has_window, unwrapped
from tutelage.rollouts.decoder import Decoder, Layer, Norm, Piece
from tutelage.rollouts.products import Linear, SideBySide

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
PROBE = ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 3, 4, 9, 8, 7, 6, 5, 12])
FINE_ERRORS, COARSE_ERRORS = (1e-4, 1e-2), (0.02, 0.2)
"""Relative errors of the logits, at the median place and at the worst. A model's own float32 logits differ from its
float64 ones, and with the size of the batch, by 1e-5 at most places of a 135M Llama and by 1e-3 at an odd one."""
PREFILLED = 7
"""Tokens of each probe that are a prompt; the others follow one at a time."""


def read_decoder(model: nn.Module) -> Decoder | None:
    """The model's tensors as a decoder, or None where it is not certain that they are one.

    To be read again whenever the model may have changed; what is found out by trying is remembered.
    """
    inner = unwrapped(model)
    if torch.is_autocast_enabled(inner.device.type) or _learns_a_prompt(model) or not _looks_known(inner):
        return None
    decoder = _read(inner)
    if decoder is None:
        return None
    findings: dict[tuple[Any, ...], bool] = inner.__dict__.setdefault("_tutelage_decoder_findings", {})
    kind = _kind(inner, decoder)
    if kind not in findings:
        findings[kind] = _gives_the_same(inner, decoder)
        if not findings[kind]:
            name = type(inner).__name__
            logger.warning("%s: not the decoder that its type promises; it is sampled the slow way", name)
    return decoder if findings[kind] else None


def _learns_a_prompt(model: nn.Module) -> bool:
    wrapped: Any = getattr(model, "module", model)
    settings: dict[str, Any] = getattr(wrapped, "peft_config", {})
    return any(config.is_prompt_learning for config in settings.values())


def _looks_known(inner: Any) -> bool:
    config = inner.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    attention = getattr(config, "_attn_implementation", None) or ""
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        config.model_type in KNOWN_TYPES
        and type(inner).__module__.startswith("transformers.models.")
        and type(inner).__name__.endswith("ForCausalLM")
        and kinds == {"full_attention"}
        and not has_window(config)
        and attention in KNOWN_ATTENTION
        and rotation in KNOWN_ROTATIONS
        and config.hidden_act == "silu"
        and config.vocab_size > max(map(max, PROBE))
        and not _is_intercepted(inner)
    )


def _is_intercepted(inner: Any) -> bool:
    """Whether calling a module does more than its class says: hooks, or a forward that was put onto it."""
    if modules._has_any_global_hook():
        return True
    for module in inner.modules():
        hooks: Iterable[Any] = (
            *module._forward_hooks.values(),
            *module._forward_pre_hooks.values(),
        )
        if not all(_is_inert(hook) for hook in hooks):
            return True
        forward = module.__dict__.get("forward")
        if forward is not None and not _is_own(forward, module):
            return True
    return False


def _is_inert(hook: Any) -> bool:
    module, name = getattr(hook, "__module__", ""), getattr(hook, "__qualname__", "").rpartition(".")[2]
    return (module, None) in INERT_HOOKS or (module, name) in INERT_HOOKS


def _is_own(forward: Any, module: nn.Module) -> bool:
    """This project's forwards compute what they stand for: `attach_head`'s, around the class's own."""
    wrapped = getattr(forward, "__wrapped__", None)
    code = getattr(forward, "__globals__", {}).get("__name__", "")
    return code.startswith(OWN) and getattr(wrapped, "__func__", wrapped) in (None, type(module).forward)


def _read(inner: Any) -> Decoder | None:
    decoder, config = inner.base_model, inner.config
    head = Linear.of(inner.get_output_embeddings())
    if head is None or type(decoder.embed_tokens) is not nn.Embedding:
        return None
    if not all(_is_of_the_family(part, inner) for part in _parts(decoder)):
        return None
    embedding_VH = decoder.embed_tokens.weight.detach()
    layers = [_read_layer(module) for module in decoder.layers[: config.num_hidden_layers]]
    found = [layer for layer in layers if layer is not None]
    if len(found) < len(layers) or not _are_alike(embedding_VH, inner):
        return None
    attention = decoder.layers[0].self_attn
    return Decoder(
        embedding=embedding_VH,
        layers=found,
        norm=_norm(decoder.norm),
        head=head,
        heads=config.num_attention_heads,
        key_heads=config.num_key_value_heads,
        scaling=attention.scaling,
        rotary=decoder.rotary_emb,
    )


def _parts(decoder: Any) -> Iterator[nn.Module]:
    """What is read without calling it; linear layers look after themselves."""
    yield from (decoder, decoder.norm, decoder.rotary_emb)
    for layer in decoder.layers:
        yield from (layer, layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm)
        yield from (norm for name, norm in layer.self_attn.named_children() if name.endswith("_norm"))


def _is_of_the_family(part: nn.Module, inner: Any) -> bool:
    """Defined beside the model: nobody has put something else in its place."""
    return type(part).__module__ == type(inner).__module__


def _read_layer(module: Any) -> Layer | None:
    attention, mlp = module.self_attn, module.mlp
    names = ((attention, ("q_proj", "k_proj", "v_proj", "o_proj")), (mlp, ("gate_proj", "up_proj", "down_proj")))
    linears = [Linear.of(getattr(owner, name, None)) for owner, parts in names for name in parts]
    known = [linear for linear in linears if linear is not None]
    if len(known) < len(linears):
        return None
    has_norms = hasattr(attention, "q_norm")
    return Layer(
        norm_before=_norm(module.input_layernorm),
        queries_keys_values=SideBySide(known[:3]),
        query_norm=_norm(attention.q_norm) if has_norms else None,
        key_norm=_norm(attention.k_norm) if has_norms else None,
        output=SideBySide(known[3:4]),
        norm_between=_norm(module.post_attention_layernorm),
        gate_up=SideBySide(known[4:6]),
        down=SideBySide(known[6:]),
    )


def _norm(module: Any) -> Norm:
    return Norm(module.weight.detach(), module.variance_epsilon)


def _are_alike(embedding_VH: Tensor, inner: Any) -> bool:
    """One device and one floating type, an adapter's own type apart; whole tensors, not parts or placeholders."""
    for name, parameter in inner.named_parameters():
        if type(parameter.data) is not Tensor or parameter.device != embedding_VH.device or parameter.is_meta:
            return False
        if ".lora_" not in name and parameter.dtype != embedding_VH.dtype:
            return False
    return embedding_VH.is_floating_point()


def _kind(inner: Any, decoder: Decoder) -> tuple[Any, ...]:
    """What a trial holds for: where an adapter adds nothing yet, it has seen nothing of the adapter."""
    adapted = [module for module in inner.modules() if hasattr(module, "lora_B")]
    active = tuple(sorted({str((each.active_adapters, each.disable_adapters, each.merged)) for each in adapted}))
    adds = any(group.adds_something for layer in decoder.layers for group in layer.groups)
    return (str(decoder.device), decoder.embedding.dtype, inner.config._attn_implementation, active, adds)


def _gives_the_same(inner: Any, decoder: Decoder) -> bool:
    """Whether prompts and the steps after them have the model's own logits."""
    rotations, length = decoder.rotations(max(map(len, PROBE))), min(map(len, PROBE))
    cache = decoder.cache(len(PROBE), max(map(len, PROBE)))
    pieces = [Piece(row, tokens, 0, PREFILLED) for row, tokens in enumerate(PROBE)]
    ids_RT = torch.tensor([tokens[:length] for tokens in PROBE], device=decoder.device)
    with torch.no_grad():
        expected_RTV = inner(input_ids=ids_RT, use_cache=False).logits[:, PREFILLED - 1 :].float()
        states = [decoder.prefill(pieces, cache, rotations)[PREFILLED - 1 :: PREFILLED]]
        for place in range(PREFILLED, length):
            states.append(decoder.step(ids_RT[:, place], [place] * len(PROBE), cache, rotations))
        hidden_NH = torch.stack(states, dim=1).flatten(0, 1)
        room_NV = hidden_NH.new_empty(len(hidden_NH), len(decoder.head.weight), dtype=torch.float32)
        found_RTV = decoder.logits(hidden_NH, room_NV).view_as(expected_RTV)
    gap_N = (expected_RTV - found_RTV).norm(dim=-1).flatten()
    error_N = torch.where(gap_N == 0, 0.0, gap_N / expected_RTV.norm(dim=-1).flatten())  # all may be 0
    coarse = decoder.embedding.dtype in (torch.bfloat16, torch.float16)
    usual, largest = COARSE_ERRORS if coarse else FINE_ERRORS
    return float(error_N.median()) <= usual and float(error_N.max()) <= largest
