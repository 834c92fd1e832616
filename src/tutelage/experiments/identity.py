"""What a run is, as a hash: options, and the contents of the files they name. Equal hashes, equal runs."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tutelage
from tutelage.config import TrainingConfig
from tutelage.data.jsonl import data_hash

NOT_WHAT_IS_TRAINED = (
    *("output_dir", "report_to", "meta", "job_id_suffix", "finetuned_model_id", "model_naming_extra_parameters"),
    *("push_to_hub", "push_to_private", "save_steps", "save_total_limit"),
)
"""Options that change neither the weights nor what is measured on the way."""

SMALL_FILE = 1 << 20


def run_identity(config: TrainingConfig) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over options, data and release. Raises DataError for a missing file."""
    options = {name: value for name, value in config.flat().items() if name not in NOT_WHAT_IS_TRAINED}
    reward = options.get("grpo_reward_function")
    options |= {
        "training_file": data_hash(config.training_file),
        "test_file": data_hash(config.test_file) if config.test_file else None,
        "monitoring_prompts": data_hash(config.monitoring_prompts) if config.monitoring_prompts else None,
        "logp_callback_datasets": {name: data_hash(path) for name, path in config.logp_callback_datasets.items()},
        "monitoring_directions": {
            name: direction.model_dump(mode="json") | {"a": data_hash(direction.a), "b": data_hash(direction.b)}
            for name, direction in config.monitoring_directions.items()
        },
        "sampling_callbacks": [
            callback.model_dump(mode="json") | {"file": data_hash(callback.file)}
            for callback in config.sampling_callbacks
        ],
        "model": model_identity(config.model),
    }
    if isinstance(reward, str) and (path := Path(reward.rpartition(":")[0])).suffix == ".py" and path.is_file():
        options["grpo_reward_function"] = [reward.rpartition(":")[2], data_hash(path)]
    return digest({"options": options, "release": tutelage.__version__})


def chain_identity(chain: Sequence[TrainingConfig]) -> str:
    """Of the model that the last stage leaves: what the stages before it were is part of that."""
    identity = run_identity(chain[0])
    for config in chain[1:]:
        identity = digest([identity, run_identity(config)])
    return identity


def model_identity(model: str) -> Any:
    """A Hub id is itself. Of a folder or file: names, sizes, and the contents of what is small."""
    path = Path(model)
    if not path.exists():
        return model
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        [file.name, file.stat().st_size, data_hash(file) if file.stat().st_size < SMALL_FILE else file.stat().st_mtime]
        for file in files
        if file.is_file()
    ]


def digest(content: Any) -> str:
    """Sixteen hexadecimal digits for plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
