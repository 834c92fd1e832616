"""Asking a model and scoring what it answers. Not here: the scores (`scoring`), sampling itself (`rollouts`)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import DataError
from tutelage.evaluation.questions import Question, question_text
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import Prompt, answer_text, encode_prompts, padding_id
from tutelage.rollouts import generate, rollout_seed
from tutelage.scoring import Scorer


@dataclass(frozen=True)
class GenerationItem:
    """One question with its answer. truncated: the answer hit `max_new_tokens`."""

    prompt: list[dict[str, str]]
    answer: str
    target: str
    score: float
    truncated: bool
    place: str

    def row(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self)


@dataclass(frozen=True)
class GenerationResult:
    """Items in the order of the questions."""

    items: tuple[GenerationItem, ...]

    @property
    def score(self) -> float:
        """Mean over the items."""
        return sum(item.score for item in self.items) / len(self.items)

    @property
    def truncated(self) -> float:
        """Share of the answers that hit the limit."""
        return sum(item.truncated for item in self.items) / len(self.items)


def evaluate_generation(
    model: nn.Module,
    template: ChatTemplate,
    questions: Sequence[Question],
    scorer: Scorer,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
) -> GenerationResult:
    """Answer every question and score the answers.

    temperature 0 is greedy; else an answer depends on `seed` and the question's number alone. The model's mode and
    all random states are as before afterwards. Raises DataError for no questions, and for a prompt that leaves no
    room for `max_new_tokens` in the model.
    """
    if not questions:
        raise DataError("generate has no questions; give at least one")
    prompts = [Prompt(question.prompt, question.place) for question in questions]
    stop_ids = template.end_of_turn_ids
    with leaving_no_trace(model):
        answers = generate(
            model,
            [item.ids for item in encode_prompts(prompts, template, model, max_new_tokens)],
            pad_token_id=padding_id(template),
            stop_ids=stop_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seeds=[rollout_seed(seed, number) for number in range(len(questions))],
            batch_size=batch_size,
        )
    items: list[GenerationItem] = []
    for question, ids in zip(questions, answers, strict=True):
        answer = answer_text(template, ids)
        items.append(
            GenerationItem(
                prompt=question_text(question.prompt),
                answer=answer,
                target=question.target,
                score=scorer(answer, question.target),
                truncated=ids[-1] not in stop_ids,
                place=question.place,
            )
        )
    return GenerationResult(tuple(items))
