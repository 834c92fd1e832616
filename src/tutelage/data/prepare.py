"""Turns checked conversations into the rows of a trainer, and finds every row that doesn't fit.

Nothing is ever cut. Batches are formed elsewhere (collators.py, packing.py).
"""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, overload

from tutelage.data.batch_encoding import encode_rows
from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Conversation, Message
from tutelage.data.jsonl import MAX_REPORTED_ROWS, report_rows
from tutelage.data.placeholders import fill_placeholders
from tutelage.data.preferences import Preference
from tutelage.data.rows import DistillationRow, PreferenceRow, PromptRow, TokenRow
from tutelage.data.token_rows import TokenRowWriter
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
    """The rows to train on, as a sequence. dropped: the first 20 of the `num_dropped` that were too long."""

    rows: Sequence[Row]
    dropped: list[DroppedRow]
    num_dropped: int
    max_seq_length: int

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def warning(self) -> str | None:
        """What to tell the user about dropped rows (the first 20 with file and line); None if there are none."""
        if not self.dropped:
            return None
        total = len(self.rows) + self.num_dropped
        return report_rows(
            _too_long_headline(self.num_dropped, total, self.max_seq_length, "left out"),
            [_too_long_line(row) for row in self.dropped],
            always_headline=True,
            count=self.num_dropped,
        )


def prepare_token_rows(
    conversations: Iterable[Conversation],
    template: ChatTemplate,
    *,
    max_seq_length: int,
    responses_only: bool = True,
    on_too_long: OnTooLong = None,
) -> Prepared[TokenRow]:
    """Rows for sft and dft; rows of weight 0 are left out. They lie on disk, however many there are (token_rows.py).

    A row is too long if it has more than max_seq_length tokens.

    on_too_long: `drop`, `error`, or None: drop up to 5 % of the rows, more is an error.
    Raises DataError, always for all rows together: rows the template refuses, rows without a trained token,
    too many long rows, no row left.
    """

    tally = _Tally(max_seq_length)
    with TokenRowWriter() as writer, _old_objects_left_alone():
        for result in encode_rows(template, tally.seen(conversations), responses_only):
            row, conversation = result.row, result.conversation
            place = conversation.place
            if isinstance(row, DataError):
                tally.refuse(str(row))
            elif row.num_trained == 0:
                tally.refuse(
                    f"{place}: no token of the row is trained; remove the row or set 'train' of an answer to true"
                )
            elif tally.fits(place, len(row.ids)):
                writer.add(row, weight=conversation.weight, index=result.index, place=place)
        return tally.prepared(writer.rows(), on_too_long)


def prepare_distillation_rows(
    conversations: Iterable[Conversation],
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
    conversations: Iterable[Conversation],
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
    conversations: Iterable[Source],
    encode: Callable[[int, Source], tuple[Row, int]],
    max_seq_length: int,
    on_too_long: OnTooLong,
) -> Prepared[Row]:
    rows: list[Row] = []
    tally = _Tally(max_seq_length)
    for index, conversation in enumerate(tally.seen(conversations)):
        if conversation.weight == 0:
            continue
        try:
            row, num_tokens = encode(index, conversation)
        except DataError as error:
            tally.refuse(str(error))
            continue
        if tally.fits(conversation.place, num_tokens):
            rows.append(row)
    return tally.prepared(rows, on_too_long)


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    """Garbage is looked for among new objects only: imports leave some 400,000, which would be gone through again and
    again while rows come and go. Nothing is changed where somebody else has done so."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass
class _Tally:
    """What became of the rows of a file, in counts, and in words for the first of those that cannot be used."""

    max_seq_length: int
    first_place: str | None = None
    num_weighed: int = 0
    num_refused: int = 0
    problems: list[str] = field(default_factory=list)
    num_dropped: int = 0
    dropped: list[DroppedRow] = field(default_factory=list)
    longest: int = 0

    def seen(self, conversations: Iterable[Source]) -> Iterator[Source]:
        """The conversations, counted on their way."""
        for conversation in conversations:
            if self.first_place is None:
                self.first_place = conversation.place
            self.num_weighed += conversation.weight != 0
            yield conversation

    def refuse(self, problem: str) -> None:
        self.num_refused += 1
        if self.num_refused <= MAX_REPORTED_ROWS:
            self.problems.append(problem)

    def fits(self, place: str, num_tokens: int) -> bool:
        """Whether the row is to be kept; one that is too long is written down."""
        if num_tokens <= self.max_seq_length:
            return True
        self.num_dropped += 1
        self.longest = max(self.longest, num_tokens)
        if self.num_dropped <= MAX_REPORTED_ROWS:
            self.dropped.append(DroppedRow(place, num_tokens))
        return False

    def prepared(self, rows: Sequence[Row], on_too_long: OnTooLong) -> Prepared[Row]:
        """The rows that were kept. Raises DataError for those that were not."""
        if self.num_weighed == 0:
            raise DataError(_nothing_left(self.first_place))
        total = len(rows) + self.num_dropped + self.num_refused
        if self.num_refused:
            headline = f"{self.num_refused} of {total} rows cannot be used"
            raise DataError(report_rows(headline, self.problems, count=self.num_refused))
        share = self.num_dropped / total
        refused = on_too_long == "error" or (on_too_long is None and share > MAX_DROPPED_SHARE)
        if self.num_dropped and (refused or not rows):
            raise DataError(self._too_long(total))
        return Prepared(rows, self.dropped, self.num_dropped, self.max_seq_length)

    def _too_long(self, total: int) -> str:
        headline = _too_long_headline(self.num_dropped, total, self.max_seq_length, "refused")
        remedy = f"set max_seq_length to {self.longest}, or shorten the rows"
        if self.num_dropped < total:
            remedy += ", or set on_too_long to drop"
        lines = [_too_long_line(row) for row in self.dropped]
        return report_rows(f"{headline}; {remedy}", lines, always_headline=True, count=self.num_dropped)


def _too_long_headline(num_dropped: int, total: int, max_seq_length: int, what: str) -> str:
    percent = math.ceil(1000 * num_dropped / total) / 10
    return f"{num_dropped} of {total} rows ({percent:g} %) {what}: longer than max_seq_length {max_seq_length}"


def _too_long_line(row: DroppedRow) -> str:
    return f"{row.place}: needs {row.num_tokens} tokens"


def _nothing_left(place: str | None) -> str:
    if place is None:
        return "there are no rows to train on; give a training_file with rows"
    file = place.rpartition(":")[0] or place
    return f"{file}: every row has weight 0; give at least one row a positive 'weight'"
