"""A `TrainingConfig` from a YAML file and `--set key=value` overrides. Not here: what the keys mean."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from tutelage.config.training import Direction, SamplingCallback, TrainingConfig
from tutelage.config.yaml_files import parse_yaml, read_yaml
from tutelage.errors import ConfigError

INPUT_PATHS = ("training_file", "test_file", "monitoring_prompts")
REWARD = "grpo_reward_function"


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The config in `path`, with `key=value` overrides on top (values are read as YAML).

    Input files named in the file are relative to the file's folder; those in overrides, and `output_dir`, are
    relative to the current folder. Raises ConfigError.
    """
    return config_beside(read_options(path), path.parent, str(path), parse_overrides(overrides))


def config_beside(
    options: Mapping[str, Any], folder: Path, place: str, overriding: Mapping[str, Any] | None = None
) -> TrainingConfig:
    """A config whose input files are relative to `folder`; those in `overriding`, which wins, to the current one.

    place: what errors begin with. Raises ConfigError.
    """
    options, overriding = dict(options), dict(overriding or {})
    for key in INPUT_PATHS:
        if isinstance(options.get(key), str):
            options[key] = str(_beside(folder, options[key]))
    model, template, reward = options.get("model"), options.get("chat_template"), options.get(REWARD)
    if isinstance(model, str) and _exists(folder / model):
        options["model"] = str(folder / model)
    if isinstance(template, str) and template.endswith(".jinja"):
        options["chat_template"] = str(_beside(folder, template))
    if isinstance(reward, str) and reward.rpartition(":")[0].endswith(".py"):
        options[REWARD] = str(_beside(folder, reward))
    options |= overriding
    try:
        config = TrainingConfig(**options)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    nested = {name: value for name, value in _anchored(config, folder).items() if name not in overriding}
    return TrainingConfig(**(options | nested))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["max_steps=5", "loss=dft"]` to `{"max_steps": 5, "loss": "dft"}`. Raises ConfigError."""
    options: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: write key=value, for example --set max_steps=50")
        try:
            options[key.strip()] = parse_yaml(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML; put it in quotes") from error
    return options


def read_options(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError."""
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, not options; write lines such as 'loss: sdft'")
    return {str(key): value for key, value in cast("dict[Any, Any]", content).items()}


def _exists(path: Path) -> bool:
    """False also for a name too long to be a path, such as a template pasted in the wrong place."""
    try:
        return path.exists()
    except OSError:
        return False


def _beside(folder: Path, path: str | Path) -> Path:
    return folder / Path(path).expanduser()


def _anchored(config: TrainingConfig, folder: Path) -> dict[str, Any]:
    """The options that hold paths inside, with those paths beside `folder`."""
    return {
        "logp_callback_datasets": {name: _beside(folder, path) for name, path in config.logp_callback_datasets.items()},
        "sampling_callbacks": [_beside_callback(folder, callback) for callback in config.sampling_callbacks],
        "monitoring_directions": {
            name: _beside_direction(folder, direction) for name, direction in config.monitoring_directions.items()
        },
    }


def _beside_callback(folder: Path, callback: SamplingCallback) -> SamplingCallback:
    return callback.model_copy(update={"file": _beside(folder, callback.file)})


def _beside_direction(folder: Path, direction: Direction) -> Direction:
    return direction.model_copy(update={"a": _beside(folder, direction.a), "b": _beside(folder, direction.b)})
