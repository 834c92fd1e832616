"""Rows of a data file as checked conversations, whichever of the accepted formats they are in. Torch-free.

No tokens here (see chat_template.py), and no bytes (see jsonl.py). docs/data.md shows the formats.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

from tutelage.data.jsonl import WrongFileError, data_hash, read_rows
from tutelage.errors import DataError, nearest

__all__ = ["Conversation", "Message", "Purpose", "data_hash", "read_conversations"]

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class Purpose(str, Enum):
    """What a data file is for; `loss` decides which one is needed."""

    CONVERSATIONS = "conversations"  # sft, dft, sdft, grpo
    PREFERENCE = "preference"  # dpo, orpo


@dataclass(frozen=True)
class Message:
    """One turn. `train` matters for assistant turns only: False leaves the turn out of the loss."""

    role: str
    content: str
    train: bool = True


@dataclass(frozen=True)
class Conversation:
    """A checked row: it has a user turn, and its last turn is an assistant's and not empty.

    demonstration: a worked answer only the teacher sees, where the row has one. weight: factor of the row's
    tokens in the loss, finite and >= 0. place: file and line, such as `rows.jsonl:17`.
    """

    messages: tuple[Message, ...]
    demonstration: str | None
    weight: float
    place: str

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns but the answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The text of the last assistant turn: the gold answer."""
        return self.messages[-1].content


class _BadRow(Exception):
    """Why a row cannot be used, with the remedy; the place is added by the reader."""


class _PreferenceRow(_BadRow):
    """The row belongs into a preference file."""


def read_conversations(path: Path) -> list[Conversation]:
    """All rows of a `.jsonl` or `.jsonl.gz` file, in order.

    Raises one DataError that lists the bad rows (the first 20 with file, line and reason, then a count), or
    says that the file is missing, empty, unreadable, or made for another purpose.
    """
    return read_rows(path, _parse)


def _parse(row: Mapping[str, Any], place: str) -> Conversation:
    try:
        return _conversation(row, place)
    except _PreferenceRow as problem:
        raise WrongFileError(f"{place}: {problem}") from None
    except _BadRow as problem:
        raise DataError(f"{place}: {problem}") from None


def _conversation(row: Mapping[str, Any], place: str) -> Conversation:
    messages = _messages_of(row)
    last = messages[-1]
    if last.role != "assistant":
        raise _BadRow(f"the last message is from {last.role!r}; end the row with the assistant turn to learn from")
    if all(message.role != "user" for message in messages):
        raise _BadRow("no message is from 'user'; add the turn that the assistant answers")
    for index, message in enumerate(messages):
        needed = message.train or index == len(messages) - 1
        if message.role == "assistant" and needed and not message.content.strip():
            raise _BadRow(
                f"the assistant turn (message {index + 1} of {len(messages)}) is empty; "
                "write the answer or remove the row"
            )
    return Conversation(tuple(messages), _demonstration(row), _weight(row), place)


def _messages_of(row: Mapping[str, Any]) -> list[Message]:
    formats: tuple[tuple[str, Callable[[Mapping[str, Any]], list[Message]]], ...] = (
        ("messages", lambda row: _turns(row, "messages")),
        ("conversations", lambda row: _turns(row, "conversations")),
        ("instruction", _alpaca),
        ("completion", _prompt_completion),
    )
    for key, read in formats:
        if row.get(key) is not None:
            return read(row)
    if "chosen" in row or "rejected" in row:
        raise _PreferenceRow(
            f"a row with 'chosen' and 'rejected' has the purpose '{Purpose.PREFERENCE.value}', but this loss "
            f"needs the purpose '{Purpose.CONVERSATIONS.value}'; set loss to dpo or orpo, "
            "or give rows with 'messages'"
        )
    keys = ", ".join(_short.repr(key) for key in list(row)[:8]) or "none"
    raise _BadRow(
        f"the row has none of the known formats (its keys: {keys}); give 'messages', 'conversations', "
        "'instruction' with 'output', or 'prompt' with 'completion'"
    )


