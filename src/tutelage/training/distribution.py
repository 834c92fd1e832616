"""How a run is spread over processes, as its launcher asks in the environment, and what then cannot be had.

Data parallelism (every process holds the model) takes every objective and needs nothing here. Not here: equal shares
of the rows (`shares.py`), weights that are shared out (`models/sharding.py`).
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import MixedPrecisionPolicy

from tutelage.config import TrainingConfig
from tutelage.errors import ConfigError
from tutelage.models.sharding import fsdp_is_asked

SHARDED_LOSSES = ("sft", "dft")
"""Objectives that only ask the whole model, forwards and backwards. The others sample from its layers, or keep copies
of its weights."""


def check_distribution(config: TrainingConfig) -> None:
    """Raises ConfigError where the launcher asks for what this run cannot have."""
    if _is_true("ACCELERATE_USE_DEEPSPEED") and _zero_stage() == "3":
        raise ConfigError(
            "zero_stage: 3 takes the head's weight away where the loss reads it; set zero_stage: 2, or launch with "
            "FSDP, which shares weights out too (examples/accelerate/fsdp.yaml)"
        )
    if config.rollout_backend == "vllm" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            f"rollout_backend: vllm samples in one process, not in {os.environ['WORLD_SIZE']}; set transformers"
        )
    if fsdp_is_asked():
        for refusal in _fsdp_refusals(config):
            raise ConfigError(refusal)


def _zero_stage() -> str:
    """Of accelerate's config or, where that names one, of DeepSpeed's own file. Raises ConfigError."""
    path = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    if path == "none":
        return os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
        return str(content.get("zero_optimization", {}).get("stage", 0))
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"deepspeed_config_file: {path} cannot be read ({error}); give zero_stage: 2 in accelerate's config, as in "
            "examples/accelerate/deepspeed_zero2.yaml"
        ) from error


def _fsdp_refusals(config: TrainingConfig) -> Iterator[str]:
    alone = "launch with DDP (examples/accelerate/ddp.yaml)"
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        yield f"fsdp_version: {version} is not supported; set fsdp_version: 2 in accelerate's config"
    if _is_true("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        yield (
            "fsdp_cpu_ram_efficient_loading: true leaves all processes but one without the weights that the head is "
            "looked for by; set it to false in accelerate's config"
        )
    if _is_true("FSDP_ACTIVATION_CHECKPOINTING"):
        yield (
            "fsdp_activation_checkpointing: true is not supported; set gradient_checkpointing: true in the run's "
            "config instead"
        )
    if config.loss not in SHARDED_LOSSES:
        yield f"loss: {config.loss} cannot be trained under FSDP, only {' and '.join(SHARDED_LOSSES)}; {alone}"
    for option, is_used in (
        ("load_in_4bit", config.load_in_4bit),
        ("push_to_hub", config.push_to_hub),
        ("monitoring_eval_steps", config.monitoring_eval_steps is not None),
        ("logp_callback_datasets", bool(config.logp_callback_datasets)),
        ("sampling_callbacks", bool(config.sampling_callbacks)),
    ):
        if is_used:
            yield f"{option} cannot be had under FSDP, where no process has the whole model; unset it, or {alone}"


def keep_losses_wide(accelerator: Accelerator) -> None:
    """Under FSDP: products in bfloat16 where the run has it, gradients added in float32, and what the model gives back
    as it is: accelerate's own policy rounds losses, and with them the scale of the gradient, to bfloat16.

    Raises ConfigError where the launcher asks for FSDP and accelerate has made plain data parallelism of it, as it
    does without a GPU.
    """
    if not fsdp_is_asked():
        return
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is None:
        raise ConfigError(
            f"FSDP is asked for, and accelerate has no GPU to shard on ({accelerator.distributed_type.value}); launch "
            "with examples/accelerate/ddp.yaml"
        )
    if accelerator.mixed_precision == "bf16":
        plugin.mixed_precision_policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1")
