"""The folder of an experiment: refused before any work if it can't be used, and files that appear whole."""

import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tutelage.errors import OutputError
from tutelage.events import JsonLinesFile


def require_new_folder(path: Path) -> None:
    """Raises OutputError for a folder that holds something or cannot be written; leaves nothing behind."""
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "is not empty" if path.is_dir() else "is a file"
            raise OutputError(f"{path}: {what}; choose another --output, or remove it first")
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another --output") from error


def make_folder(path: Path) -> None:
    """Make the folder and those above it. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made ({error.strerror}); choose another --output") from error


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines. Raises OutputError."""
    make_folder(path.parent)
    file = JsonLinesFile(path)
    for row in rows:
        file.append(row)


def write_text(path: Path, text: str) -> None:
    """Text as UTF-8. Raises OutputError."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """The file appears when it is complete. Raises OutputError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise OutputError(f"{path}: cannot be written ({error.strerror}); free space there") from error
