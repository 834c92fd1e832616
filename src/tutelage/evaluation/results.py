"""Result files of an evaluation: every prompt, answer and score, one JSON object a line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from tutelage.files import make_folder, write_json_lines


class ResultItem(Protocol):
    """An item that knows its row."""

    def row(self) -> dict[str, Any]: ...


def write_items(path: Path, items: Sequence[ResultItem]) -> None:
    """Write the items' rows to `path`, in place of what was there; the file appears when it is complete.

    Raises OutputError where the disk refuses.
    """
    make_folder(path.parent, "folder")
    write_json_lines(path, (item.row() for item in items))
