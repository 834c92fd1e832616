"""Turns of a chat, as they stand in a row of any format. Torch-free. Not here: which key holds them."""

import math
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
    """One turn. `train`: False leaves an assistant's turn out of the loss; others are trained only with all turns.

    part_weights: factors in the loss of the parts of `content`, each with the offset behind its last character; None
    where all are 1.
    """

    role: str
    content: str
    train: bool = True
    part_weights: tuple[tuple[int, float], ...] | None = None

    def weight_at(self, character: int) -> float:
        """The factor of what begins at an offset in `content`; what stands before or behind goes with its neighbour."""
        parts = self.part_weights or ((0, 1.0),)
        return next((weight for end, weight in parts if character < end), parts[-1][1])


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
    weight = None if turn.get("weight") is None else number_of(turn["weight"], f"{name}.weight")
    return message_of(known, turn[content_key], f"{name}.{content_key}", train=train is not False, weight=weight)


def message_of(role: str, content: Any, name: str, *, train: bool = True, weight: float | None = None) -> Message:
    """A turn whose content is a string or a list of text parts, each with a `weight` or the turn's. Raises BadRow."""
    text = _joined(content, name)
    if weight is None and isinstance(content, str):  # what nearly all turns are
        return Message(role, text, train)
    parts = content if isinstance(content, list) else [{"text": content}]
    weights: list[tuple[int, float]] = []
    end = 0
    for index, part in enumerate(parts):
        end += len(part["text"])
        own = part.get("weight")
        given = weight if own is None else number_of(own, f"{name}[{index}].weight")
        # Nobody but the assistant is trained: its words count 1, those of others 0, unless it is said.
        weights.append((end, (1.0 if role == "assistant" else 0.0) if given is None else given))
    factors = {factor for _, factor in weights}
    if role != "assistant":
        if factors - {0.0}:
            raise BadRow(f"{name} has a weight other than 0, but only assistant turns are trained; leave it out")
        asked = weight is not None or any(part.get("weight") is not None for part in parts)
        return Message(role, text, train and not asked)
    if factors == {0.0}:
        return Message(role, text, train=False)
    return Message(role, text, train, tuple(weights) if factors - {1.0} else None)


def text_of(content: Any, name: str) -> str:
    """Content that is a string or a list of text parts, as a string. Raises BadRow."""
    text = _joined(content, name)
    if isinstance(content, list) and any(part.get("weight") is not None for part in content):
        raise BadRow(f"{name} has parts with a 'weight', which means nothing there; remove it, or give 'messages'")
    return text


def number_of(value: Any, name: str, lowest: float = -math.inf) -> float:
    """A finite number, not below the lowest that is allowed. Raises BadRow."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number) and number >= lowest:
            return number
    allowed = "" if lowest == -math.inf else f" that is {lowest:g} or more"
    raise BadRow(f"{name} is {short.repr(value)}; give a finite number{allowed}")


def _joined(content: Any, name: str) -> str:
    if isinstance(content, list) and all(is_text_part(part) for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise BadRow(f'{name} is {short.repr(content)}; give a string or a list of {{"type": "text", "text": …}} parts')
    if content.isascii():
        return content
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
