"""Folders that work goes into, files that are there whole or not at all, and files that only grow.

Lines of a growing file are appended and flushed one by one, so a killed run leaves a readable file; at worst its
last line is torn, and readers drop it.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from tutelage.errors import OutputError


def require_new_folder(path: Path, option: str, or_else: str) -> None:
    """Refuse, before any work, a folder that holds something or cannot be written; leaves nothing behind.

    option, or_else: what the user sets to choose another one, and the other way out. Raises OutputError.
    """
    try:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            what = "the folder is not empty" if path.is_dir() else "this is a file"
            raise OutputError(f"{path}: {what}; choose another {option}, or {or_else}")
        existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
        probe = existing / f".tutelage-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another {option}") from error


def make_folder(path: Path, option: str) -> None:
    """Make the folder and those above it. Raises OutputError, which names the `option` to change."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be made ({error.strerror}); choose another {option}") from error


@contextlib.contextmanager
def only_process_in(path: Path, option: str) -> Iterator[None]:
    """Make the folder and keep others out of it for as long as this lasts; the lock goes with the process.

    Raises OutputError, which names the `option` to change, where another process works there or it cannot be made.
    """
    from filelock import FileLock, Timeout

    make_folder(path, option)
    lock = FileLock(path / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"{path}: another process works in this folder; wait for it, or choose another {option}"
        ) from None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another {option}") from error
    try:
        yield
    finally:
        lock.release()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: whoever looks sees the old file, the new one, or none. Raises OutputError."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise OutputError(
            f"{path}: cannot be written ({error.strerror}); free space there or choose another folder"
        ) from error


def write_text(path: Path, text: str) -> None:
    """UTF-8, in one step; half a surrogate pair, which UTF-8 lacks, is escaped as in JSON. Raises OutputError."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Indented JSON, in one step. Raises OutputError."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False))


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """JSON objects, one a line, in one step. Raises OutputError."""
    write_text(path, "".join(_json_line(row) for row in rows))


class JsonLinesFile:
    """An append-only file of JSON objects, one a line, flushed after each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row. Raises OutputError where the disk refuses."""
        line = _json_line(row)
        try:
            torn = self.path.exists() and self.path.stat().st_size > 0 and not _ends_with_newline(self.path)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("\n" + line if torn else line)
        except OSError as error:
            raise OutputError(
                f"{self.path}: cannot append ({error.strerror}); free space or choose another output_dir, "
                "then continue the run with --resume"
            ) from error

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows written so far; a torn line (the process was killed while writing) is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    continue


def _json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False) + "\n"


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1) == b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in cast("list[Any]", value)]
    return value
