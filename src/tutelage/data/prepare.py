"""Turns checked conversations into the rows of a trainer, and finds every row that doesn't fit.

Nothing is ever cut. Batches are formed elsewhere (collators.py, packing.py).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar, overload

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, Message
from tutelage.data.jsonl import report_rows
from tutelage.data.placeholders import fill_placeholders
from tutelage.data.preferences import Preference
from tutelage.data.rows import DistillationRow, PreferenceRow, PromptRow, TokenRow
from tutelage.errors import ConfigError, DataError

MAX_DROPPED_SHARE = 0.05  # on_too_long unset: up to this share of the rows is dropped, above it is an error
PLACEHOLDERS = ("question", "demonstration")

OnTooLong = Literal["error", "drop"] | None
Row = TypeVar("Row", TokenRow, DistillationRow, PromptRow, PreferenceRow)
Source = TypeVar("Source", Conversation, Preference)


@dataclass(frozen=True)
class DroppedRow:
    """A row left out because it needs `num_tokens` tokens, more than max_seq_length."""

    place: str
    num_tokens: int


@dataclass(frozen=True)
class Prepared(Sequence[Row], Generic[Row]):
    """The rows to train on, as a sequence, and those that were dropped as too long."""

    rows: list[Row]
    dropped: list[DroppedRow]
    max_seq_length: int

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def warning(self) -> str | None:
        """What to tell the user about dropped rows (the first 20 with file and line); None if there are none."""
        if not self.dropped:
            return None
        total = len(self.rows) + len(self.dropped)
        return report_rows(
            _too_long_headline(self.dropped, total, self.max_seq_length, "left out"),
            [_too_long_line(row) for row in self.dropped],
            always_headline=True,
        )


def prepare_token_rows(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    *,
    max_seq_length: int,
    responses_only: bool = True,
    on_too_long: OnTooLong = None,
) -> Prepared[TokenRow]:
    """Rows for sft and dft; rows of weight 0 are left out.

    A row is too long if it has more than max_seq_length tokens.

    on_too_long: `drop`, `error`, or None: drop up to 5 % of the rows, more is an error.
    Raises DataError, always for all rows together: rows the template refuses, rows without a trained token,
    too many long rows, no row left.
    """

    def encode(index: int, conversation: Conversation) -> tuple[TokenRow, int]:
        row = replace(template.encode(conversation, responses_only), row=index)
        if row.num_trained == 0:
            raise DataError(
                f"{row.place}: no token of the row is trained; remove the row or set 'train' of an answer to true"
            )
        return row, len(row.input_ids)

    return _prepare(conversations, encode, max_seq_length, on_too_long)


def prepare_distillation_rows(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    *,
    demo_template: str,
    max_seq_length: int,
    max_new_tokens: int,
    on_too_long: OnTooLong = None,
) -> Prepared[DistillationRow]:
    """Rows for sdft; rows of weight 0 are left out.

    The teacher's prompt has `demo_template`, filled with question and demonstration, as its last user turn; the
    other turns stay. Without a `demonstration` the last answer is the demonstration. A row is too long if the
    longer of both prompts and max(max_new_tokens, gold answer) exceed max_seq_length together.
    Raises ConfigError if demo_template lacks a placeholder, DataError as `prepare_token_rows` does.
    """
    check_demo_template(demo_template)

    def encode(index: int, conversation: Conversation) -> tuple[DistillationRow, int]:
        prompt, place = conversation.prompt, conversation.place
        asked = max(i for i, message in enumerate(prompt) if message.role == "user")
        question = prompt[asked].content
        demonstration = conversation.answer if conversation.demonstration is None else conversation.demonstration
        filled = fill_demo_template(demo_template, question, demonstration)
        shown = (*prompt[:asked], Message("user", filled), *prompt[asked + 1 :])
        row = DistillationRow(
            prompt_ids=template.encode_prompt(prompt, place),
            teacher_prompt_ids=template.encode_prompt(shown, place),
            gold=conversation.answer,
            gold_ids=template.encode_response(conversation.messages, place),
            demonstration_text=demonstration,
            question=question,
            weight=conversation.weight,
            row=index,
            place=place,
        )
        prompt_length = max(len(row.prompt_ids), len(row.teacher_prompt_ids))
        return row, prompt_length + max(max_new_tokens, len(row.gold_ids))

    return _prepare(conversations, encode, max_seq_length, on_too_long)


def prepare_prompt_rows(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    *,
    max_seq_length: int,
    max_new_tokens: int,
    columns: Iterable[str] = (),
    on_too_long: OnTooLong = None,
) -> Prepared[PromptRow]:
    """Rows for grpo: the last answer is taken off the prompt and kept for the reward; rows of weight 0 are left out.

    columns: the fields that every row has, with None where it holds nothing.

    A row is too long if prompt and max_new_tokens exceed max_seq_length together. Raises DataError as
    `prepare_token_rows` does.
    """

    def encode(index: int, conversation: Conversation) -> tuple[PromptRow, int]:
        ids = template.encode_prompt(conversation.prompt, conversation.place)
        row = PromptRow(
            prompt=conversation.prompt,
            prompt_ids=ids,
            gold=conversation.answer,
            gold_ids=template.encode_response(conversation.messages, conversation.place),
            fields={name: conversation.fields.get(name) for name in columns},
            weight=conversation.weight,
            row=index,
            place=conversation.place,
        )
        return row, len(ids) + max_new_tokens

    return _prepare(conversations, encode, max_seq_length, on_too_long)


def prepare_preference_rows(
    preferences: Sequence[Preference],
    template: ChatTemplate,
    *,
    max_seq_length: int,
    on_too_long: OnTooLong = None,
) -> Prepared[PreferenceRow]:
    """Rows for dpo and orpo. A row is too long if its prompt and the longer answer exceed max_seq_length together.

    Raises DataError as `prepare_token_rows` does.
    """

    def encode(index: int, preference: Preference) -> tuple[PreferenceRow, int]:
        place = preference.place
        chosen, rejected = (
            template.encode_response([*preference.prompt, Message("assistant", answer)], place)
            for answer in (preference.chosen, preference.rejected)
        )
        row = PreferenceRow(template.encode_prompt(preference.prompt, place), chosen, rejected, index, place)
        return row, len(row.prompt_ids) + max(len(chosen), len(rejected))

    return _prepare(preferences, encode, max_seq_length, on_too_long)


def check_demo_template(demo_template: str) -> None:
    """Raises ConfigError unless both `{question}` and `{demonstration}` occur."""
    for placeholder in PLACEHOLDERS:
        if f"{{{placeholder}}}" not in demo_template:
            raise ConfigError(
                f"sdft_demo_template lacks {{{placeholder}}}; it needs both {{question}} and {{demonstration}}"
            )


def fill_demo_template(demo_template: str, question: str, demonstration: str) -> str:
    """The template with both texts in place, in one pass: braces in the texts and in the template are safe."""
    return fill_placeholders(demo_template, {"question": question, "demonstration": demonstration})


def _prepare(
    conversations: Sequence[Source],
    encode: Callable[[int, Source], tuple[Row, int]],
    max_seq_length: int,
    on_too_long: OnTooLong,
) -> Prepared[Row]:
    if all(conversation.weight == 0 for conversation in conversations):
        raise DataError(_nothing_left(conversations))
    rows: list[Row] = []
    dropped: list[DroppedRow] = []
    problems: list[str] = []
    for index, conversation in enumerate(conversations):
        if conversation.weight == 0:
            continue
        try:
            row, num_tokens = encode(index, conversation)
        except DataError as error:
            problems.append(str(error))
            continue
        if num_tokens > max_seq_length:
            dropped.append(DroppedRow(conversation.place, num_tokens))
        else:
            rows.append(row)
    total = len(rows) + len(dropped) + len(problems)
    if problems:
        raise DataError(report_rows(f"{len(problems)} of {total} rows cannot be used", problems))
    share = len(dropped) / total if total else 0.0
    refused = on_too_long == "error" or (on_too_long is None and share > MAX_DROPPED_SHARE)
    if dropped and (refused or not rows):
        raise DataError(_too_long_error(dropped, total, max_seq_length))
    return Prepared(rows, dropped, max_seq_length)


def _too_long_error(dropped: Sequence[DroppedRow], total: int, max_seq_length: int) -> str:
    headline = _too_long_headline(dropped, total, max_seq_length, "refused")
    remedy = f"set max_seq_length to {max(row.num_tokens for row in dropped)}, or shorten the rows"
    if len(dropped) < total:
        remedy += ", or set on_too_long to drop"
    return report_rows(f"{headline}; {remedy}", [_too_long_line(row) for row in dropped], always_headline=True)


def _too_long_headline(dropped: Sequence[DroppedRow], total: int, max_seq_length: int, what: str) -> str:
    percent = math.ceil(1000 * len(dropped) / total) / 10
    return f"{len(dropped)} of {total} rows ({percent:g} %) {what}: longer than max_seq_length {max_seq_length}"


def _too_long_line(row: DroppedRow) -> str:
    return f"{row.place}: needs {row.num_tokens} tokens"


def _nothing_left(conversations: Iterable[Conversation | Preference]) -> str:
    place = next((conversation.place for conversation in conversations), None)
    if place is None:
        return "there are no rows to train on; give a training_file with rows"
    file = place.rpartition(":")[0] or place
    return f"{file}: every row has weight 0; give at least one row a positive 'weight'"
