"""What is compared: named configs, the evaluations they all meet, the prompts their drift is measured on.

Not here: running it (`compare.py`), what came out (`results.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError
from tutelage.evaluation import ChoiceQuestion, Question, Scorer
from tutelage.monitoring.prompts import Prompt

BASE = "base"
"""The name of the model before training, in tables and figures."""


class Role(str, Enum):
    """What a measure tells about a run."""

    TASK = "task"  # what the run is to learn
    CHECK = "check"  # what it can not have learned from its data
    PRIOR = "prior"  # what the base model could do
    DRIFT = "drift"  # how far its answers have moved from the base model's


class Unit(str, Enum):
    """How a value reads."""

    SHARE = "share of items"
    LOG_PROB = "nats per answer"
    KL = "nats per token"


@dataclass(frozen=True)
class Measure:
    """One column of the tables. meaning: a sentence for the reader of the report."""

    name: str
    title: str
    role: Role
    unit: Unit
    meaning: str

    @property
    def higher_is_better(self) -> bool | None:
        """None for a check, which is neither better nor worse."""
        return None if self.role is Role.CHECK else self.role is not Role.DRIFT


@dataclass(frozen=True)
class GenerateEvaluation:
    """Greedy answers, scored one by one."""

    measure: Measure
    questions: tuple[Question, ...]
    scorer: Scorer
    max_new_tokens: int = 24

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (self.measure,)


@dataclass(frozen=True)
class ChoiceEvaluation:
    """A choice among given answers by log-probability: accuracy, and the mean log-probability of the right one."""

    accuracy: Measure
    log_prob: Measure
    questions: tuple[ChoiceQuestion, ...]

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (self.accuracy, self.log_prob)


Evaluation = GenerateEvaluation | ChoiceEvaluation

KL_VS_BASE = Measure(
    "kl_vs_base",
    "KL(tuned ‖ base)",
    Role.DRIFT,
    Unit.KL,
    "How far the tuned model's next-token distribution is from the base model's, per token of the base model's own "
    "greedy answers to everyday prompts that have nothing to do with the task. 0 is no change.",
)
KL_BASE_VS_MODEL = Measure(
    "kl_base_vs_model",
    "KL(base ‖ tuned)",
    Role.DRIFT,
    Unit.KL,
    "The other direction on the same tokens: large where the tuned model all but rules out what the base would say.",
)


@dataclass(frozen=True)
class Experiment:
    """Everything that defines a comparison.

    configs: run name to config; they share model and chat template, and `output_dir` is set by the comparison.
    task, task_again: names of the measures on the trade-off's vertical axis; the second one is drawn hollow.
    data_files: files whose hashes belong into the results. introduction, notes, sources: texts of the report.
    Raises ConfigError where the configs can't be compared.
    """

    name: str
    title: str
    configs: Mapping[str, TrainingConfig]
    evaluations: tuple[Evaluation, ...]
    drift_prompts: tuple[Prompt, ...]
    task: str
    task_again: str | None = None
    drift_max_new_tokens: int = 48
    data_files: tuple[Path, ...] = ()
    introduction: str = ""
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.configs:
            raise ConfigError("runs: none is given; name at least one")
        if BASE in self.configs:
            raise ConfigError(f"runs: '{BASE}' is the name of the model before training; call the run otherwise")
        bases = {(config.model, config.chat_template) for config in self.configs.values()}
        if len(bases) > 1:
            names = ", ".join(sorted({model for model, _ in bases}))
            raise ConfigError(f"runs: they start from different models or templates ({names}); compare runs of one")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Columns in order."""
        scores = [measure for evaluation in self.evaluations for measure in evaluation.measures]
        return (*scores, KL_VS_BASE, KL_BASE_VS_MODEL)

    @property
    def first_config(self) -> TrainingConfig:
        return next(iter(self.configs.values()))
