"""What grpo rewards: the built-in rewards, own functions by path, and what becomes of scores that are missing.

A reward has TRL's signature: keyword arguments `prompts`, `completions` (one list of messages each), `completion_ids`,
`gold_response`, and a column for every other key of the rows. Not here: how a text is scored (`scoring`).
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tutelage.config import GrpoConfig
from tutelage.config.objectives import JUDGE_REWARDS
from tutelage.errors import ConfigError, TrainingError, nearest
from tutelage.scoring import (
    TRAIT_LANGUAGES,
    Judge,
    exact_match,
    load_function,
    quality_prompt,
    rouge_l,
    run_to_end,
    score_of,
    similarity_prompt,
    tool_call_match,
    traits,
)

Messages = Sequence[Mapping[str, str]]


class RewardFunction(Protocol):
    """TRL's signature; None is a score that is missing, as NaN is."""

    def __call__(
        self, *, prompts: list[Messages], completions: list[Messages], gold_response: list[str], **columns: Any
    ) -> Sequence[float | None]: ...


TEXT_REWARDS: dict[str, Callable[[str, str], float]] = {
    "rouge_l": rouge_l,
    "exact_match": exact_match,
    "tool_call_match": tool_call_match,
}
"""Rewards that compare an answer with the gold answer."""

REWARDS = (*TEXT_REWARDS, "traits", *JUDGE_REWARDS)
"""Every built-in value of `grpo_reward_function`."""


def load_reward(options: GrpoConfig) -> RewardFunction:
    """The reward a config names. Raises ConfigError for one that is not known or cannot be imported."""
    name = options.reward_function
    if name in TEXT_REWARDS:
        return text_reward(TEXT_REWARDS[name])
    if name == "traits":
        if options.traits_language not in TRAIT_LANGUAGES:
            hint = nearest(options.traits_language, TRAIT_LANGUAGES) or f"; one of {', '.join(TRAIT_LANGUAGES)}"
            raise ConfigError(f"grpo_traits_language: '{options.traits_language}' has no list of words{hint}")
        return text_reward(lambda answer, _: traits(answer, options.traits_language))
    if name in JUDGE_REWARDS:
        return JudgeReward(options)
    if ":" not in name:
        hint = nearest(name, REWARDS) or f"; one of {', '.join(REWARDS)}"
        raise ConfigError(
            f"grpo_reward_function: '{name}' is not a reward{hint}, or your own as path/to/file.py:function"
        )
    return load_function(name, "grpo_reward_function")


def text_reward(score: Callable[[str, str], float]) -> RewardFunction:
    """A function of answer and gold answer as a reward."""

    def reward(
        *, prompts: list[Messages], completions: list[Messages], gold_response: list[str], **columns: Any
    ) -> list[float | None]:
        return [score(turns[-1]["content"], gold) for turns, gold in zip(completions, gold_response, strict=True)]

    return reward


class JudgeReward:
    """The score from 0 to 1 that a chat model gives; None where a call failed or its answer holds no score."""

    def __init__(self, options: GrpoConfig) -> None:
        assert options.judge_model is not None
        self.judge = Judge(
            model=options.judge_model,
            base_url=options.judge_base_url,
            timeout=options.judge_timeout,
            parallelism=options.judge_parallelism,
            temperature=options.judge_temperature,
            max_tokens=options.judge_max_tokens,
            options="grpo_judge_",
        )
        self._compares = options.reward_function == "similarity_judge"
        self.last_error: str | None = None
        """Why the newest call that failed did."""

    def __call__(
        self, *, prompts: list[Messages], completions: list[Messages], gold_response: list[str], **columns: Any
    ) -> list[float | None]:
        asked = [
            similarity_prompt(_as_text(prompt), turns[-1]["content"], gold)
            if self._compares
            else quality_prompt(_as_text(prompt), turns[-1]["content"])
            for prompt, turns, gold in zip(prompts, completions, gold_response, strict=True)
        ]
        scores: list[float | None] = []
        for reply in self.judge.ask(asked):
            score = None if reply.text is None else score_of(reply.text)
            if score is None:
                self.last_error = reply.error or (
                    f"its answer {str(reply.text)[:60]!r} holds no score from 0 to 100; raise grpo_judge_max_tokens if "
                    "it thinks first, or choose another"
                )
            scores.append(score)
        return scores


