"""Answers of a model, from a file of rows to what a page shows. Not here: which files there are (`records.py`)."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from tutelage.errors import TutelageError
from tutelage.server.services import Services

READ_BYTES = 1_000_000
SHOWN = 12
MAX_TEXT = 4000
PROMPTS = ("messages", "prompt", "question")
ANSWERS = ("completion", "answer", "response", "judged")


@dataclass(frozen=True)
class Turn:
    """What somebody said."""

    role: str
    text: str


@dataclass(frozen=True)
class Sample:
    """A prompt and what a model made of it. rest: further fields of the row. step: None where the row names none."""

    prompt: list[Turn]
    answers: list[str]
    step: str | None
    rest: dict[str, Any]


def read_samples(parts: Services, organization: str, file_id: str) -> list[Sample]:
    """The last rows of the beginning of a file; none where it is gone or holds something else."""
    content = bytearray()
    try:
        with parts.files.open(organization, file_id) as (_, pieces):
            for piece in pieces:
                content += piece
                if len(content) >= READ_BYTES:
                    break
    except TutelageError:
        return []
    lines = bytes(content[:READ_BYTES]).decode("utf-8", errors="replace").split("\n")
    if len(content) >= READ_BYTES:
        lines = lines[:-1]
    found = [sample for line in lines[-4 * SHOWN :] if (sample := _sample_of(line)) is not None]
    return found[-SHOWN:]


def _sample_of(line: str) -> Sample | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    row = cast("dict[str, Any]", row)
    prompt = next((_turns(row[name]) for name in PROMPTS if row.get(name)), [])
    given = next((row[name] for name in ANSWERS if row.get(name) is not None), None)
    if given is None:
        return None
    answers = [_text(one) for one in cast("list[Any]", given)] if isinstance(given, list) else [_text(given)]
    rest = {name: value for name, value in row.items() if name not in (*PROMPTS, *ANSWERS, "step")}
    step = row.get("step")
    return Sample(prompt, answers, str(step) if isinstance(step, int) else None, rest)


def _turns(value: Any) -> list[Turn]:
    if isinstance(value, list):
        turns: list[Turn] = []
        for item in cast("list[Any]", value):
            turn = cast("Mapping[str, Any]", item) if isinstance(item, Mapping) else {"content": item}
            turns.append(Turn(_text(turn.get("role", "")), _text(turn.get("content", ""))))
        return turns
    return [Turn("user", _text(value))]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}…"