def _turns(row: Mapping[str, Any], key: str) -> list[Message]:
    turns = row[key]
    if not isinstance(turns, list):
        raise _BadRow(f"'{key}' is {_short.repr(turns)}; give a list of messages")
    if not turns:
        raise _BadRow(f"'{key}' is an empty list; give at least a user and an assistant turn")
    return [_message(turn, f"{key}[{index}]") for index, turn in enumerate(turns)]


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise _BadRow(f"{name} is {_short.repr(turn)}; give an object with 'role' and 'content'")
    sharegpt = "from" in turn and "role" not in turn
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    for key in (role_key, content_key):
        if key not in turn:
            raise _BadRow(f"{name} has no '{key}'; give '{role_key}' and '{content_key}'")
    if turn.get("tool_calls"):
        raise _BadRow(f"{name} has 'tool_calls', which are not read; write the call as text into 'content'")
    role = turn[role_key]
    if not isinstance(role, str):
        raise _BadRow(f"{name} has the {role_key} {_short.repr(role)}; use one of {', '.join(ROLES)}")
    known = _SHAREGPT_ROLES.get(role, role) if sharegpt else role
    if known not in ROLES:
        accepted = (*ROLES, *_SHAREGPT_ROLES) if sharegpt else ROLES
        hint = nearest(role[:60], accepted) or f"; use one of {', '.join(accepted)}"
        raise _BadRow(f"{name} has the unknown {role_key} {_short.repr(role)}{hint}")
    train = turn.get("train")
    if not isinstance(train, bool) and train is not None:
        raise _BadRow(f"{name} has train {_short.repr(train)}; use true or false")
    return Message(known, _text(turn[content_key], f"{name}.{content_key}"), train is not False)


def _alpaca(row: Mapping[str, Any]) -> list[Message]:
    if row.get("output") is None:
        raise _BadRow("'instruction' comes without 'output'; add the answer as 'output'")
    question = _text(row["instruction"], "'instruction'")
    extra = "" if row.get("input") is None else _text(row["input"], "'input'")
    if extra.strip():
        question = f"{question}\n\n{extra}"
    return [Message("user", question), Message("assistant", _text(row["output"], "'output'"))]


def _prompt_completion(row: Mapping[str, Any]) -> list[Message]:
    """The prompt is context by definition, so its assistant turns are not trained."""
    if row.get("prompt") is None:
        raise _BadRow("'completion' comes without 'prompt'; add the question as 'prompt'")
    sides: list[list[Message]] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = row[key]
        chat = isinstance(value, list) and not all(_is_text_part(part) for part in value)
        sides.append(_turns(row, key) if chat else [Message(role, _text(value, f"'{key}'"))])
    prompt, completion = sides
    return [replace(turn, train=False) if turn.role == "assistant" else turn for turn in prompt] + completion


def _text(content: Any, name: str) -> str:
    if isinstance(content, list) and all(_is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _BadRow(
            f'{name} is {_short.repr(content)}; give a string or a list of {{"type": "text", "text": …}} parts'
        )
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        half = content[error.start]
        raise _BadRow(
            f"{name} holds half a surrogate pair ({half!a} at character {error.start + 1}); write the whole character"
        ) from None
    return content


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _demonstration(row: Mapping[str, Any]) -> str | None:
    demonstration = row.get("demonstration")
    if demonstration is None:
        return None
    if not isinstance(demonstration, str):
        raise _BadRow(f"'demonstration' is {_short.repr(demonstration)}; give a string or leave it out")
    if not demonstration.strip():
        raise _BadRow("'demonstration' is empty; leave it out to use the last answer, or write one")
    return _text(demonstration, "'demonstration'")


def _weight(row: Mapping[str, Any]) -> float:
    weight = row.get("weight")
    if weight is None:
        return 1.0
    if isinstance(weight, (int, float)) and not isinstance(weight, bool):
        try:
            number = float(weight)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number >= 0:
            return number
    raise _BadRow(f"'weight' is {_short.repr(weight)}; give a finite number that is 0 or more")
