"""The tokenised rows that the trainers read. How they come about is in chat_template.py and prepare.py."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tutelage.data.messages import Message

IGNORE_INDEX = -100  # the label that transformers and torch leave out of a loss


@dataclass(frozen=True)
class EncodedRow:
    """A conversation as token ids. runs: how many ids in turn are trained, or are not; the first never is."""

    ids: list[int]
    runs: list[tuple[int, bool]]
    part_weights: list[float] | None

    @property
    def labels(self) -> list[int]:
        labels: list[int] = []
        for length, trained in self.runs:
            labels += self.ids[len(labels) : len(labels) + length] if trained else [IGNORE_INDEX] * length
        return labels

    @property
    def num_trained(self) -> int:
        return sum(length for length, trained in self.runs if trained)


@dataclass(frozen=True)
class TokenRow:
    """One conversation for a token loss.

    input_ids: the whole rendered conversation. labels: same length, not shifted; -100 where nothing is
    trained. weight: factor of the row's tokens in the loss (the normaliser counts tokens, not weights); a row
    of weight 0 has only -100. row: its index in the list of conversations. place: file and line. part_weights:
    factors of the single tokens beside it, same length; None where all are 1.
    """

    input_ids: list[int]
    labels: list[int]
    weight: float
    row: int
    place: str
    part_weights: list[float] | None = None

    @property
    def weights(self) -> list[float]:
        """The factor of each token in the loss."""
        return [self.weight * part for part in self.part_weights or [1.0] * len(self.input_ids)]

    @property
    def num_trained(self) -> int:
        """Labels that count in a loss; the first token has nothing that predicts it."""
        return sum(label != IGNORE_INDEX for label in self.labels[1:])


@dataclass(frozen=True)
class DistillationRow:
    """One conversation for sdft: prompts that end in the generation prompt, and the gold answer.

    prompt_ids: what the student sees. teacher_prompt_ids: the same with the demonstration in the last user
    turn. gold, gold_ids: the last assistant turn, as text, and as ids with its end of turn. question: the text of the
    last user turn. demonstration_text: what stands in the teacher's prompt. weight, row, place: as in TokenRow.
    """

    prompt_ids: list[int]
    teacher_prompt_ids: list[int]
    gold: str
    gold_ids: list[int]
    demonstration_text: str
    question: str
    weight: float
    row: int
    place: str


@dataclass(frozen=True)
class PromptRow:
    """One conversation for grpo: what is asked, as messages and as token ids, and what a reward is given.

    prompt_ids: up to the generation prompt. gold, gold_ids: the last assistant turn, as text, and as ids with its end
    of turn. fields: what else the rows of its files hold, None where this one holds nothing. weight: factor of the
    advantages of its answers. row, place: as in TokenRow.
    """

    prompt: tuple[Message, ...]
    prompt_ids: list[int]
    gold: str
    gold_ids: list[int]
    fields: Mapping[str, Any]
    weight: float
    row: int
    place: str


@dataclass(frozen=True)
class PreferenceRow:
    """One pair for dpo and orpo. chosen_ids, rejected_ids: the answers, their end-of-turn token included."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    row: int
    place: str
