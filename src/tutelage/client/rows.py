"""Whether the rows of a file are what its purpose says, before it is uploaded. The server checks again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.config import Purpose
from tutelage.errors import DataError


def check_rows(path: Path, purpose: str) -> None:
    """Raises DataError that lists the bad rows; files of other purposes may hold anything."""
    from tutelage.data.jsonl import read_rows
    from tutelage.data.preferences import read_preferences

    if purpose == Purpose.PREFERENCE.value:
        read_preferences(path)
    elif purpose == Purpose.CONVERSATIONS.value:
        read_rows(path, _turns)


def _turns(row: Mapping[str, Any], place: str) -> None:
    """The last turn may be anybody's: what is asked of a model is a conversation too."""
    from tutelage.data.messages import BadRow, turns_of

    try:
        for key in ("messages", "conversations"):
            if row.get(key) is not None:
                turns_of(row, key)
                return
        if not isinstance(row.get("prompt"), str | list) and not isinstance(row.get("instruction"), str):
            raise BadRow("the row has none of the known formats; give 'messages', or 'prompt'")
    except BadRow as problem:
        raise DataError(f"{place}: {problem}") from None
