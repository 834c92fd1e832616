"""Before a run of grpo: does the reward work at all? It scores a few gold answers as if they were sampled."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerState

from tutelage.data.rows import PromptRow
from tutelage.errors import TrainingError
from tutelage.training.rewards import JudgeReward, Scores

CHECKED_ROWS = 4


def check_reward(scores: Scores, rows: Sequence[PromptRow]) -> dict[str, float]:
    """`gold_reward`, the mean over up to 4 rows, and their number `rows`; this alone where a judge scored none.

    Raises TrainingError for a reward that raises, returns the wrong number of scores, or has no finite score for any
    of these answers. A judge that fails only now and then passes: that is for the run to count.
    """
    chosen = rows[:CHECKED_ROWS]
    columns = reward_columns(chosen, [row.gold for row in chosen], [row.gold_ids for row in chosen])
    found_N = scores.raw(columns | outside_training(TrainerState()))
    finite_N = found_N[torch.isfinite(found_N)]
    if len(finite_N) == 0:
        if isinstance(scores.reward, JudgeReward):
            return {"rows": len(chosen)}
        raise TrainingError(
            f"grpo_reward_function '{scores.name}' has no finite score for any of the gold answers of "
            f"{chosen[0].place} and the {len(chosen) - 1} rows after it; return numbers"
        )
    return {"gold_reward": float(finite_N.mean()), "rows": len(chosen)}


def gold_text(values: Mapping[str, float]) -> str:
    """What `check_reward` found, as a line."""
    return f"reward of the gold answers: {values['gold_reward']:.3g} ({values['rows']} rows)"


def outside_training(state: TrainerState) -> dict[str, Any]:
    """What TRL gives a reward besides the columns, where what it logs goes nowhere."""
    return {"trainer_state": state, "log_extra": _to_nowhere, "log_metric": _to_nowhere}


def _to_nowhere(name: str, value: Any) -> None:
    """A logger of rewards that are scored outside training."""


def messages_of(row: PromptRow) -> list[dict[str, str]]:
    """The prompt as TRL and rewards are given it."""
    return [{"role": turn.role, "content": turn.content} for turn in row.prompt]


def reward_columns(
    rows: Sequence[PromptRow], answers: Sequence[str], answer_ids: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """The keyword arguments of a reward, for one answer a row."""
    return {key: [row.fields[key] for row in rows] for key in rows[0].fields} | {
        "prompts": [messages_of(row) for row in rows],
        "completions": [[{"role": "assistant", "content": answer}] for answer in answers],
        "completion_ids": [list(ids) for ids in answer_ids],
        "gold_response": [row.gold for row in rows],
    }
