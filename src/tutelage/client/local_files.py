"""Files of this machine in the options of a job: which options name files, and what stands there in their place.

Not here: uploading (`files.py`). One walk serves both passes: names that only look right while options are checked,
then the ids of what was uploaded.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from tutelage.config import OBJECTIVES, Purpose
from tutelage.errors import ConfigError
from tutelage.jobs.identity import FILE_ID
from tutelage.scoring.function_files import function_files, is_path

CONVERSATIONS = Purpose.CONVERSATIONS.value
PURPOSES = {"multiple_choice": "multiple_choice"}
"""Of the files of kinds that read something other than conversations."""
REWARD = "grpo_reward_function"
REWARDS = "rewards"
TRAINING = ("fine_tuning", "weighted_sft")

Place = Callable[[Path, str], str]
"""Of a file and its purpose, the id that stands in its place."""


def unchecked_id(path: Path, purpose: str) -> str:
    """An id of the right form for options that are only checked."""
    return f"{purpose}:file-{'0' * 12}"


def with_file_ids(kind: str, files: tuple[str, ...], options: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The options with ids in the place of files of this machine; a `.jinja` template becomes its text.

    files: the options of this kind that name one. Raises ConfigError for a file that is not there.
    """
    found = dict(options)
    if isinstance(found.get("chat_template"), str | os.PathLike):
        found["chat_template"] = _template(os.fspath(found["chat_template"]))
    for name in files:
        _replace(found, name, name, PURPOSES.get(kind, CONVERSATIONS), place)
    if kind in TRAINING:
        _training_files(found, place)
    return found


def reward_mounts(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Path]]:
    """The options with a reward of this machine named as it will be in the job, and which files go where for it.

    The function's file and those beside it that it imports go to `rewards/`. Raises ConfigError where it is not there.
    """
    reference = options.get(REWARD)
    if not isinstance(reference, str) or not is_path(reference.rpartition(":")[0]):
        return dict(options), {}
    files = function_files(reference)
    if not files:
        file = reference.rpartition(":")[0]
        raise ConfigError(f"{REWARD}: '{file}' is not there; write path/to/file.py:function as seen from {Path.cwd()}")
    folder = files[0].parent.resolve()
    below = [path.resolve() for path in files if path.resolve().is_relative_to(folder)]
    mounts = {f"{REWARDS}/{path.relative_to(folder).as_posix()}": path for path in below}
    return {**options, REWARD: f"{REWARDS}/{files[0].name}:{reference.rpartition(':')[2]}"}, mounts


def _training_files(options: dict[str, Any], place: Place) -> None:
    objective = OBJECTIVES.get(str(options.get("loss") or "sft"))
    purpose = objective.purpose.value if objective is not None else CONVERSATIONS
    for name in ("training_file", "test_file"):
        _replace(options, name, name, purpose, place)
    _replace(options, "monitoring_prompts", "monitoring_prompts", CONVERSATIONS, place)
    datasets = options.get("logp_callback_datasets")
    if isinstance(datasets, Mapping):
        named = dict(cast("Mapping[str, Any]", datasets))
        for name in named:
            _replace(named, name, f"logp_callback_datasets.{name}", CONVERSATIONS, place)
        options["logp_callback_datasets"] = named
    callbacks = options.get("sampling_callbacks")
    if isinstance(callbacks, list | tuple):
        options["sampling_callbacks"] = [
            _within(one, ("file", "dataset"), f"sampling_callbacks[{at}]", place)
            for at, one in enumerate(cast("list[Any]", callbacks))
        ]
    directions = options.get("monitoring_directions")
    if isinstance(directions, Mapping):
        options["monitoring_directions"] = {
            name: _within(one, ("a", "b"), f"monitoring_directions.{name}", place)
            for name, one in cast("Mapping[str, Any]", directions).items()
        }


def _within(item: Any, names: tuple[str, ...], what: str, place: Place) -> Any:
    """The item, if it is a dict or a model of options, with its files replaced."""
    values = item.model_dump() if hasattr(item, "model_dump") else item
    if not isinstance(values, Mapping):
        return item
    values = dict(cast("Mapping[str, Any]", values))
    for name in names:
        _replace(values, name, f"{what}.{name}", CONVERSATIONS, place)
    return values


def _replace(values: dict[str, Any], name: str, what: str, purpose: str, place: Place) -> None:
    value = values.get(name)
    if not isinstance(value, str | os.PathLike):
        return
    text = str(os.fspath(value))
    if not FILE_ID.match(text):
        path = Path(text).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"{what}: '{text[:200]}' is neither a file here nor the id of an uploaded one; "
                f"give a path as seen from {Path.cwd()}, or the id that client.files.upload gave"
            )
        text = place(path, purpose)
    values[name] = text


def _template(value: Any) -> str:
    text = str(value)
    if not text.endswith(".jinja"):
        return text
    try:
        return Path(text).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"chat_template: '{text[:200]}' cannot be read ({error}); name a file that is there"
        ) from error
