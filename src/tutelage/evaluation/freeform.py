"""Open questions: sampled answers, each judged by every judge prompt of its question.

A judgement that failed or cannot be read is counted and left out. Not here: reading questions
(`freeform_questions.py`), asking judges over HTTP (`scoring`).
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tutelage.data.chat_template import ChatTemplate
from tutelage.errors import ConfigError
from tutelage.evaluation.freeform_questions import FreeformQuestion, JudgePrompt, label_name
from tutelage.evaluation.kinds import NamedEvaluation
from tutelage.evaluation.measures import Measure, Outcome, Role, Unit
from tutelage.evaluation.questions import question_text
from tutelage.models import LoadedModel
from tutelage.monitoring.isolation import leaving_no_trace
from tutelage.monitoring.prompts import Prompt, answer_text, encode_prompts, padding_id
from tutelage.rollouts import generate, rollout_seed
from tutelage.scoring import Judge, Reply, label_of, score_of
from tutelage.scoring.judge_prompts import HIGHEST

NO_ANSWER, UNPARSABLE = "no answer", "unparsable"
"""Why a judgement is missing: the call failed, or what came back is no number or label."""


@dataclass(frozen=True)
class _Asked:
    """One answer to be sampled. paraphrase, sample: counted from 0."""

    question: FreeformQuestion
    paraphrase: int
    sample: int

    def seed(self, seed: int) -> int:
        """By the question's id and not its number: other questions, before or behind, change no answer."""
        identity = int.from_bytes(
            hashlib.sha256(self.question.id.encode(errors="backslashreplace")).digest()[:8], "big"
        )
        return rollout_seed(seed, identity, self.paraphrase, self.sample)


@dataclass(frozen=True)
class _Answer:
    """truncated: it hit `max_new_tokens`."""

    asked: _Asked
    text: str
    truncated: bool


@dataclass(frozen=True)
class _Judgement:
    """value: points from 0 to 100, or a label; None where there is none. error: why."""

    value: float | str | None
    text: str | None
    error: str | None

    @classmethod
    def of(cls, prompt: JudgePrompt, reply: Reply) -> "_Judgement":
        if reply.text is None:
            return cls(None, None, reply.error or NO_ANSWER)
        if prompt.labels is not None:
            value = label_of(reply.text, prompt.labels)
        else:
            share = score_of(reply.text)
            value = None if share is None else round(share * HIGHEST, 6)  # 0.57 · 100 is 56.99999999999999
        return cls(value, reply.text, UNPARSABLE if value is None else None)

    def row(self, prompt: JudgePrompt) -> dict[str, Any]:
        """For a result file."""
        return {"score" if prompt.labels is None else "label": self.value, "text": self.text, "error": self.error}


