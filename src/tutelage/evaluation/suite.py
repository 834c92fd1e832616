"""Reads a suite: the evaluations every model is asked, from a YAML file or from a section of one.

All files are read and checked here, before a model is loaded. Not here: the options of each kind (`specs.py`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from tutelage.config.faults import checked
from tutelage.config.yaml_files import read_yaml
from tutelage.errors import ConfigError, nearest
from tutelage.evaluation.measures import Evaluation, Role
from tutelage.evaluation.specs import KINDS, Entry, Spec

GROUPS = tuple(role.value for role in (Role.TASK, Role.CHECK, Role.PRIOR, Role.FREEFORM))
"""Drift is measured without being asked for."""


def load_suite(path: Path) -> list[Evaluation]:
    """The evaluations of a YAML file: groups as for `read_suite`, or a list, which is all `task`.

    Raises ConfigError for the suite, DataError for the rows of its files.
    """
    content = read_yaml(path, "suite")
    if isinstance(content, list):
        options = cast("list[Any]", content)
        entries = [(Entry(Role.TASK, path.parent, f"{path}: [{number}]"), one) for number, one in enumerate(options)]
        return _evaluations(entries, str(path))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path}: holds {type(content).__name__}, not evaluations; write groups such as 'task:' with a list each"
        )
    return read_suite(cast("dict[str, Any]", content), path.parent, str(path))


def read_suite(section: Mapping[str, Any], folder: Path, place: str) -> list[Evaluation]:
    """The evaluations of `{task: [...], check: [...], prior: [...], freeform: [...]}`, in order.

    A group is a list of evaluations or a single one. Paths count from `folder`. place: how messages call the section.
    Raises ConfigError for the suite, DataError for the rows of its files.
    """
    entries: list[tuple[Entry, Any]] = []
    for group, options in section.items():
        if group not in GROUPS:
            raise ConfigError(
                f"{place}: '{group}' is no group of evaluations{nearest(str(group), GROUPS)}; "
                f"choose one of {', '.join(GROUPS)}"
            )
        if isinstance(options, list):
            numbered = enumerate(cast("list[Any]", options))
            entries += [(Entry(Role(group), folder, f"{place}: {group}[{number}]"), one) for number, one in numbered]
        elif options is not None:
            entries.append((Entry(Role(group), folder, f"{place}: {group}"), options))
    return _evaluations(entries, place)


def _evaluations(entries: Sequence[tuple[Entry, Any]], place: str) -> list[Evaluation]:
    if not entries:
        raise ConfigError(f"{place}: holds no evaluation; add one, such as task: [{{kind: logprob, file: test.jsonl}}]")
    specs = [(entry, _spec(entry, options)) for entry, options in entries]
    _require_unique_names(specs)
    return [spec.build(entry) for entry, spec in specs]


def _spec(entry: Entry, options: Any) -> Spec:
    if not isinstance(options, dict):
        raise ConfigError(f"{entry.place}: {options!r:.60} is no evaluation; write options such as 'kind: generate'")
    options = cast("dict[str, Any]", options)
    kind = options.get("kind", "freeform" if entry.role is Role.FREEFORM else None)
    if kind is None:
        raise ConfigError(f"{entry.place}: 'kind' is missing; add one of {', '.join(KINDS)}")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ConfigError(
            f"{entry.place}: kind '{kind}' is not known{nearest(str(kind), KINDS)}; choose one of {', '.join(KINDS)}"
        )
    return checked(KINDS[kind], options, entry.place)


def _require_unique_names(specs: Sequence[tuple[Entry, Spec]]) -> None:
    """Also where a file system or a table would take two names for one."""
    for number, (entry, spec) in enumerate(specs):
        name = spec.resolved_name()
        for other_entry, other in specs[:number]:
            if name.casefold() == other.resolved_name().casefold():
                raise ConfigError(
                    f"{entry.place}: the name '{name}' is that of {other_entry.place} too; "
                    "give one of them another 'name'"
                )
        for other_entry, other in specs:
            after = other.measures_after
            if after is not None and name.startswith(other.resolved_name() + after):
                raise ConfigError(
                    f"{entry.place}: the name '{name}' is for a measure of '{other.resolved_name()}' "
                    f"({other_entry.place}); give one of them another 'name'"
                )
