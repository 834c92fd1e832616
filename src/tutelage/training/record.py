"""`run.json`: what is needed to say later what a run was. Not here: what it measured (`events.py`)."""

import hashlib
import json
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from tutelage.config import TrainingConfig
from tutelage.data.conversations import data_hash
from tutelage.errors import ResumeError

RECORDED_PACKAGES = ("tutelage", "torch", "transformers", "peft", "accelerate")


def run_name(config: TrainingConfig) -> str:
    """`sft-3f2a91c0`: the objective and a hash of all options."""
    canonical = json.dumps(config.flat(), sort_keys=True)
    return f"{config.loss}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def describe_run(config: TrainingConfig) -> dict[str, Any]:
    """Config with resolved defaults, versions, data hashes, git commit, seed and hardware."""
    files = [config.training_file, config.test_file, *config.logp_callback_datasets.values()]
    return {
        "config": config.flat(),
        "seed": config.seed,
        "data": {str(path): data_hash(path) for path in files if path is not None},
        "versions": {"python": platform.python_version()}
        | {package: metadata.version(package) for package in RECORDED_PACKAGES},
        "git_commit": _git_commit(),
        "hardware": _hardware(),
    }


def read_record(run: Path) -> dict[str, Any]:
    """What `describe_run` said when the run began. Raises ResumeError where the folder holds no run."""
    try:
        record: Any = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ResumeError(f"{run}: not a run (no readable run.json); pass the run's own folder") from error
    if not isinstance(record, dict) or not isinstance(record.get("config"), dict):
        raise ResumeError(f"{run}: not a run (its run.json holds no config); pass the run's own folder")
    return record


def _hardware() -> dict[str, Any]:
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _git_commit() -> str | None:
    """The commit of the folder the run was started in; None outside a repository."""
    try:
        result = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
