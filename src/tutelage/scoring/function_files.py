"""Which files a user's function depends on: its own, and those beside it that it imports. Nothing is imported here."""

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

INSTALLED = {"site-packages", "dist-packages"}
"""Folders whose files belong to releases: what they import beside them is no part of a user's work."""


def function_files(reference: str, folder: Path | None = None) -> list[Path]:
    """The Python file that `load_function` takes the function from, then the files beside it that it imports, and that
    these import in turn. Empty for a name that is built in, and for a function that is in no file."""
    place, colon, _ = reference.rpartition(":")
    file = None
    if colon:
        file = path_from(folder, place) if is_path(place) else _module_file(place, folder)
    if file is None or not file.is_file():
        return []
    found = [file]
    if INSTALLED.isdisjoint(file.parts):
        for path in found:  # grows meanwhile
            found += [beside for beside in dict.fromkeys(_imported(path)) if beside not in found]
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
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(found.origin) if found is not None and found.origin else None


def _imported(path: Path) -> Iterator[Path]:
    """The files that the import statements of a file name, where they lie beside it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return  # `load_function` says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(path.parent, alias.name)
        elif isinstance(node, ast.ImportFrom):
            start = [path.parent, *path.parents][node.level] if 0 <= node.level < len(path.parents) else path.parent
            yield from _files(start, node.module or "")
            for alias in node.names:
                yield from _files(start, f"{node.module}.{alias.name}" if node.module else alias.name)


def _files(folder: Path, module: str) -> Iterator[Path]:
    """`a.b` is `a/b.py` or `a/b/__init__.py`."""
    if module:
        place = folder.joinpath(*module.split("."))
        for candidate in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if candidate.is_file():
                yield candidate
