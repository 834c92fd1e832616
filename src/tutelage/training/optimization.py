"""Whether the optimizer and the schedule of a config exist here and need nothing a config cannot give.

Not here: what they do (`transformers`), the rest of its arguments (`arguments.py`).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Trainer, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError, nearest
from tutelage.training.arguments import training_arguments


def check_optimization(config: TrainingConfig) -> None:
    """Asks for both as a run would after loading its model. Raises ConfigError; writes nothing."""
    _require_known("optim", config.optim, [name.value for name in OptimizerNames])
    _require_known("lr_scheduler_type", config.lr_scheduler_type, [name.value for name in SchedulerType])
    arguments = training_arguments(config, Path("unused"), has_test_file=config.test_file is not None)
    try:
        Trainer.get_optimizer_cls_and_kwargs(arguments, model=torch.nn.Module())  # pyright: ignore[reportArgumentType]
    except (ImportError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"optim: '{config.optim}' cannot be used here ({error}); or set optim: adamw_torch"
        ) from error
    try:
        get_scheduler(
            config.lr_scheduler_type,
            torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=config.resolved_learning_rate),
            num_warmup_steps=config.warmup_steps,
            num_training_steps=config.max_steps or config.warmup_steps + 1,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"lr_scheduler_type: '{config.lr_scheduler_type}' needs settings that a config has no option for "
            f"({error}); use linear, cosine or constant_with_warmup"
        ) from error


def _require_known(option: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        hint = nearest(name, known) or f"; one of {', '.join(known)}"
        raise ConfigError(f"{option}: '{name}' is not known to transformers{hint}")