@dataclass(frozen=True, kw_only=True)
class FreeformEvaluation(NamedEvaluation):
    """Points and labels that a judge gives answers to open questions; one item a question."""

    questions: Sequence[FreeformQuestion]
    judge: Judge
    seed: int = 0
    batch_size: int = 32

    def check(self) -> None:
        try:
            self.judge.check()
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def run(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        answers = self._answers(loaded, template)
        judged = self._judgements(answers)
        failed = Counter(
            f"{name}: {NO_ANSWER if judgement.text is None else UNPARSABLE}"
            for judgements in judged
            for name, judgement in judgements.items()
            if judgement.value is None
        )
        by_question: dict[str, list[dict[str, _Judgement]]] = {question.id: [] for question in self.questions}
        for answer, judgements in zip(answers, judged, strict=True):
            by_question[answer.asked.question.id].append(judgements)
        measures: list[Measure] = []
        scores: dict[str, tuple[float, ...]] = {}
        for name, prompt in self._prompts().items():
            values = [
                [judgements[name].value for judgements in judged_answers if name in judgements]
                for judged_answers in by_question.values()
            ]
            for label in prompt.labels or [None]:
                measures.append(self._measure(name, prompt, label))
                scores[measures[-1].name] = tuple(_mean(_numbers(item, label)) for item in values)
        answered = all(judgement.text is not None for judgements in judged for judgement in judgements.values())
        return Outcome(tuple(measures), scores, list(map(_row, answers, judged)), dict(failed), is_complete=answered)

    def _answers(self, loaded: LoadedModel, template: ChatTemplate) -> list[_Answer]:
        """Questions that are sampled alike are sampled together."""
        asked = [
            _Asked(question, paraphrase, sample)
            for question in self.questions
            for paraphrase in range(len(question.paraphrases))
            for sample in range(question.samples_per_paraphrase)
        ]
        alike: dict[tuple[float, int], list[int]] = {}
        for index, one in enumerate(asked):
            alike.setdefault((one.question.temperature, one.question.max_new_tokens), []).append(index)
        ids: dict[int, list[int]] = {}
        with leaving_no_trace(loaded.model):
            for (temperature, max_new_tokens), indices in alike.items():
                group = [asked[index] for index in indices]
                prompts = [Prompt(one.question.messages(one.paraphrase), self._place(one)) for one in group]
                sampled = generate(
                    loaded.model,
                    [prompt.ids for prompt in encode_prompts(prompts, template, loaded.model, max_new_tokens)],
                    pad_token_id=padding_id(template),
                    stop_ids=template.end_of_turn_ids,
                    max_new_tokens=max_new_tokens,
                    temperature=temperature,
                    seeds=[one.seed(self.seed) for one in group],
                    batch_size=self.batch_size,
                )
                ids.update(zip(indices, sampled, strict=True))
        return [
            _Answer(one, answer_text(template, ids[index]), ids[index][-1] not in template.end_of_turn_ids)
            for index, one in enumerate(asked)
        ]

    def _judgements(self, answers: Sequence[_Answer]) -> list[dict[str, _Judgement]]:
        """Per answer, by the prompts' names. All calls are made at once, as many at a time as the judge takes."""
        calls = [
            [{"role": "user", "content": prompt.filled(_text(answer.asked), answer.text)}]
            for answer in answers
            for prompt in answer.asked.question.judge_prompts.values()
        ]
        replies = iter(self.judge.ask(calls))
        return [
            {name: _Judgement.of(prompt, next(replies)) for name, prompt in answer.asked.question.judge_prompts.items()}
            for answer in answers
        ]

    def _prompts(self) -> dict[str, JudgePrompt]:
        """Every judge prompt's name, in order, with the first prompt of that name."""
        named: dict[str, JudgePrompt] = {}
        for question in self.questions:
            for name, prompt in question.judge_prompts.items():
                named.setdefault(name, prompt)
        return named

    def _measure(self, name: str, prompt: JudgePrompt, label: str | None) -> Measure:
        title = f"{self.title}: {name.replace('_', ' ')}"
        if label is not None:
            measure = self.measure(Unit.SHARE, suffix=f".{name}.{label_name(label)}", title=f"{title}: {label}")
            return replace(measure, higher_is_better=None)
        measure = self.measure(Unit.POINTS, suffix=f".{name}", title=title)
        return replace(measure, higher_is_better=None if self.role is Role.CHECK else prompt.higher_is_better)

    def _place(self, asked: _Asked) -> str:
        return f"{self.name}: {asked.question.id}: paraphrases[{asked.paraphrase}]"


def _text(asked: _Asked) -> str:
    return asked.question.paraphrases[asked.paraphrase]


def _numbers(values: Iterable[float | str | None], label: str | None) -> list[float]:
    """The points; for a label, 1 for each judgement that gives it and 0 for each that gives another."""
    return [float(value == label) if isinstance(value, str) else value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _row(answer: _Answer, judgements: dict[str, _Judgement]) -> dict[str, Any]:
    asked, prompts = answer.asked, answer.asked.question.judge_prompts
    numeric = next((name for name, prompt in prompts.items() if prompt.labels is None), None)
    return {
        "id": asked.question.id,
        "paraphrase": asked.paraphrase,
        "sample": asked.sample,
        "prompt": question_text(asked.question.messages(asked.paraphrase)),
        "answer": answer.text,
        "truncated": answer.truncated,
        "judgements": {name: judgement.row(prompts[name]) for name, judgement in judgements.items()},
        "score": None if numeric is None else judgements[numeric].value,
    }
