"""Rows of an inference job as token ids: the turns that are asked, and how the answer begins. Not here: answering."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.jsonl import MAX_REPORTED_ROWS, BadLine, read_json_lines, report_rows
from tutelage.data.messages import BadRow, Message, is_text_part, text_of, turns_of
from tutelage.errors import DataError

TURNS = ("messages", "conversations", "prompt")


@dataclass(frozen=True)
class AskedRow:
    """number: its place among the rows, from 0. ids: prompt, generation prompt and prefill. prefill: ids of the
    beginning of the answer, the last of `ids`."""

    number: int
    row: Mapping[str, Any]
    ids: list[int]
    prefill: list[int]
    place: str


@dataclass(frozen=True)
class CheckedRows:
    """count: rows of the file. longest: tokens of its longest prompt; place: where that is."""

    count: int
    longest: int
    place: str


@dataclass(frozen=True)
class PromptFile:
    """A file of rows with `messages` or `prompt`, read row by row: it may be larger than memory.

    An assistant turn at the end is what the answer begins with, instead of `prefill`.
    """

    path: Path
    template: ChatTemplate
    prefill: str = ""

    def rows(self) -> Iterator[AskedRow]:
        """All rows in order. Raises DataError at the first bad one."""
        for parsed in self._parsed():
            if isinstance(parsed, DataError):
                raise parsed
            yield parsed

    def check(self, notice: Callable[[int], None] = lambda count: None) -> CheckedRows:
        """Read every row once. Raises one DataError that lists the bad rows, or says that there is none.

        notice: called with the number of rows read, after each.
        """
        count, longest, place = 0, 0, str(self.path)
        problems: list[str] = []
        for parsed in self._parsed():
            count += 1
            notice(count)
            if isinstance(parsed, DataError):
                problems.append(str(parsed) if len(problems) <= MAX_REPORTED_ROWS else "")
            elif len(parsed.ids) > longest:
                longest, place = len(parsed.ids), parsed.place
        if problems:
            raise DataError(report_rows(f"{self.path}: {len(problems)} of {count} rows cannot be used", problems))
        if count == 0:
            raise DataError(f"{self.path}: the file has no rows; write one JSON object a line")
        return CheckedRows(count, longest, place)

    def _parsed(self) -> Iterator[AskedRow | DataError]:
        for number, line in enumerate(read_json_lines(self.path)):
            place = f"{self.path.name}:{line.number}"
            if isinstance(line, BadLine):
                yield DataError(f"{place}: {line.reason}")
                continue
            try:
                yield self._asked(number, line.row, place)
            except BadRow as error:
                yield DataError(f"{place}: {error}")
            except DataError as error:
                yield error

    def _asked(self, number: int, row: Mapping[str, Any], place: str) -> AskedRow:
        turns, prefill = prompt_and_prefill(row, self.prefill)
        beginning = text_ids(self.template, prefill)
        return AskedRow(number, row, [*self.template.encode_prompt(turns, place), *beginning], beginning, place)


def prompt_and_prefill(row: Mapping[str, Any], prefill: str) -> tuple[Sequence[Message], str]:
    """The turns that are asked, and the text that the answer begins with. Raises BadRow."""
    key = next((key for key in TURNS if row.get(key) is not None), None)
    if key is None:
        raise BadRow("the row has neither 'messages' nor 'prompt'; give a text or a list of messages")
    value = row[key]
    chat = isinstance(value, list) and not all(is_text_part(part) for part in value)
    turns = turns_of(row, key) if chat or key != "prompt" else [Message("user", text_of(value, f"'{key}'"))]
    if turns[-1].role == "assistant":
        prefill = turns.pop().content
    if not turns or turns[-1].role == "assistant":
        raise BadRow("no turn is left to answer; let a user turn stand before the assistant's")
    return turns, prefill


def text_ids(template: ChatTemplate, text: str) -> list[int]:
    """Ids of a text that continues a rendered prompt."""
    return template.text_ids(text, continues=True) if text else []
