"""Which files a function of a user depends on: its own, and those beside it that it imports. None is called here."""

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}
"""Folders whose files belong to releases: what they import beside them is no part of a user's work."""


def function_files(reference: str, folder: Path | None = None) -> list[Path]:
    """The Python file that `load_function` takes the function from, then the files that it imports, and that these
    import in turn, where they lie beside it, below the packages it is in, or, of a module, in `folder` (unset, the
    current one). Empty for a name that is built in, and for a function that is in no file."""
    place, colon, _ = reference.rpartition(":")
    file = None
    if colon:
        file = path_from(folder, place) if is_path(place) else _module_file(place, folder)
    if file is None or not file.is_file():
        return []
    found, starts = [file], list[Path]()
    if not is_path(place):
        packages = list(file.parents)[: place.count(".") + (file.name == "__init__.py")]
        starts = [packages[-1].parent if packages else file.parent, folder or Path()]
        found += [first for package in packages if (first := package / "__init__.py").is_file() and first != file]
    if INSTALLED.isdisjoint(file.resolve().parts):
        for path in found:  # grows meanwhile
            for beside in _imported(path, starts):
                if not any(beside.samefile(known) for known in found):
                    found.append(beside)
    return found


def is_path(place: str) -> bool:
    """Whether what stands before the colon is a file rather than a module."""
    return place.endswith(".py") or "/" in place


def path_from(folder: Path | None, place: str) -> Path:
    """Paths count from `folder`, unset the current one."""
    return (folder or Path()) / Path(place).expanduser()


def _module_file(module: str, folder: Path | None) -> Path | None:
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded:
        return Path(loaded)
    parts = Path(*module.split("."))
    for start in (folder or Path(), Path()):
        for candidate in (start / parts.with_suffix(".py"), start / parts / "__init__.py"):
            if candidate.is_file():
                return candidate
    try:
        found = importlib.util.find_spec(module)  # imports the packages above it
    except Exception:  # `load_function` says what is wrong with them
        return None
    return Path(found.origin) if found is not None and found.origin else None


def _imported(path: Path, starts: Sequence[Path]) -> Iterator[Path]:
    """The files that the import statements of a file name, where they lie beside it or in one of `starts`."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # `load_function` says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _first((path.parent, *starts), [alias.name])
        elif isinstance(node, ast.ImportFrom):
            above = [path.parent, *path.parents]  # one dot is the package that the file is in
            names = [f"{node.module}.{alias.name}" if node.module else alias.name for alias in node.names]
            if 0 < node.level < len(above):
                yield from (first for first in [above[node.level] / "__init__.py"] if first.is_file())
                yield from _first([above[node.level]], names)
            else:
                yield from _first((path.parent, *starts), names)


def _first(starts: Sequence[Path], modules: Sequence[str]) -> list[Path]:
    """The files of modules in the first place that has any, as Python looks for them."""
    for start in starts:
        if found := [file for module in modules for file in _files(start, module)]:
            return found
    return []


def _files(start: Path, module: str) -> Iterator[Path]:
    """What Python runs for `import a.b`: `a/__init__.py`, then `a/b.py` or `a/b/__init__.py`, where they are files."""
    place = start
    for name in module.split("."):
        place = place / name
        for candidate in (place.with_name(f"{name}.py"), place / "__init__.py"):
            if candidate.is_file():
                yield candidate
