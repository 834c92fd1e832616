"""Whether the rows of a file are what its purpose says: before it is uploaded, and when it was. Torch-free."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tutelage.config import Purpose
from tutelage.data.conversations import parse_conversation
from tutelage.data.jsonl import WrongFileError, iterate_rows
from tutelage.data.messages import BadRow, turns_of
from tutelage.data.preferences import parse_preference
from tutelage.errors import DataError

FINE_TUNE = "fine-tune"
"""OpenAI's purpose of both; the rows say which."""


def checked_purpose(path: Path, purpose: str, max_bytes: int | None = None) -> str:
    """The purpose under which a file is kept: of `fine-tune`, conversations or preference by its first row.

    Files of other purposes may hold anything. max_bytes: see `iterate_rows`. Raises DataError that lists the bad rows.
    """
    # Rows are looked at and let go, so that a file of any length needs the memory of one.
    if purpose == Purpose.PREFERENCE.value:
        _all(path, _preference, max_bytes)
    elif purpose == Purpose.CONVERSATIONS.value:
        _all(path, _turns, max_bytes)
    elif purpose == FINE_TUNE:
        try:
            _all(path, _conversation, max_bytes)
        except WrongFileError:
            _all(path, _preference, max_bytes)
            return Purpose.PREFERENCE.value
        return Purpose.CONVERSATIONS.value
    return purpose


def _all(path: Path, check: Any, max_bytes: int | None) -> None:
    for _ in iterate_rows(path, check, max_bytes=max_bytes):
        pass


def _conversation(row: Mapping[str, Any], place: str) -> None:
    parse_conversation(row, place)


def _preference(row: Mapping[str, Any], place: str) -> None:
    parse_preference(row, place)


def _turns(row: Mapping[str, Any], place: str) -> None:
    """Rows of conversations may be prompts too, for inference: their last turn may be anybody's."""
    try:
        for key in ("messages", "conversations"):
            if row.get(key) is not None:
                turns_of(row, key)
                return
        if "chosen" in row or "rejected" in row:
            raise BadRow("a row with 'chosen' and 'rejected' is for the purpose 'preference'; upload it as that")
        if isinstance(row.get("prompt"), str | list) or isinstance(row.get("instruction"), str):
            return
        raise BadRow("the row has none of the known formats; give 'messages', or 'prompt'")
    except BadRow as problem:
        raise DataError(f"{place}: {problem}") from None
