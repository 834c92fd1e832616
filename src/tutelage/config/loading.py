"""A `TrainingConfig` from a YAML file and `--set key=value` overrides. Not here: what the keys mean."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from tutelage.config.training import Direction, SamplingCallback, TrainingConfig
from tutelage.errors import ConfigError

INPUT_PATHS = ("training_file", "test_file", "monitoring_prompts")


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The config in `path`, with `key=value` overrides on top (values are read as YAML).

    Input files named in the file are relative to the file's folder; those in overrides, and `output_dir`, are
    relative to the current folder. Raises ConfigError.
    """
    options = _read_yaml(path)
    config_folder = path.parent
    for key in INPUT_PATHS:
        if isinstance(options.get(key), str):
            options[key] = str(_beside(config_folder, options[key]))
    model = options.get("model")
    if isinstance(model, str) and (config_folder / model).exists():
        options["model"] = str(config_folder / model)
    options |= parse_overrides(overrides)
    try:
        config = TrainingConfig(**options)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return _anchor_nested_paths(config, options, config_folder)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """`["max_steps=5", "loss=dft"]` to `{"max_steps": 5, "loss": "dft"}`. Raises ConfigError."""
    options: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {override}: write key=value, for example --set max_steps=50")
        try:
            value: Any = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML; put it in quotes") from error
        if isinstance(value, str):
            value = _number_or_text(value)
        options[key.strip()] = value
    return options


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file; check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the config ({error.strerror}); check the path and its rights"
        ) from error
    try:
        content: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{path}{line}: {problem}; mend the YAML there") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds {type(content).__name__}, not options; write lines such as 'loss: sdft'")
    options = cast("dict[Any, Any]", content)
    return {str(key): _number_or_text(value) if isinstance(value, str) else value for key, value in options.items()}


def _number_or_text(text: str) -> float | str:
    """YAML 1.1 reads `1e-4` as text; everyone who writes it means a number."""
    try:
        return float(text) if "e" in text.lower() and text[0] in "+-.0123456789" else text
    except (ValueError, IndexError):
        return text


def _beside(folder: Path, path: str | Path) -> Path:
    return folder / Path(path).expanduser()


def _anchor_nested_paths(config: TrainingConfig, options: dict[str, Any], folder: Path) -> TrainingConfig:
    """Resolve the paths inside `logp_callback_datasets`, `sampling_callbacks` and `monitoring_directions`."""
    nested: dict[str, Any] = {
        "logp_callback_datasets": {name: _beside(folder, path) for name, path in config.logp_callback_datasets.items()},
        "sampling_callbacks": [_beside_callback(folder, callback) for callback in config.sampling_callbacks],
        "monitoring_directions": {
            name: _beside_direction(folder, direction) for name, direction in config.monitoring_directions.items()
        },
    }
    changed = {key: value for key, value in nested.items() if value}
    return TrainingConfig(**(options | changed)) if changed else config


def _beside_callback(folder: Path, callback: SamplingCallback) -> SamplingCallback:
    return callback.model_copy(update={"file": _beside(folder, callback.file)})


def _beside_direction(folder: Path, direction: Direction) -> Direction:
    return direction.model_copy(update={"a": _beside(folder, direction.a), "b": _beside(folder, direction.b)})
