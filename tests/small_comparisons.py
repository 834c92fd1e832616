"""A small comparison as an object: the tiny model, two evaluations, a few prompts of drift."""

import json
from pathlib import Path
from typing import Any

from tests.small_runs import ROWS, small_config
from tutelage import TrainingConfig
from tutelage.data.conversations import Message
from tutelage.evaluation import (
    ChoiceEvaluation,
    ChoiceQuestion,
    GenerateEvaluation,
    Question,
    Role,
    exact_match,
)
from tutelage.experiments import (
    Experiment,
    ExperimentResults,
)
from tutelage.experiments.results import ModelResult
from tutelage.experiments.specification import Texts
from tutelage.monitoring import everyday_prompts
from tutelage.training import Run

PROMPTS = 3
TOKENS = 8


def tiny_experiment(
    *, seeds: tuple[int, ...] = (7,), every: int | None = None, **configs: TrainingConfig
) -> Experiment:
    asked = [Question((Message("user", question),), answer, question) for question, answer in ROWS]
    choice = ChoiceQuestion((Message("user", "Count."),), ("one", "two", "four"), 1)
    return Experiment(
        name="tiny",
        texts=Texts("Tiny"),
        runs={
            name: {seed: (config.model_copy(update={"seed": seed}),) for seed in seeds}
            for name, config in configs.items()
        },
        evaluations=(
            GenerateEvaluation(
                name="trained",
                title="trained question",
                role=Role.TASK,
                identity={"version": 1},
                questions=tuple(asked),
                scorer=exact_match,
                max_new_tokens=TOKENS,
            ),
            ChoiceEvaluation(name="capitals", title="capitals", role=Role.PRIOR, questions=(choice, choice)),
        ),
        drift_prompts=tuple(everyday_prompts()[:PROMPTS]),
        drift_max_new_tokens=TOKENS,
        evaluate_every=every,
    )


def run_named(results: ExperimentResults, name: str) -> ModelResult:
    return next(run for run in results.runs if run.name == name)


def run_of(results: ExperimentResults, name: str) -> Run:
    return Run.open(run_named(results, name).seeds[0].run_path or "")


def monitored(folder: Path, name: str, **options: Any) -> TrainingConfig:
    """A run that measures the KL of the experiment itself."""
    prompts = folder / "prompts.jsonl"
    texts = [prompt.messages[0].content for prompt in everyday_prompts()[:PROMPTS]]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    defaults = {"monitoring_eval_steps": 1, "monitoring_prompts": prompts, "monitoring_max_new_tokens": TOKENS}
    return small_config(folder, name, **(defaults | options))


def failing(folder: Path, name: str) -> TrainingConfig:
    """A run that nobody can know will fail: its reward raises for answers that the model gives."""
    reward = folder / "reward.py"
    reward.write_text(
        "def score(*, completions, gold_response, **columns):\n"
        "    if [turns[-1]['content'] for turns in completions] != gold_response:\n"
        "        raise ValueError('no scores today')\n"
        "    return [1.0] * len(gold_response)\n",
        encoding="utf-8",
    )
    return small_config(folder, name, loss="grpo", grpo_reward_function=f"{reward}:score", grpo_num_generations=4)
