"""Sampling responses with `transformers`, from token ids to token ids. Not here: what is learnt from them.

Every row draws from a random generator of its own, seeded by what the row is. A rollout therefore depends
neither on the rows it is batched with, nor on their order, nor on the number of processes, nor on whether the
run was interrupted; and the global random state is never touched.
"""

import contextlib
import hashlib
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
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from tutelage.models import inference_mode_of, takes_trees, unwrapped


def rollout_seed(*identity: int) -> int:
    """A 63-bit seed for (run seed, step, row, generation): the same identity, the same rollout."""
    digest = hashlib.sha256(",".join(map(str, identity)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generate(
    model: nn.Module,
    prompts: Sequence[list[int]],
    *,
    pad_token_id: int,
    stop_ids: Collection[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seeds: Sequence[int] | None = None,
    batch_size: int = 32,
    stop_when: Callable[[list[int]], bool] | None = None,
    min_new_tokens: int = 0,
) -> list[list[int]]:
    """One response per prompt, as token ids, the end-of-turn token included where the model produced one.

    What all prompts of a batch begin with (most often the system turn) is computed once; padding stands behind it.

    In evaluation mode, without gradients, with a key-value cache; every module's mode is restored, also when
    generation raises. temperature 0 is greedy; otherwise `seeds` has one seed per prompt.
    `stop_when` is asked after each token, with a row's response so far, whether the row is done; a response that
    ends so may have padding behind it. min_new_tokens: no turn ends before; the model's own settings are not asked.
    """
    if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {0 if seeds is None else len(seeds)}")
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    responses: dict[int, list[int]] = {}
    with inference_mode_of(model):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            processors = LogitsProcessorList()
            if temperature > 0 and seeds is not None:
                if temperature != 1.0:
                    processors.append(TemperatureLogitsWarper(temperature))
                if top_p < 1.0:
                    processors.append(TopPLogitsWarper(top_p))
                processors.append(InverseCdfSampler([seeds[index] for index in indices], max_new_tokens))
            batch = _generate_batch(
                model,
                [prompts[index] for index in indices],
                pad_token_id,
                stop_ids,
                max_new_tokens,
                processors,
                stop_when,
                min_new_tokens,
            )
            responses.update(zip(indices, batch, strict=True))
    return [responses[index] for index in range(len(prompts))]


class InverseCdfSampler(LogitsProcessor):
    """Draws each row's next token by inverting its cumulative distribution at that row's next uniform number.

    `generate` then takes the argmax, which is the drawn token: sampling with one random generator a row, which
    `do_sample=True` (one generator for the whole batch) does not offer.
    """

    def __init__(self, seeds: Sequence[int], max_new_tokens: int) -> None:
        draws = [
            torch.rand(max_new_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        ]
        self._uniform_BT = torch.stack(draws)
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        cdf_BV = torch.softmax(scores.double(), dim=-1).cumsum(dim=-1)
        # The last entry may be 1 − ε: scaling the draw keeps it inside.
        draw_B1 = self._uniform_BT[:, self._step, None].to(scores.device) * cdf_BV[:, -1:]
        self._step += 1
        tokens_B1 = torch.searchsorted(cdf_BV, draw_B1, right=True).clamp_(max=scores.shape[-1] - 1)
        return torch.full_like(scores, float("-inf")).scatter_(1, tokens_B1, 0.0)


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
    stop_ids: Collection[int],
    max_new_tokens: int,
    processors: LogitsProcessorList,
    stop_when: Callable[[list[int]], bool] | None,
    min_new_tokens: int,
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
        min_new_tokens=min_new_tokens or None,
        pad_token_id=pad_token_id,
        eos_token_id=sorted(stop_ids),
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
    return [_up_to_stop(row, stop_ids) for row in output_BT[:, width:].tolist()]


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
    longest = min(map(len, prompts)) - 1
    return next((place for place in range(longest) if first[place] != last[place]), longest)


def _up_to_stop(tokens: list[int], stop_ids: Collection[int]) -> list[int]:
    """The tokens up to and with the first end-of-turn token; what follows is padding, whatever its id."""
    for index, token in enumerate(tokens):
        if token in stop_ids:
            return tokens[: index + 1]
    return tokens
