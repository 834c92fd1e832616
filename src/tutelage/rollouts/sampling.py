"""Sampling responses, from token ids to token ids. Not here: what is learnt from them.

Every row draws from a random generator of its own, seeded by what the row is. A rollout therefore depends
neither on the rows it is batched with, nor on their order, nor on the number of processes, nor on whether the
run was interrupted, but for what another number of rows changes in the rounding of a product; and the global
random state is never touched.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence

from torch import nn

from tutelage.models import inference_mode_of
from tutelage.rollouts.drawing import Drawing
from tutelage.rollouts.engine import generate_by_decoder
from tutelage.rollouts.fallback import generate_by_transformers
from tutelage.rollouts.supported_models import read_decoder


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

    At most `batch_size` rows at a time. A model that `supported_models.py` knows is sampled by this project's own
    decoder, which reads the model's tensors and writes none; every other one by `transformers`, and the log says why.
    Each row has room in the key-value cache for the longest prompt and `max_new_tokens`. Where that would take more
    than `engine.CACHE_BYTES`, long and short prompts are sampled one after the other, the long ones in fewer rows.

    In evaluation mode, without gradients; every module's mode is restored, also when generation raises.
    temperature 0 is greedy; otherwise `seeds` has one seed per prompt.
    `stop_when` is asked after each token, with a row's response so far, whether the row is done; a response that
    ends so may have padding behind it. min_new_tokens: no turn ends before; the model's own settings are not asked.

    Raises ValueError without a seed for each prompt where temperature is above 0, for a batch_size or max_new_tokens
    below 1, and for a prompt without tokens.
    """
    if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
        raise ValueError(f"{len(prompts)} prompts need as many seeds, not {0 if seeds is None else len(seeds)}")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} leaves no row to sample; pass 1 or more")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} leaves no token to sample; pass 1 or more")
    if not all(prompts):
        empty = [len(prompt) for prompt in prompts].index(0)
        raise ValueError(f"prompt {empty} (from 0) has no token for a response to follow; begin it with bos")
    if not prompts:
        return []
    drawing = Drawing(temperature, top_p, stop_ids, min_new_tokens)
    used_seeds = None if drawing.is_greedy else seeds
    with inference_mode_of(model):
        decoder = read_decoder(model)
        if decoder is not None:
            return generate_by_decoder(
                decoder,
                prompts,
                used_seeds,
                drawing,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                stop_when=stop_when,
            )
        return generate_by_transformers(
            model,
            prompts,
            used_seeds,
            drawing,
            pad_token_id=pad_token_id,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            stop_when=stop_when,
        )
