"""Local task files of lm-evaluation-harness: checked, and their data files found beside them. Nothing is run here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tutelage.errors import ConfigError, DataError


class _Loader(yaml.SafeLoader):
    """Task files name functions by a tag; only the text is of interest here."""


def _name(loader: Any, node: Any) -> Any:
    return loader.construct_scalar(node)


_Loader.add_constructor("!function", _name)


def is_path(task: str) -> bool:
    """A task that is a file rather than a name: names have neither such an ending nor a folder."""
    return task.endswith((".yaml", ".yml"))


def anchored_task(path: Path, scratch: Path) -> str:
    """What the harness is to load for a task file: a file that includes it and has its data files' absolute paths.

    For a group it is its name: the harness reads groups from its index only.

    Raises ConfigError for a file that is missing, no YAML or no task, DataError for data files that are missing.
    """
    try:
        content = _read(path)
        merged = _merged(path, content) if isinstance(content, dict) else {}
    except OSError as error:
        raise ConfigError(
            f"lm_eval: task '{path}' cannot be read ({error.filename}: {error.strerror}); check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f"line {where.line + 1}: " if where else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"lm_eval: task '{path}' is no valid YAML ({line}{problem}); mend the file") from error
    if not {"task", "group"} & merged.keys():
        raise ConfigError(f"lm_eval: task '{path}' has neither 'task' nor 'group'; give it a name with 'task: …'")
    return str(merged["group"]) if "group" in merged else str(_write(path, merged, scratch))


def anchored_folder(folder: Path, scratch: Path) -> Path:
    """The same for all files of a folder that have data files; others, and broken ones, are left to the harness."""
    scratch.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(sorted(folder.rglob("*.yaml"))):
        try:
            content = _read(path)
            if isinstance(content, dict) and "task" in content and _data_files(merged := _merged(path, content)):
                _write(path, merged, scratch / str(number), required=False)
        except (OSError, yaml.YAMLError, UnicodeDecodeError):
            continue
    return scratch


def local_files(path: Path) -> list[Path]:
    """What a task file depends on: the files beside it, and its data files wherever they are."""
    beside = sorted(entry for entry in path.parent.iterdir() if entry.is_file())
    try:
        content = _read(path)
        data = _data_files(_merged(path, content)) if isinstance(content, dict) else None
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        data = None
    found = _flat(_absolute(data, path, required=False)) if data is not None else []
    return list(dict.fromkeys([*beside, *(Path(name) for name in found if Path(name).is_file())]))


def _flat(files: Any) -> list[str]:
    parts = files.values() if isinstance(files, dict) else files if isinstance(files, list) else None
    return [str(files)] if parts is None else [name for part in parts for name in _flat(part)]


def _read(path: Path) -> Any:
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, Loader=_Loader)  # a SafeLoader with one more tag


def _merged(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The file with what it includes; its own keys win."""
    includes = content.get("include", [])
    merged: dict[str, Any] = {}
    for include in includes if isinstance(includes, list) else [includes]:
        included = path.parent / str(include)
        found = _read(included)
        if isinstance(found, dict):
            merged |= _merged(included, found)
    return merged | dict(content)


def _data_files(content: Mapping[str, Any]) -> Any:
    options = content.get("dataset_kwargs")
    return options.get("data_files") if isinstance(options, dict) else None


def _write(path: Path, content: Mapping[str, Any], scratch: Path, required: bool = True) -> Path:
    """Only what differs is written: the rest is the file's own, read by the harness with its functions."""
    own: dict[str, Any] = {"include": str(path.resolve())}
    files = _data_files(content)
    if files is not None:
        # Rows of local files are cheap to read; a cache of them would lie in the user's home folder.
        own["dataset_kwargs"] = content["dataset_kwargs"] | {
            "data_files": _absolute(files, path, required),
            "cache_dir": str((scratch / "cache").resolve()),
        }
    target = scratch / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump(own, allow_unicode=True), encoding="utf-8")
    return target


def _absolute(files: Any, path: Path, required: bool) -> Any:
    if isinstance(files, dict):
        return {split: _absolute(part, path, required) for split, part in files.items()}
    if isinstance(files, list):
        return [_absolute(part, path, required) for part in files]
    name = str(files)
    if "://" in name or any(sign in name for sign in "*?["):
        return name if "://" in name else str(path.parent.resolve() / name)
    found = path.parent.resolve() / name
    if required and not found.exists():
        raise DataError(f"lm_eval: task '{path}': there is no data file {found}; mend 'data_files' in it")
    return str(found)
