"""Rows of a data file as checked conversations, whichever of the accepted formats they are in. Torch-free.

No tokens here (see chat_template.py), and no bytes (see jsonl.py). docs/data.md shows the formats.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.config.objectives import Purpose
from tutelage.data.jsonl import FilePart, WrongFileError, data_hash, iterate_rows, read_rows
from tutelage.data.messages import BadRow, Message, is_text_part, message_of, number_of, short, text_of, turns_of
from tutelage.errors import DataError

__all__ = ["Conversation", "ConversationFile", "Message", "data_hash", "read_conversations"]

READ_KEYS = {
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "input", "output"),
    "completion": ("prompt", "completion"),
}
"""By the key that tells a format, the keys of a row that are its turns."""


@dataclass(frozen=True)
class Conversation:
    """A checked row: it has a user turn, and its last turn is an assistant's and not empty.

    demonstration: a worked answer only the teacher sees, where the row has one. weight: factor of the row's
    tokens in the loss, finite and >= 0. place: file and line, such as `rows.jsonl:17`. fields: what else the row
    holds; reward functions get it.
    """

    messages: tuple[Message, ...]
    demonstration: str | None
    weight: float
    place: str
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns but the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The text of the last assistant turn: the gold answer."""
        return self.messages[-1].content


class _PreferenceRow(BadRow):
    """The row belongs into a preference file."""


def read_conversations(path: Path) -> list[Conversation]:
    """All rows of a `.jsonl` or `.jsonl.gz` file, in order.

    Raises one DataError that lists the bad rows (the first 20 with file, line and reason, then a count), or
    says that the file is missing, empty, unreadable, or made for another purpose.
    """
    return read_rows(path, parse_conversation)


@dataclass(frozen=True)
class ConversationFile:
    """The rows of a file, read and checked each time they are gone through: memory for one, not for all.

    Going through them raises like `read_conversations`, at the end. part: the lines that are read, if not all.
    """

    path: Path
    part: FilePart | None = None

    def __iter__(self) -> Iterator[Conversation]:
        return iterate_rows(self.path, parse_conversation, part=self.part)


def parse_conversation(row: Mapping[str, Any], place: str) -> Conversation:
    """One row. place: what messages call it. Raises DataError."""
    try:
        return _conversation(row, place)
    except _PreferenceRow as problem:
        raise WrongFileError(f"{place}: {problem}") from None
    except BadRow as problem:
        raise DataError(f"{place}: {problem}") from None


def _conversation(row: Mapping[str, Any], place: str) -> Conversation:
    messages = _messages_of(row)
    last = messages[-1]
    if last.role != "assistant":
        raise BadRow(f"the last message is from {last.role!r}; end the row with the assistant turn to learn from")
    if all(message.role != "user" for message in messages):
        raise BadRow("no message is from 'user'; add the turn that the assistant answers")
    for index, message in enumerate(messages):
        needed = message.train or index == len(messages) - 1
        if message.role == "assistant" and needed and not message.content.strip():
            raise BadRow(
                f"the assistant turn (message {index + 1} of {len(messages)}) is empty; "
                "write the answer or remove the row"
            )
    read = _read_keys(row)
    fields = {key: value for key, value in row.items() if key not in read}
    return Conversation(tuple(messages), _demonstration(row), _weight(row), place, fields)


def _read_keys(row: Mapping[str, Any]) -> tuple[str, ...]:
    format_ = next(key for key in READ_KEYS if row.get(key) is not None)
    return (*READ_KEYS[format_], "demonstration", "weight")


def _messages_of(row: Mapping[str, Any]) -> list[Message]:
    for key, read in _FORMATS:
        if row.get(key) is not None:
            return read(row)
    if "chosen" in row or "rejected" in row:
        raise _PreferenceRow(
            f"a row with 'chosen' and 'rejected' has the purpose '{Purpose.PREFERENCE.value}', but this loss "
            f"needs the purpose '{Purpose.CONVERSATIONS.value}'; set loss to dpo or orpo, "
            "or give rows with 'messages'"
        )
    keys = ", ".join(short.repr(key) for key in list(row)[:8]) or "none"
    raise BadRow(
        f"the row has none of the known formats (its keys: {keys}); give 'messages', 'conversations', "
        "'instruction' with 'output', or 'prompt' with 'completion'"
    )


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    if row.get("output") is None:
        raise BadRow("'instruction' comes without 'output'; add the answer as 'output'")
    question = text_of(row["instruction"], "'instruction'")
    extra = "" if row.get("input") is None else text_of(row["input"], "'input'")
    if extra.strip():
        question = f"{question}\n\n{extra}"
    return [Message("user", question), Message("assistant", text_of(row["output"], "'output'"))]


def _prompt_completion(row: Mapping[str, Any]) -> list[Message]:
    """The prompt is context by definition, so its assistant turns are not trained."""
    if row.get("prompt") is None:
        raise BadRow("'completion' comes without 'prompt'; add the question as 'prompt'")
    sides: list[list[Message]] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[key]
        chat = isinstance(value, list) and not all(is_text_part(part) for part in value)
        sides.append(turns_of(row, key) if chat else [message_of(role, value, f"'{key}'")])
    prompt, completion = sides
    return [replace(turn, train=False) if turn.role == "assistant" else turn for turn in prompt] + completion


_FORMATS: tuple[tuple[str, Callable[[Mapping[str, Any]], list[Message]]], ...] = (
    ("messages", lambda row: turns_of(row, "messages")),
    ("conversations", lambda row: turns_of(row, "conversations")),
    ("instruction", _alpaca),
    ("completion", _prompt_completion),
)


def _demonstration(row: Mapping[str, Any]) -> str | None:
    demonstration = row.get("demonstration")
    if demonstration is None:
        return None
    if not isinstance(demonstration, str):
        raise BadRow(f"'demonstration' is {short.repr(demonstration)}; give a string or leave it out")
    if not demonstration.strip():
        raise BadRow("'demonstration' is empty; leave it out to use the last answer, or write one")
    return text_of(demonstration, "'demonstration'")


def _weight(row: Mapping[str, Any]) -> float:
    weight = row.get("weight")
    return 1.0 if weight is None else number_of(weight, "'weight'", lowest=0.0)
