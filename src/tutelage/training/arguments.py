"""A config as `transformers`' own arguments. Not here: what TRL's trainers take besides (`trl_trainers`)."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import TrainingArguments

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError
from tutelage.monitoring import PROJECT

Arguments = TypeVar("Arguments", bound=TrainingArguments)


def training_arguments(config: TrainingConfig, run: Path, has_test_file: bool) -> TrainingArguments:
    """Nothing is decided here that the config leaves open. Raises ConfigError."""
    return build_arguments(TrainingArguments, config, run, has_test_file)


def build_arguments(
    kind: type[Arguments], config: TrainingConfig, run: Path, has_test_file: bool, **own: Any
) -> Arguments:
    """The same for a subclass of `TrainingArguments`, with options of its own. Raises ConfigError."""
    gpu = torch.cuda.is_available()
    try:
        return kind(
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
            **own,
        )
    except ValueError as error:
        raise ConfigError(f"transformers refuses the training arguments: {error}") from error
