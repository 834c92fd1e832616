"""Result files of an evaluation: every prompt, answer and score, one JSON object a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tutelage.errors import OutputError
from tutelage.events import JsonLinesFile


class ResultItem(Protocol):
    """An item that knows its row."""

    def row(self) -> dict[str, Any]: ...


def write_items(path: Path, items: Sequence[ResultItem]) -> None:
    """Write the items' rows to `path`, in place of what was there; the file appears when it is complete.

    Raises OutputError where the disk refuses.
    """
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        file = JsonLinesFile(unfinished)
        for item in items:
            file.append(item.row())
        unfinished.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot write results ({error.strerror}); free space or choose another folder"
        ) from error
