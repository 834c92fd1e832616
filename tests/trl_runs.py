"""Small runs of grpo, dpo and orpo, and what a reward was given."""

import json
from pathlib import Path
from typing import Any

from tests.small_runs import ROWS, run_small
from tutelage import Run
from tutelage.training.reward_check import CHECKED_ROWS

PAIRS = [(question, answer, f"{answer[::-1]} no") for question, answer in ROWS]


def write_pairs(path: Path) -> Path:
    rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def preference_run(folder: Path, name: str, loss: str, **options: Any) -> Run:
    data = write_pairs(folder / "pairs.jsonl")
    return run_small(folder, name, **({"loss": loss, "training_file": data, "learning_rate": 0.05} | options))


REWARD = """
import json
from pathlib import Path

def share_of_vowels(*, prompts, completions, completion_ids, gold_response, **columns):
    texts = [turns[-1]["content"] for turns in completions]
    scores = [sum(text.count(vowel) for vowel in "aeiou") / max(1, len(text)) for text in texts]
    with Path(__file__).with_suffix(".jsonl").open("a") as file:
        for row in zip(prompts, completion_ids, gold_response, scores):
            file.write(json.dumps(row) + "\\n")
    return scores
"""
"""Also writes down what it was given."""


def grpo_run(folder: Path, name: str, **options: Any) -> Run:
    reward = folder / f"{name}.py"
    reward.write_text(REWARD, encoding="utf-8")
    defaults: dict[str, Any] = {
        "loss": "grpo",
        "grpo_reward_function": f"{reward}:share_of_vowels",
        "grpo_num_generations": 4,
        "grpo_max_completion_length": 12,
    }
    return run_small(folder, name, **(defaults | options))


def rewarded(folder: Path, name: str) -> list[Any]:
    """(prompt, answer's ids, gold answer, score) of every sampled answer, without those of the check before step 1."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[CHECKED_ROWS:]]


def any_run(folder: Path, name: str, loss: str, **options: Any) -> Run:
    if loss == "grpo":
        return grpo_run(folder, name, **options)
    return preference_run(folder, name, loss, **options)
