"""The kinds of evaluation that need nothing but the model: answers, choices, log-probabilities.

Not here: how a model is asked (`generate.py`, `multiple_choice.py`), reading a suite (`suite.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tutelage.data.chat_template import ChatTemplate
from tutelage.data.messages import Message
from tutelage.errors import DataError
from tutelage.evaluation.generate import evaluate_generation
from tutelage.evaluation.measures import Measure, Outcome, Role, Unit
from tutelage.evaluation.multiple_choice import evaluate_multiple_choice
from tutelage.evaluation.questions import ChoiceQuestion, Question, question_text
from tutelage.evaluation.results import ResultItem
from tutelage.models import LoadedModel, response_log_probs
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import check_fits
from tutelage.scoring import Scorer

TRIED = 4
"""Targets on which a scorer is tried before a model is loaded."""


@dataclass(frozen=True, kw_only=True)
class NamedEvaluation:
    """What all kinds have. identity: see `Evaluation`."""

    name: str
    title: str
    role: Role
    meaning: str = ""
    identity: Mapping[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Nothing but the model is asked."""

    def measure(self, unit: Unit, *, suffix: str = "", title: str | None = None, meaning: str | None = None) -> Measure:
        """One of its measures; a check is neither better nor worse."""
        return Measure(
            self.name + suffix,
            title or self.title,
            self.role,
            unit,
            self.meaning if meaning is None else meaning,
            None if self.role is Role.CHECK else True,
        )


@dataclass(frozen=True, kw_only=True)
class GenerateEvaluation(NamedEvaluation):
    """Answers, greedy or sampled, scored one by one from 0 to 1."""

    questions: Sequence[Question]
    scorer: Scorer
    unit: Unit = Unit.SHARE
    """SHARE where answers are right or wrong, SCORE where the scorer knows more or less right ones."""
    max_new_tokens: int = 64
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 32

    def check(self) -> None:
        """The scorer is tried on a few targets, as if they had been answered."""
        for question in self.questions[:TRIED]:
            self.scorer(question.target, question.target)

    def run(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        result = evaluate_generation(
            loaded.model,
            template,
            self.questions,
            self.scorer,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            seed=self.seed,
            batch_size=self.batch_size,
        )
        scores = tuple(item.score for item in result.items)
        return Outcome((self.measure(self.unit),), {self.name: scores}, plain_rows(result.items))


@dataclass(frozen=True, kw_only=True)
class ChoiceEvaluation(NamedEvaluation):
    """A choice among given answers by log-probability: accuracy, and the log-probability of the right answer."""

    questions: Sequence[ChoiceQuestion]
    length: Literal["sum", "mean"] = "sum"
    log_prob_title: str = ""
    log_prob_meaning: str = "Mean log-probability of the right answer: finer than the number of right choices."
    batch_size: int = 32

    def run(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        items = evaluate_multiple_choice(
            loaded.model, template, self.questions, length=self.length, batch_size=self.batch_size
        ).items
        accuracy = self.measure(Unit.SHARE)
        log_prob = self.measure(
            Unit.LOG_PROB if self.length == "sum" else Unit.KL,
            suffix="_log_prob",
            title=self.log_prob_title or f"{self.title}: log-prob of the right answer",
            meaning=self.log_prob_meaning,
        )
        scores = {
            accuracy.name: tuple(item.score for item in items),
            log_prob.name: tuple(item.log_probs[item.right] for item in items),
        }
        return Outcome((accuracy, log_prob), scores, plain_rows(items))


@dataclass(frozen=True, kw_only=True)
class LogProbEvaluation(NamedEvaluation):
    """The log-probability of given answers, their end of turn included, in nats per answer."""

    questions: Sequence[Question]
    batch_size: int = 32

    def run(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        if not self.questions:
            raise DataError(f"{self.name}: logprob has no answers; give at least one")
        pairs = []
        for question in self.questions:
            prompt = template.encode_prompt(question.prompt, question.place)
            answer = template.encode_response([*question.prompt, Message("assistant", question.target)], question.place)
            check_fits(loaded.model, len(prompt) + len(answer), question.place)
            pairs.append((prompt, answer))
        with leaving_no_trace(loaded.model):
            scored = response_log_probs(loaded.model, pairs, self.batch_size)
        sums = tuple(float(log_probs.double().sum()) for log_probs in scored)
        rows: list[dict[str, Any]] = [
            {
                "prompt": question_text(question.prompt),
                "answer": question.target,
                "score": total,
                "tokens": len(log_probs),
                "place": question.place,
            }
            for question, total, log_probs in zip(self.questions, sums, scored, strict=True)
        ]
        return Outcome((self.measure(Unit.LOG_PROB),), {self.name: sums}, rows)


def plain_rows(items: Sequence[ResultItem]) -> list[dict[str, Any]]:
    """As a result file would give them back: lists in place of tuples."""
    return [json.loads(json.dumps(item.row())) for item in items]
