"""What is compared: named runs with their seeds, the evaluations they all meet, the prompts of their drift.

Not here: reading it from YAML (`loading.py`), running it (`compare.py`), what came out (`results.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError
from tutelage.evaluation import Evaluation, Measure, Role, Unit
from tutelage.experiments.identity import chain_identities
from tutelage.monitoring.prompts import Prompt

BASE = "base"
"""The name of the model before training, in tables and figures."""

KL_VS_BASE = Measure(
    "kl_vs_base",
    "KL(tuned ‖ base)",
    Role.DRIFT,
    Unit.KL,
    "How far the tuned model's next-token distribution is from the base model's, per token of the base model's own "
    "greedy answers to everyday prompts that have nothing to do with the task. 0 is no change.",
    higher_is_better=False,
)
KL_BASE_VS_MODEL = Measure(
    "kl_base_vs_model",
    "KL(base ‖ tuned)",
    Role.DRIFT,
    Unit.KL,
    "The other direction on the same tokens: large where the tuned model all but rules out what the base would say.",
    higher_is_better=False,
)


@dataclass(frozen=True)
class Texts:
    """What the report says besides the numbers."""

    title: str
    introduction: str = ""
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


class RunOn(str, Enum):
    """Where runs are trained; models are asked here in either case."""

    LOCAL = "local"
    SERVER = "server"


@dataclass(frozen=True)
class Scheduling:
    """Which workers of a server may train the runs. None: as for any job of fine-tuning."""

    requires_vram_gb: float | Literal["guess"] | None = None
    allowed_hardware: tuple[str, ...] | None = None
    cloud_type: str | None = None

    def given(self) -> dict[str, Any]:
        """What is set, as `client.fine_tuning.create` takes it."""
        hardware = {} if self.allowed_hardware is None else {"allowed_hardware": list(self.allowed_hardware)}
        others = {"requires_vram_gb": self.requires_vram_gb, "cloud_type": self.cloud_type}
        return hardware | {name: value for name, value in others.items() if value is not None}


Chain = tuple[TrainingConfig, ...]
"""The config of a run, or several: each stage begins with the model the one before it left."""


@dataclass(frozen=True)
class Experiment:
    """Everything that defines a comparison.

    runs: run name to its chain of configs by seed; all share model and chat template, and `output_dir`, and `model`
    from the second stage on, are set by the comparison. stages: their names, empty where there is one without a name.
    evaluate_every: optimizer steps between two evaluations of a run's checkpoints, None for the end only.
    data: the files of training, test, drift and evaluations, with their hashes. Raises ConfigError where the runs
    can't be compared.
    """

    name: str
    texts: Texts
    runs: Mapping[str, Mapping[int, Chain]]
    evaluations: tuple[Evaluation, ...]
    drift_prompts: tuple[Prompt, ...]
    stages: tuple[str, ...] = ()
    drift_max_new_tokens: int = 48
    evaluate_every: int | None = None
    run_on: RunOn = RunOn.LOCAL
    scheduling: Scheduling = Scheduling()
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.runs:
            raise ConfigError("runs: none is given; name at least one")
        if BASE in self.runs:
            raise ConfigError(f"runs: '{BASE}' is the name of the model before training; call the run otherwise")
        configs = [config for seeds in self.runs.values() for chain in seeds.values() for config in chain]
        if len({config.load_in_4bit for config in configs}) > 1:
            raise ConfigError(
                "runs: load_in_4bit is true for some and false for others; compare runs of one base model"
            )
        if any(config.load_in_4bit and config.merge_before_push for config in configs):
            raise ConfigError(
                "runs: load_in_4bit: what is merged into four bits can't be measured against the base model; "
                "set merge_before_push: false"
            )
        bases = {(config.model, config.chat_template) for config in configs}
        if len(bases) > 1:
            names = ", ".join(sorted({model for model, _ in bases}))
            raise ConfigError(f"runs: they start from different models or templates ({names}); compare runs of one")
        taken = {measure.name for measure in (KL_VS_BASE, KL_BASE_VS_MODEL)}
        for evaluation in self.evaluations:
            if evaluation.name in taken:
                raise ConfigError(
                    f"evaluate: '{evaluation.name}' is the name of the drift; give the evaluation another"
                )
        first_with: dict[str, str] = {}
        for name, seeds in self.runs.items():
            identity = chain_identities(next(iter(seeds.values())))[-1]
            if identity in first_with:
                raise ConfigError(
                    f"runs: '{first_with[identity]}' and '{name}' differ in nothing; change an option of one, or "
                    "give more seeds to one"
                )
            first_with[identity] = name

    @property
    def first_config(self) -> TrainingConfig:
        """A config with the model and the template that all share."""
        return next(iter(next(iter(self.runs.values())).values()))[0]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Of all runs, in order."""
        return tuple(dict.fromkeys(seed for seeds in self.runs.values() for seed in seeds))
