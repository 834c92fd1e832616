"""What becomes of the rows of a file: those to train on, those that are too long, those that cannot be used.

Not here: how a row is made (prepare.py).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar, overload

from tutelage.data.conversations import Conversation
from tutelage.data.jsonl import MAX_REPORTED_ROWS, report_rows
from tutelage.data.preferences import Preference
from tutelage.data.rows import DistillationRow, PreferenceRow, PromptRow, TokenRow
from tutelage.errors import DataError

MAX_DROPPED_SHARE = 0.05  # on_too_long unset: up to this share of the rows is dropped, above it is an error

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


@dataclass
class Tally:
    """What became of the rows of a file, in counts, and in words for the first of those that cannot be used."""

    max_seq_length: int
    first_place: str | None = None
    num_seen: int = 0
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
            self.num_seen += 1
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

    def add(self, later: "Tally") -> None:
        """Put the rows that come behind to these."""
        self.first_place = self.first_place or later.first_place
        self.num_seen += later.num_seen
        self.num_weighed += later.num_weighed
        self.num_refused += later.num_refused
        self.problems = (self.problems + later.problems)[:MAX_REPORTED_ROWS]
        self.num_dropped += later.num_dropped
        self.dropped = (self.dropped + later.dropped)[:MAX_REPORTED_ROWS]
        self.longest = max(self.longest, later.longest)

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
