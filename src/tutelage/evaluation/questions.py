"""Rows of evaluation files: questions with a target, and questions with choices. Not here: asking them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.conversations import Message
from tutelage.data.jsonl import read_rows
from tutelage.errors import DataError
from tutelage.monitoring.prompts import prompt_messages


@dataclass(frozen=True)
class Question:
    """A prompt and what a scorer compares the answer with. place: such as `test.jsonl:3`."""

    prompt: tuple[Message, ...]
    target: str
    place: str = "question"


@dataclass(frozen=True)
class ChoiceQuestion:
    """A prompt, two or more different answers to choose from, and the index of the right one."""

    prompt: tuple[Message, ...]
    choices: tuple[str, ...]
    right: int
    place: str = "question"


def read_questions(path: Path) -> list[Question]:
    """Rows with `messages` or `prompt`, and `target`; without it the assistant turn at the end is the target.

    Raises one DataError that lists the bad rows, or says that the file is missing, empty or unreadable.
    """
    return read_rows(path, _question, "questions")


def read_choice_questions(path: Path) -> list[ChoiceQuestion]:
    """Rows with `messages` or `prompt`, `choices` (a list of texts) and `answer` (the right text, or its index).

    Raises like `read_questions`.
    """
    return read_rows(path, _choice_question, "questions")


def question_text(prompt: tuple[Message, ...]) -> list[dict[str, str]]:
    """The prompt as plain JSON, for result files."""
    return [{"role": message.role, "content": message.content} for message in prompt]


def _question(row: Mapping[str, Any], place: str) -> Question:
    prompt = prompt_messages(row, place)
    target = row.get("target")
    if target is None:
        turns = row.get("messages")
        last = turns[-1] if isinstance(turns, list) else {}
        target = last["content"] if last.get("role") == "assistant" else None
    if target is None or target == "":
        raise DataError(f"{place}: no target; give a text 'target', or an assistant turn at the end of 'messages'")
    if not isinstance(target, str) or not target.strip():
        raise DataError(f"{place}: 'target' is {str(target)[:60]!r}, of type {type(target).__name__}; give a text")
    return Question(prompt, target, place)


def _choice_question(row: Mapping[str, Any], place: str) -> ChoiceQuestion:
    prompt = prompt_messages(row, place)
    choices = row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        what = "no 'choices'" if choices is None else f"'choices' is {str(choices)[:60]!r}"
        raise DataError(f"{place}: {what}; give a list of texts")
    if len(choices) < 2 or len(set(choices)) < len(choices):
        raise DataError(
            f"{place}: {len(set(choices))} different choices of {len(choices)}; give two or more, each once"
        )
    answer = row.get("answer")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        what = "no 'answer'" if answer is None else f"'answer' is {str(answer)[:60]!r}"
        raise DataError(f"{place}: {what}; give one of the choices, or its index from 0 to {len(choices) - 1}")
    return ChoiceQuestion(prompt, tuple(choices), answer, place)
