"""Answers to rows of prompts, window after window: sampled, cut at stop strings, with log-probabilities if asked for.

Not here: sampling itself (`tutelage.rollouts`), reading rows (`prompts.py`), files (`inference.py`).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch

from tutelage.evaluation.third_party import cut_at, ends_with_one_of
from tutelage.jobs.params import InferenceParams
from tutelage.models import LoadedModel, inference_mode_of
from tutelage.models.scoring import POSITIONS_PER_CHUNK, Pair, response_hidden
from tutelage.monitoring.prompts import padding_id
from tutelage.rollouts import generate, rollout_seed
from tutelage.worker.programs.prompts import AskedRow, PromptFile

BATCHES_PER_WINDOW = 8
"""Batches of prompts that are sorted by length together: what is in memory at a time."""


@dataclass(frozen=True)
class Answer:
    """text: without prefill and stop string. ids: what was generated, the end of turn or the stop string included."""

    text: str
    ids: list[int]
    log_probs: list[list[dict[str, Any]]] | None = None


@dataclass(frozen=True)
class Answerer:
    """Answers as the options of a job say. An answer depends on seed, row and number alone, not on its batch.

    limit: tokens of prompt and answer together.
    """

    loaded: LoadedModel
    prompts: PromptFile
    params: InferenceParams
    limit: int

    def answered(self) -> Iterator[tuple[AskedRow, list[Answer]]]:
        """Every row with its `n_completions_per_prompt` answers, in order."""
        rows = self.prompts.rows()
        size = self.params.batch_size * BATCHES_PER_WINDOW
        per_window = max(size // self.params.n_completions_per_prompt, 1)
        while window := list(islice(rows, per_window)):
            yield from zip(window, self._answer(window), strict=True)

    def _answer(self, window: Sequence[AskedRow]) -> list[list[Answer]]:
        count = self.params.n_completions_per_prompt
        asked = [(row, number) for row in window for number in range(count)]
        responses: dict[int, list[int]] = {}
        # Few prompts are so long that less than max_tokens fits behind them; those of equal room go together.
        rooms = [min(self.params.max_tokens, self.limit - len(row.ids)) for row, _ in asked]
        for room in sorted(set(rooms)):
            indices = [index for index, one in enumerate(rooms) if one == room]
            responses.update(zip(indices, self._generate([asked[index] for index in indices], room), strict=True))
        answers = [self._whole(row, responses[index]) for index, (row, _) in enumerate(asked)]
        if self.params.logprobs is not None:
            pairs = [(row.ids, answer.ids) for (row, _), answer in zip(asked, answers, strict=True)]
            scored = top_log_probs(self.loaded, pairs, self.params.logprobs, self.params.batch_size)
            answers = [Answer(one.text, one.ids, scores) for one, scores in zip(answers, scored, strict=True)]
        return [answers[start : start + count] for start in range(0, len(answers), count)]

    def _generate(self, asked: Sequence[tuple[AskedRow, int]], room: int) -> list[list[int]]:
        template, params = self.prompts.template, self.params
        return generate(
            self.loaded.model,
            [row.ids for row, _ in asked],
            pad_token_id=padding_id(template),
            stop_ids=template.end_of_turn_ids,
            max_new_tokens=room,
            temperature=params.temperature,
            top_p=params.top_p,
            seeds=[rollout_seed(params.seed, row.number, number) for row, number in asked],
            batch_size=params.batch_size,
            stop_when=self._stop,
            min_new_tokens=params.min_tokens,
        )

    @cached_property
    def _stop(self) -> Callable[[list[int]], bool] | None:
        """Whether a response holds a stop string behind its first tokens, which `min_tokens` keeps."""
        is_done = ends_with_one_of(self.prompts.template.tokenizer, self.params.stop)
        if is_done is None:
            return None
        kept = max(self.params.min_tokens - 1, 0)
        return lambda response: len(response) > kept and is_done(response[kept:])

    def _whole(self, row: AskedRow, response: list[int]) -> Answer:
        """The answer up to its end, without the padding that may follow a stop string."""
        template, stop = self.prompts.template, self._stop
        if stop is not None and stop(response):
            response = next(response[:end] for end in range(1, len(response) + 1) if stop(response[:end]))
        content = response[:-1] if response[-1] in template.end_of_turn_ids else response
        # A tokenizer may drop the space that a text begins with, but not one inside it.
        kept = [*row.prefill, *content[: max(self.params.min_tokens - 1, 0)]]
        kept_text, text = _text(template.tokenizer, kept), _text(template.tokenizer, [*row.prefill, *content])
        begun = len(_text(template.tokenizer, row.prefill))
        return Answer(kept_text[begun:] + cut_at(text[len(kept_text) :], self.params.stop), response)


def top_log_probs(
    loaded: LoadedModel, pairs: Sequence[Pair], top: int, batch_size: int
) -> list[list[list[dict[str, Any]]]]:
    """For each token of each response: itself, then the `top` most probable others, with log-probability and rank.

    Of the model's own distribution, in nats, whatever temperature and top_p it was sampled with.
    """
    scored: list[list[list[dict[str, Any]]]] = []
    with inference_mode_of(loaded.model):
        for start in range(0, len(pairs), batch_size):
            batch = pairs[start : start + batch_size]
            hidden_ND, logits_of = response_hidden(loaded.model, batch)
            targets = [token for _, response in batch for token in response]
            places: list[list[dict[str, Any]]] = []
            for at, hidden_nD in enumerate(hidden_ND.split(POSITIONS_PER_CHUNK)):
                chunk = targets[at * POSITIONS_PER_CHUNK :][: len(hidden_nD)]
                places += _places(loaded.tokenizer, torch.log_softmax(logits_of(hidden_nD).float(), dim=-1), chunk, top)
            for _, response in batch:
                scored.append(places[: len(response)])
                places = places[len(response) :]
    return scored


def _places(tokenizer: Any, logp_nV: torch.Tensor, targets: Sequence[int], top: int) -> list[list[dict[str, Any]]]:
    targets_n = torch.tensor(targets, device=logp_nV.device)
    own_n = logp_nV.gather(1, targets_n[:, None])[:, 0]
    rank_n = (logp_nV > own_n[:, None]).sum(dim=-1) + 1
    best_nK = logp_nV.topk(top, dim=-1)
    places: list[list[dict[str, Any]]] = []
    for token, own, rank, values, ids in zip(
        targets, own_n.tolist(), rank_n.tolist(), best_nK.values.tolist(), best_nK.indices.tolist(), strict=True
    ):
        others = [(one, value, place) for place, (one, value) in enumerate(zip(ids, values, strict=True), start=1)]
        entries = [(token, own, rank), *(other for other in others if other[0] != token)]
        places.append(
            [
                {"logprob_key": one, "decoded_token": _raw(tokenizer, one), "logprob": round(value, 6), "rank": place}
                for one, value, place in entries
            ]
        )
    return places


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _raw(tokenizer: Any, token: int) -> str:
    return str(tokenizer.decode([token]))
