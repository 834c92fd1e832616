"""Rows of a preference file as checked pairs of answers to one prompt, for dpo and orpo. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tutelage.config.objectives import Purpose
from tutelage.data.jsonl import WrongFileError, read_rows
from tutelage.data.messages import BadRow, Message, is_text_part, short, text_of, turns_of
from tutelage.errors import DataError

CONVERSATION_KEYS = ("messages", "conversations", "instruction", "completion")


@dataclass(frozen=True)
class Preference:
    """A checked row: a prompt that ends in a turn to be answered, and two different answers, neither of them empty.

    place: file and line, such as `pairs.jsonl:17`.
    """

    weight: ClassVar[float] = 1.0
    """Rows of preferences all count the same."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    place: str


def read_preferences(path: Path) -> list[Preference]:
    """All rows of a `.jsonl` or `.jsonl.gz` file, in order.

    A row has `prompt`, `chosen` and `rejected`, each a text or a list of messages; without `prompt`, the turns that
    `chosen` and `rejected` begin with alike are the prompt. Raises like `read_conversations`.
    """
    return read_rows(path, parse_preference)


def parse_preference(row: Mapping[str, Any], place: str) -> Preference:
    """One row. place: what messages call it. Raises DataError."""
    if "chosen" not in row and any(key in row for key in CONVERSATION_KEYS):
        raise WrongFileError(
            f"{place}: a row with answers to learn from has the purpose '{Purpose.CONVERSATIONS.value}', but this loss "
            f"needs the purpose '{Purpose.PREFERENCE.value}'; set loss to sft, dft, sdft or grpo, or give rows with "
            "'prompt', 'chosen' and 'rejected'"
        )
    try:
        return _preference(row, place)
    except BadRow as problem:
        raise DataError(f"{place}: {problem}") from None


def _preference(row: Mapping[str, Any], place: str) -> Preference:
    for key in ("chosen", "rejected"):
        if row.get(key) is None:
            raise BadRow(f"the row has no '{key}'; give 'prompt', 'chosen' and 'rejected'")
    if row.get("weight") not in (None, 1):
        raise BadRow(f"'weight' is {short.repr(row['weight'])}, but rows of preferences all count the same; remove it")
    chosen, rejected = _messages(row, "chosen", "assistant"), _messages(row, "rejected", "assistant")
    if row.get("prompt") is not None:
        prompt = _messages(row, "prompt", "user")
    else:
        prompt = chosen[: _shared_turns(chosen, rejected)]
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not prompt or prompt[-1].role == "assistant":
        raise BadRow("the prompt has no turn to answer; end 'prompt' with a user turn")
    answers = [_answer(turns, key) for key, turns in (("chosen", chosen), ("rejected", rejected))]
    if answers[0] == answers[1]:
        raise BadRow("'chosen' and 'rejected' are the same, so nothing is preferred; change one or remove the row")
    return Preference(tuple(prompt), answers[0], answers[1], place)


def _messages(row: Mapping[str, Any], key: str, role: str) -> list[Message]:
    value = row[key]
    if isinstance(value, list) and not all(is_text_part(part) for part in value):
        return turns_of(row, key)
    return [Message(role, text_of(value, f"'{key}'"))]


def _shared_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """How many turns both begin with, short of the last."""
    longest = min(len(chosen), len(rejected)) - 1
    return next((index for index in range(longest) if chosen[index] != rejected[index]), longest)


def _answer(turns: list[Message], key: str) -> str:
    if len(turns) != 1 or turns[0].role != "assistant":
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise BadRow(f"'{key}' has the turns {roles}; give one assistant turn, and what comes before it in 'prompt'")
    if not turns[0].train or turns[0].part_weights:
        raise BadRow(f"'{key}' has a 'train' or 'weight', but dpo and orpo learn from both whole answers; remove it")
    if not turns[0].content.strip():
        raise BadRow(f"'{key}' is empty; write the answer or remove the row")
    return turns[0].content
