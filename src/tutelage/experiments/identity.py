"""What a run is, as a hash: options, and the contents of the files they name. Equal hashes, equal runs."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import tutelage
from tutelage.config import TrainingConfig
from tutelage.data.jsonl import data_hash
from tutelage.models import model_identity
from tutelage.scoring import function_files

NOT_WHAT_IS_TRAINED = (
    *("output_dir", "report_to", "meta", "job_id_suffix", "finetuned_model_id", "model_naming_extra_parameters"),
    *("push_to_hub", "push_to_private", "save_steps", "save_total_limit"),
)
"""Options that change neither the weights nor what is measured on the way."""


def run_identity(config: TrainingConfig) -> str:
    """Sixteen hexadecimal digits of a SHA-256 over options, model, data and release.

    Raises DataError for a file that is missing, ModelError for a model that is.
    """
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
        "model": _model(config.model),
        "chat_template": _template(config.chat_template),
    }
    files = function_files(reward) if isinstance(reward, str) else []
    if files:
        options["grpo_reward_function"] = [str(reward).rpartition(":")[2], *map(data_hash, files)]
    return digest({"options": options, "release": tutelage.__version__})


def chain_identities(chain: Sequence[TrainingConfig]) -> list[str]:
    """Of the model that each stage leaves: what the stages before it were is part of that."""
    identities = [run_identity(chain[0])]
    for config in chain[1:]:
        identities.append(digest([identities[-1], run_identity(config)]))
    return identities


def _template(template: str) -> str:
    """The text of a template in a file; a name or a text stands for itself."""
    path = Path(template) if template.endswith(".jinja") else None
    return data_hash(path) if path is not None and path.is_file() else template


@cache
def _model(name: str) -> str:
    """Hashed once: the weights of a large model take their time."""
    return model_identity(name)


def base_identity(config: TrainingConfig) -> str:
    """Of the model before training, with the template it is asked in."""
    parts = [_model(config.model), _template(config.chat_template), config.load_in_4bit]
    return digest([*parts, tutelage.__version__])


def digest(content: Any) -> str:
    """Sixteen hexadecimal digits for plain JSON, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
