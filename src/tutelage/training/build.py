"""From a config, inputs and a model to a trainer. The table of trainers is here."""

import importlib
from pathlib import Path

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError
from tutelage.events import EventLog
from tutelage.models import LoadedModel
from tutelage.training.distribution import keep_losses_wide
from tutelage.training.inputs import TrainingInputs
from tutelage.training.run_trainer import RunTrainer

TRAINERS = {
    "sft": "token_trainer.TokenTrainer",
    "dft": "token_trainer.TokenTrainer",
    "sdft": "sdft_trainer.SdftTrainer",
    "grpo": "trl_trainers.grpo.GrpoTrainer",
    "dpo": "trl_trainers.preferences.DpoTrainer",
    "orpo": "trl_trainers.preferences.OrpoTrainer",
}
"""Every value of `loss` with what trains it: module and class, imported when it is needed, since TRL takes seconds."""


def trainer_class(loss: str) -> type[RunTrainer]:
    """What trains this objective. Raises ConfigError where a package it needs is not installed."""
    module, _, name = TRAINERS[loss].rpartition(".")
    try:
        return getattr(importlib.import_module(f"tutelage.training.{module}"), name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"loss: {loss} needs the package {error.name}; pip install 'tutelage[trl]'") from error


def build_trainer(
    config: TrainingConfig, inputs: TrainingInputs, loaded: LoadedModel, run: Path, events: EventLog
) -> RunTrainer:
    """A trainer that writes to the folder `run`. Raises ConfigError for an optimizer or schedule that isn't known, and
    where FSDP is asked for and cannot be had."""
    trainer = trainer_class(config.loss).build(config, inputs, loaded, run, events)
    keep_losses_wide(trainer.accelerator)
    return trainer
