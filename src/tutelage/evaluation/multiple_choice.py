"""Choosing between given answers by their log-probability. Nothing is generated here (`generate.py`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.conversations import Message
from tutelage.errors import DataError
from tutelage.evaluation.questions import ChoiceQuestion, question_text
from tutelage.models import response_log_probs
from tutelage.models.scoring import Pair
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import check_fits


@dataclass(frozen=True)
class ChoiceItem:
    """One question with what the model made of it.

    log_probs: log p(choice, end of turn | prompt) in nats, one a choice; under `mean`, divided by the number of
    tokens. chosen: the index of the largest, the first one of equals. score: 1.0 if it is the right one.
    """

    prompt: list[dict[str, str]]
    choices: tuple[str, ...]
    right: int
    log_probs: tuple[float, ...]
    place: str

    @property
    def chosen(self) -> int:
        return max(range(len(self.log_probs)), key=self.log_probs.__getitem__)

    @property
    def score(self) -> float:
        return float(self.chosen == self.right)

    def row(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self) | {"answer": self.choices[self.chosen], "score": self.score}


@dataclass(frozen=True)
class MultipleChoiceResult:
    """Items in the order of the questions."""

    items: tuple[ChoiceItem, ...]

    @property
    def accuracy(self) -> float:
        return sum(item.score for item in self.items) / len(self.items)

    @property
    def mean_log_prob(self) -> float:
        """Mean over the items of the right answer's log-probability: finer than accuracy on few items."""
        return sum(item.log_probs[item.right] for item in self.items) / len(self.items)


def evaluate_multiple_choice(
    model: nn.Module,
    template: ChatTemplate,
    questions: Sequence[ChoiceQuestion],
    *,
    length: Literal["sum", "mean"] = "sum",
    batch_size: int = 32,
) -> MultipleChoiceResult:
    """Score every choice as the assistant's whole answer, its end of turn included, `batch_size` choices at a time.

    length: `sum` compares log p(choice | prompt), `mean` the same per token, which does not favour short choices.
    The model's mode and all random states are as before afterwards. Raises DataError for no questions, and for a
    row longer than the model's positions.
    """
    if not questions:
        raise DataError("multiple_choice has no questions; give at least one")
    pairs: list[Pair] = []
    for question in questions:
        prompt = template.encode_prompt(question.prompt, question.place)
        answers = [
            template.encode_response([*question.prompt, Message("assistant", choice)], question.place)
            for choice in question.choices
        ]
        check_fits(model, len(prompt) + max(map(len, answers)), question.place)
        pairs += [(prompt, answer) for answer in answers]
    with leaving_no_trace(model):
        scored = iter(response_log_probs(model, pairs, batch_size))
    by_choice = (float(row.double().sum()) / (len(row) if length == "mean" else 1) for row in scored)
    scores = [tuple(next(by_choice) for _ in question.choices) for question in questions]
    return MultipleChoiceResult(
        tuple(
            ChoiceItem(
                question_text(question.prompt),
                question.choices,
                question.right,
                log_probs,
                question.place,
            )
            for question, log_probs in zip(questions, scores, strict=True)
        )
    )