class Scores:
    """A reward called with care: every batch of answers gets a finite score each, or the run stops.

    A score that is NaN, infinite or None becomes the mean of the finite ones of the batch, 0 if there are none;
    after `grpo_max_unscored_batches` batches in a row without a finite one the run stops.
    """

    def __init__(self, options: GrpoConfig) -> None:
        self.name = options.reward_function
        self.reward = load_reward(options)
        self._limit = options.max_unscored_batches
        self._unscored_batches = 0
        self.of_gold: dict[str, float] | None = None
        """What `check_reward` found before the model was loaded: a reward is called no more often than it must be."""

    def raw(self, columns: Mapping[str, Any]) -> Tensor:
        """Scores as the reward gives them, shape [N], NaN where one is missing.

        Raises TrainingError for a reward that raises, or returns something else than one number an answer.
        """
        expected = len(columns["completions"])
        self._require_callable_with(columns)
        try:
            returned: Any = self.reward(**columns)
            if inspect.isawaitable(returned):
                returned = run_to_end(_finished(returned))
        except (Exception, SystemExit) as error:  # the reward is the user's code
            raise TrainingError(
                f"grpo_reward_function '{self.name}' raised {type(error).__name__}: {error}{_where(error)}; mend it, "
                "or return None for an answer that has no score"
            ) from error
        is_list = hasattr(returned, "__len__") and hasattr(returned, "__iter__") and not isinstance(returned, str)
        if not is_list or len(returned) != expected:
            what = f"{len(returned)} scores" if is_list else repr(returned)[:60]
            raise TrainingError(
                f"grpo_reward_function '{self.name}' returned {what} for {expected} answers; return a list with "
                "one number an answer"
            )
        return torch.tensor([self._number(value) for value in returned], dtype=torch.float32)

    def _require_callable_with(self, columns: Mapping[str, Any]) -> None:
        try:
            signature = inspect.signature(self.reward, follow_wrapped=False)
        except (TypeError, ValueError):
            return  # a function that hides it
        try:
            signature.bind(**columns)
        except TypeError as error:
            raise TrainingError(
                f"grpo_reward_function '{self.name}' cannot be called with what there is: {', '.join(columns)} "
                f"({error}); name its parameters after these, and end with **columns"
            ) from error

    def filled(self, scores_N: Tensor) -> tuple[Tensor, int]:
        """The batch's scores with the missing ones filled in, and how many those were. Raises TrainingError."""
        finite_N = torch.isfinite(scores_N)
        missing = int((~finite_N).sum())
        self._unscored_batches = self._unscored_batches + 1 if missing == len(scores_N) else 0
        if self._unscored_batches >= self._limit:
            raise TrainingError(
                f"grpo_reward_function '{self.name}' gave no finite score in {self._limit} "
                f"batch{'es' * (self._limit > 1)} in a row{self.reason()}; nothing can be learned without one"
            )
        mean = scores_N[finite_N].mean() if missing < len(scores_N) else torch.zeros(())
        return torch.where(finite_N, scores_N, mean.to(scores_N)), missing

    def reason(self) -> str:
        """What a judge last failed with, for the end of a sentence."""
        error = self.reward.last_error if isinstance(self.reward, JudgeReward) else None
        return f" (the judge: {error})" if error else ""

    def _number(self, value: Any) -> float:
        if value is None:
            return math.nan
        if isinstance(value, numbers.Real | Tensor):
            return float(value)
        raise TrainingError(
            f"grpo_reward_function '{self.name}' returned {value!r:.60} as a score; return a number, or None for an "
            "answer that has no score"
        )


def _as_text(prompt: Messages) -> str:
    """What the answer answers: the question, or all turns where there are more, since it may hang on any of them."""
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in prompt)


async def _finished(awaitable: Any) -> Any:
    return await awaitable


def _where(error: BaseException) -> str:
    """File and line of the innermost call, such as ` (rewards.py:7)`."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    name = traceback.tb_frame.f_code.co_filename.replace("\\", "/").rsplit("/", 1)[-1]
    return f" ({name}:{traceback.tb_lineno})"
