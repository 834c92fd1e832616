"""From a config, inputs and a model to a trainer. The table of trainers is here."""

from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError
from tutelage.events import EventLog
from tutelage.files import JsonLinesFile
from tutelage.models import LoadedModel
from tutelage.monitoring import PROJECT
from tutelage.training.base_trainer import BaseTrainer
from tutelage.training.inputs import TrainingInputs
from tutelage.training.sdft_trainer import SdftTrainer
from tutelage.training.token_trainer import TokenTrainer

TRAINERS: dict[str, type[BaseTrainer]] = {"sft": TokenTrainer, "dft": TokenTrainer, "sdft": SdftTrainer}
"""Every value of `loss` with what trains it."""


def build_trainer(
    config: TrainingConfig, inputs: TrainingInputs, loaded: LoadedModel, run: Path, events: EventLog
) -> BaseTrainer:
    """A trainer that writes to the folder `run`. Raises ConfigError for an optimizer or schedule that isn't known."""
    own: dict[str, Any] = {}
    if TRAINERS[config.loss] is SdftTrainer:
        own = {"samples": JsonLinesFile(run / "samples.jsonl"), "stop_ids": inputs.template.end_of_turn_ids}
    return TRAINERS[config.loss](
        config=config,
        events=events,
        model=loaded.model,
        args=training_arguments(config, run, has_test_file=inputs.eval_rows is not None),
        train_dataset=inputs.train_items,
        eval_dataset=inputs.eval_rows,
        data_collator=inputs.collate,
        eval_collate=inputs.collate_eval,
        processing_class=inputs.tokenizer,
        **own,
    )


def training_arguments(config: TrainingConfig, run: Path, has_test_file: bool) -> TrainingArguments:
    """`transformers`' own arguments. Nothing is decided here that the config leaves open."""
    gpu = torch.cuda.is_available()
    try:
        return TrainingArguments(
            output_dir=str(run),
            per_device_train_batch_size=config.per_device_train_batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            per_device_eval_batch_size=config.eval_batch_size,
            learning_rate=config.resolved_learning_rate,
            num_train_epochs=config.epochs,
            max_steps=config.max_steps or -1,
            warmup_steps=config.warmup_steps,
            lr_scheduler_type=config.lr_scheduler_type,
            optim=config.optim,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            seed=config.seed,
            logging_steps=config.logging_steps,
            logging_nan_inf_filter=False,
            save_strategy="steps",
            save_steps=config.save_steps,
            save_total_limit=None,  # `KeepNewest` deletes old checkpoints, after the new one is complete
            eval_strategy=config.test_file_eval_strategy if has_test_file else "no",
            eval_steps=config.test_file_eval_steps,
            run_name=run.name,
            project=PROJECT,
            report_to="none",  # `monitoring.Sinks` drives them, so that one that fails cannot stop the run
            remove_unused_columns=False,
            label_names=[],
            bf16=gpu and torch.cuda.is_bf16_supported(),
            use_cpu=not gpu,
            dataloader_pin_memory=gpu,
            ddp_find_unused_parameters=False,
            disable_tqdm=True,
        )
    except ValueError as error:
        raise ConfigError(f"transformers refuses the training arguments: {error}") from error
