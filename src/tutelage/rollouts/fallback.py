"""Sampling with `transformers`' own `generate`: the way for every model that our own decoder is not known to be."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from tutelage.models import shared_tokens, takes_trees, unwrapped
from tutelage.rollouts.drawing import Drawing, uniforms


def generate_by_transformers(
    model: nn.Module,
    prompts: Sequence[list[int]],
    seeds: Sequence[int] | None,
    drawing: Drawing,
    *,
    pad_token_id: int,
    max_new_tokens: int,
    batch_size: int,
    stop_when: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    """See `generate`. In batches of prompts of like length; a row that is done waits for the others of its batch.

    What all prompts of a batch begin with (most often the system turn) is computed once; padding stands behind it.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    responses: dict[int, list[int]] = {}
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        processors = LogitsProcessorList()
        if seeds is not None:
            processors.append(_Drawn(drawing, [seeds[index] for index in indices], max_new_tokens))
        batch = _generate_batch(
            model,
            [prompts[index] for index in indices],
            pad_token_id,
            drawing,
            max_new_tokens,
            processors,
            stop_when,
        )
        responses.update(zip(indices, batch, strict=True))
    return [responses[index] for index in range(len(prompts))]


class _Drawn(LogitsProcessor):
    """Leaves each row the one token that is drawn for it, which `generate` then takes for the best.

    That is sampling with one random generator a row; `do_sample=True` has one for the whole batch.
    """

    def __init__(self, drawing: Drawing, seeds: Sequence[int], max_new_tokens: int) -> None:
        self._drawing = drawing
        self._uniform_NT = torch.stack([uniforms(seed, max_new_tokens) for seed in seeds])
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        uniform_N = self._uniform_NT[:, self._step].to(scores.device)
        tokens_N = self._drawing(scores.clone(), uniform_N, [self._step] * len(scores))
        self._step += 1
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens_N[:, None], 0.0)


class _StopWhen(StoppingCriteria):
    def __init__(self, is_done: Callable[[list[int]], bool], width: int) -> None:
        self._is_done = is_done
        self._width = width

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        done = [self._is_done(row) for row in input_ids[:, self._width :].tolist()]
        return torch.tensor(done, device=input_ids.device)


def _generate_batch(
    model: Any,
    prompts: Sequence[list[int]],
    pad_token_id: int,
    drawing: Drawing,
    max_new_tokens: int,
    processors: LogitsProcessorList,
    stop_when: Callable[[list[int]], bool] | None,
) -> list[list[int]]:
    model = getattr(model, "module", model)
    device = next(model.parameters()).device
    shared = _shared_tokens(prompts) if takes_trees(model) else 0
    width = max(len(prompt) for prompt in prompts)
    ids_BT = torch.full((len(prompts), width), pad_token_id)
    attention_BT = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        for part, end in ((prompt[:shared], shared), (prompt[shared:], width)):
            ids_BT[row, end - len(part) : end] = torch.tensor(part, dtype=torch.long)
            attention_BT[row, end - len(part) : end] = 1
    ids_BT, attention_BT = ids_BT.to(device), attention_BT.to(device)
    cache = DynamicCache()
    if shared:
        unwrapped(model).base_model(input_ids=ids_BT[:1, :shared], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(prompts))
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        min_new_tokens=drawing.min_new_tokens or None,
        pad_token_id=pad_token_id,
        eos_token_id=sorted(drawing.stop_ids),
        use_cache=True,
    )
    with _without_own_settings(model):
        output_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=attention_BT,
            past_key_values=cache if shared else None,
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([_StopWhen(stop_when, width)] if stop_when else []),
        )
    return [_up_to_stop(row, drawing.stop_ids) for row in output_BT[:, width:].tolist()]


@contextlib.contextmanager
def _without_own_settings(model: Any) -> Iterator[None]:
    """A model may come with a repetition penalty or a minimum length, which `generate` takes where it is told nothing
    else; answers would then be none of the model's own distribution."""
    # PEFT hands its own settings on to the model inside when it generates.
    holders = [holder for holder in (model, unwrapped(model)) if hasattr(holder, "generation_config")]
    kept = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, settings in zip(holders, kept, strict=True):
            holder.generation_config = settings


def _shared_tokens(prompts: Sequence[list[int]]) -> int:
    """How many tokens all prompts begin with, short of a prompt's last, which the first new token comes from."""
    if len(prompts) == 1:
        return 0
    first, last = min(prompts), max(prompts)  # in lexical order these two differ first
    return min(shared_tokens(first, last), min(map(len, prompts)) - 1)


def _up_to_stop(tokens: list[int], stop_ids: Collection[int]) -> list[int]:
    """The tokens up to and with the first end-of-turn token; what follows is padding, whatever its id."""
    for index, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: index + 1]
    return tokens
