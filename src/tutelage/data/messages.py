"""Turns of a chat, as they stand in a row of any format. Torch-free. Not here: which key holds them."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.errors import nearest

ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}

short = reprlib.Repr()
short.maxstring = short.maxother = 60


@dataclass(frozen=True)
class Message:
    """One turn. `train` matters for assistant turns only: False leaves the turn out of the loss."""

    role: str
    content: str
    train: bool = True


class BadRow(Exception):
    """Why a row cannot be used, with the remedy; the place is added by the reader."""


def turns_of(row: Mapping[str, Any], key: str) -> list[Message]:
    """The messages of a list in the row. Raises BadRow."""
    turns = row[key]
    if not isinstance(turns, list):
        raise BadRow(f"'{key}' is {short.repr(turns)}; give a list of messages")
    if not turns:
        raise BadRow(f"'{key}' is an empty list; give at least a user and an assistant turn")
    return [_message(turn, f"{key}[{index}]") for index, turn in enumerate(turns)]


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, dict):
        raise BadRow(f"{name} is {short.repr(turn)}; give an object with 'role' and 'content'")
    sharegpt = "from" in turn and "role" not in turn
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    for key in (role_key, content_key):
        if key not in turn:
            raise BadRow(f"{name} has no '{key}'; give '{role_key}' and '{content_key}'")
    if turn.get("tool_calls"):
        raise BadRow(f"{name} has 'tool_calls', which are not read; write the call as text into 'content'")
    role = turn[role_key]
    if not isinstance(role, str):
        raise BadRow(f"{name} has the {role_key} {short.repr(role)}; use one of {', '.join(ROLES)}")
    known = _SHAREGPT_ROLES.get(role, role) if sharegpt else role
    if known not in ROLES:
        accepted = (*ROLES, *_SHAREGPT_ROLES) if sharegpt else ROLES
        hint = nearest(role[:60], accepted) or f"; use one of {', '.join(accepted)}"
        raise BadRow(f"{name} has the unknown {role_key} {short.repr(role)}{hint}")
    train = turn.get("train")
    if not isinstance(train, bool) and train is not None:
        raise BadRow(f"{name} has train {short.repr(train)}; use true or false")
    return Message(known, text_of(turn[content_key], f"{name}.{content_key}"), train is not False)


def text_of(content: Any, name: str) -> str:
    """Content that is a string or a list of text parts, as a string. Raises BadRow."""
    if isinstance(content, list) and all(is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRow(f'{name} is {short.repr(content)}; give a string or a list of {{"type": "text", "text": …}} parts')
    try:
        content.encode("utf-8")
    except UnicodeEncodeError as error:
        half = content[error.start]
        raise BadRow(
            f"{name} holds half a surrogate pair ({half!a} at character {error.start + 1}); write the whole character"
        ) from None
    return content


def is_text_part(part: Any) -> bool:
    """Whether this is one of the parts that content may be a list of."""
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
