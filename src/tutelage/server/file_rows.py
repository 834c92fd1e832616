"""Whether the rows of an upload are what its purpose says, with line numbers. Not here: keeping it (`jobs`)."""

from collections.abc import Mapping
from typing import Any

from tutelage.config import Purpose
from tutelage.data.conversations import parse_conversation
from tutelage.data.jsonl import WrongFileError, read_rows
from tutelage.data.messages import BadRow, turns_of
from tutelage.data.preferences import parse_preference
from tutelage.errors import DataError
from tutelage.jobs.stored_files import Upload

FINE_TUNE = "fine-tune"


def checked_purpose(upload: Upload, purpose: str, filename: str) -> str:
    """The purpose under which an upload is kept. `fine-tune` becomes conversations or preference by its first row.

    Raises DataError that lists the bad rows.
    """
    if purpose not in (FINE_TUNE, Purpose.CONVERSATIONS.value, Purpose.PREFERENCE.value):
        return purpose
    upload.finish()
    try:
        return _checked(upload, purpose)
    except DataError as error:
        # What the file is called here is of no use to who sent it.
        text = str(error).replace(str(upload.path), filename).replace(upload.path.name, filename)
        raise DataError(text) from None


def _checked(upload: Upload, purpose: str) -> str:
    # Rows are looked at and let go, so that a file of any length needs the memory of one.
    if purpose == Purpose.PREFERENCE.value:
        read_rows(upload.path, _preference)
        return purpose
    if purpose == Purpose.CONVERSATIONS.value:
        read_rows(upload.path, _turns)
        return purpose
    try:
        read_rows(upload.path, _conversation)
    except WrongFileError:
        read_rows(upload.path, _preference)
        return Purpose.PREFERENCE.value
    return Purpose.CONVERSATIONS.value


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
