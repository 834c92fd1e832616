"""A `TrainingConfig` from a YAML file and `--set key=value` overrides. Not here: what the keys mean."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from tutelage.config.training import Direction, SamplingCallback, TrainingConfig
from tutelage.errors import ConfigError

INPUT_PATHS = ("training_file", "test_file", "monitoring_prompts")
REWARD = "grpo_reward_function"


class _Yaml(yaml.SafeLoader):
    """YAML as people write it.

    YAML 1.1 reads `1e-4` as text and `no` as false; here they are a number and a word, as in YAML 1.2 (where an
    option is true or false, `no` still means false). A key written twice is an error.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                raise yaml.MarkedYAMLError(problem=f"'{key.value}' is written twice", problem_mark=key.start_mark)
            keys.add(str(key.value))
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))


_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"
_YAML_1_2: dict[str, str] = {
    _BOOL: r"(true|True|TRUE|false|False|FALSE)$",
    _FLOAT: r"([-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$",
}
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _YAML_1_2]
    + [(tag, re.compile(pattern)) for tag, pattern in _YAML_1_2.items()]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    """The config in `path`, with `key=value` overrides on top (values are read as YAML).

    Input files named in the file are relative to the file's folder; those in overrides, and `output_dir`, are
    relative to the current folder. Raises ConfigError.
    """
    return config_beside(read_yaml(path), path.parent, str(path), parse_overrides(overrides))


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
            options[key.strip()] = yaml.load(text, _Yaml)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {override}: the value is not valid YAML; put it in quotes") from error
    return options


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, read as a config is. Raises ConfigError."""
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
        content: Any = yaml.load(text, _Yaml)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "not valid YAML"
        raise ConfigError(f"{path}{line}: {problem}; mend the YAML there") from error
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
