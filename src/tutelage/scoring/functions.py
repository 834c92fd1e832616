"""Functions a user wrote, named in a config: `path/to/file.py:function` or `package.module:function`.

Importing runs the user's code; what it raises becomes a sentence.
"""

import importlib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, SupportsFloat

from tutelage.errors import ConfigError, nearest
from tutelage.scoring.function_files import is_path, path_from
from tutelage.scoring.scorers import Scorer, exact_match, json_equal, regex, rouge_l, shortened
from tutelage.scoring.tool_calls import tool_call_match

BUILT_IN_SCORERS: dict[str, Scorer] = {
    "exact_match": exact_match,
    "json_equal": json_equal,
    "rouge_l": rouge_l,
    "tool_call_match": tool_call_match,
}
"""By name; `regex`, which is made from a pattern, comes beside them."""

_numbers = itertools.count(1)


def load_scorer(name: str, option: str = "scorer", pattern: str | None = None, folder: Path | None = None) -> Scorer:
    """The built-in scorer of that name, or a user's own function of (answer, target), named as for `load_function`.

    pattern: for `regex` alone, which needs it. option, folder: see `load_function`. What an own function returns is
    checked at each call: ConfigError where it raises, or returns something other than a number from 0 to 1. Raises
    ConfigError for an unknown name.
    """
    if (name == "regex") != (pattern is not None):
        raise ConfigError(
            f"{option}: {name} takes no pattern; leave it out, or choose regex"
            if pattern is not None
            else f"{option}: regex needs a pattern; give one, such as '[0-9]+'"
        )
    if pattern is not None:
        return regex(pattern)
    if name in BUILT_IN_SCORERS:
        return BUILT_IN_SCORERS[name]
    if ":" in name:
        return _checked(load_function(name, option, folder), name, option)
    known = (*BUILT_IN_SCORERS, "regex")
    raise ConfigError(
        f"{option}: '{name}' is no scorer{nearest(name, known)}; choose one of {', '.join(known)}, "
        "or name a function as 'file.py:function' or 'module:function'"
    )


def load_function(reference: str, option: str, folder: Path | None = None) -> Callable[..., Any]:
    """The function that `path/to/file.py:function` or `package.module:function` names.

    Paths count from `folder`, unset the current one, and modules can be imported from both. A file is imported anew at
    each call, under a name of its own, with its folder importable meanwhile. option: what the user set, for messages.
    Raises ConfigError where there is no such function, with what the import itself raised.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ConfigError(
            f"{option}: '{reference}' names no function; write 'path/to/file.py:function' or 'package.module:function'"
        )
    if is_path(place):
        module = _import_file(path_from(folder, place), option, folder)
    else:
        with _importable(Path.cwd()), _importable(folder or Path.cwd()):
            module = _imported(lambda: importlib.import_module(place), f"{option}: the module '{place}'")
    if not hasattr(module, name):
        names = [known for known, value in vars(module).items() if callable(value)]
        raise ConfigError(f"{option}: {place} has no '{name}'{nearest(name, names)}; name a function that it defines")
    function = getattr(module, name)
    if not callable(function):
        raise ConfigError(
            f"{option}: '{name}' in {place} is no function but of type {type(function).__name__}; name a function"
        )
    return function


def _import_file(path: Path, option: str, folder: Path | None) -> ModuleType:
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        where = f"the current folder, {Path.cwd()}" if folder is None else str(folder)
        raise ConfigError(f"{option}: {path} {what}; paths count from {where}")
    spec = importlib.util.spec_from_file_location(f"_tutelage_{path.stem}_{next(_numbers)}", path.resolve())
    if spec is None or spec.loader is None:
        raise ConfigError(f"{option}: {path} is no Python file; name one that ends in .py")
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def execute() -> ModuleType:
        # Dataclasses and pickle look a class's module up by name.
        sys.modules[spec.name] = module
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[spec.name]
            raise
        return module

    with _importable(path.resolve().parent):
        return _imported(execute, f"{option}: {path}")


def _imported(importing: Callable[[], ModuleType], what: str) -> ModuleType:
    try:
        return importing()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{what} cannot be imported ({_sentence(error)}); mend it, or name another") from error


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in the folder can be imported inside the block."""
    importlib.invalidate_caches()
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have taken it out itself
            sys.path.remove(entry)


def _checked(function: Callable[..., Any], name: str, option: str) -> Scorer:
    def score(answer: str, target: str) -> float:
        asked = f"{option}: {name} for the answer {shortened(answer)}"
        try:
            value = function(answer, target)
        except Exception as error:
            raise ConfigError(f"{asked} raised {_sentence(error)}; return a number from 0 to 1") from error
        number = _number(value)
        if number is None or not 0 <= number <= 1:
            raise ConfigError(f"{asked} returned {shortened(value)}; return a number from 0 to 1")
        return number

    return score


def _number(value: Any) -> float | None:
    if not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except Exception:  # an array of several numbers has __float__ and refuses
        return None


def _sentence(error: BaseException) -> str:
    """The exception in one line: its type, and its own text if it has one."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
