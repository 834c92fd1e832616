"""Asking the base model and the runs: scores, answers, KL to base. Not here: what is asked (`specification.py`)."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from tutelage.config import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.evaluation import evaluate_generation, evaluate_multiple_choice
from tutelage.evaluation.results import ResultItem
from tutelage.experiments.results import Score
from tutelage.experiments.specification import (
    KL_BASE_VS_MODEL,
    KL_VS_BASE,
    ChoiceEvaluation,
    Experiment,
    GenerateEvaluation,
)
from tutelage.models import LoadedModel, WeightCopy, load_model, response_kl
from tutelage.models.scoring import Pair
from tutelage.monitoring import KlToBase
from tutelage.training import Run

BATCH_SIZE = 32

Answers = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Evaluated:
    """scores: measure name to score. answers: evaluation name to one row an item."""

    scores: Mapping[str, Score]
    answers: Answers
    seconds: float


class Evaluator:
    """Asks every model of an experiment the same. `base` comes first: its answers are what KL is measured on."""

    def __init__(self, experiment: Experiment, console: Console) -> None:
        self._experiment = experiment
        self._console = console
        self._base_pairs: Sequence[Pair] = ()

    def base(self) -> Evaluated:
        """The model before training."""
        started = time.perf_counter()
        loaded = load_model(_without_adapter(self._experiment.first_config))
        template = self._template(loaded)
        scores, answers = self._asked(loaded.model, template)
        self._say("everyday prompts")
        limit = self._experiment.drift_max_new_tokens
        unchanged = WeightCopy({})
        prompts = self._experiment.drift_prompts
        kl = KlToBase.prepare(loaded.model, unchanged, prompts, template, limit, BATCH_SIZE)
        self._base_pairs = kl.base_pairs
        zeros = [0.0] * len(prompts)
        scores |= {KL_VS_BASE.name: Score.of(zeros), KL_BASE_VS_MODEL.name: Score.of(zeros)}
        return Evaluated(scores, answers, time.perf_counter() - started)

    def run(self, run: Run) -> Evaluated:
        """A finished run."""
        started = time.perf_counter()
        # A merged model has the adapter inside: beside a fresh one it would look unchanged.
        has_adapter = run.model_path.name == "adapter"
        config = run.config if has_adapter else _without_adapter(run.config)
        base = WeightCopy.of(load_model(config).model)
        loaded = load_model(config, str(run.model_path))
        template = self._template(loaded)
        drift = self._drift(loaded.model, base)
        model = loaded.model.merge_and_unload() if has_adapter else loaded.model
        scores, answers = self._asked(model, template)
        return Evaluated(scores | drift, answers, time.perf_counter() - started)

    def _asked(self, model: Any, template: ChatTemplate) -> tuple[dict[str, Score], Answers]:
        scores: dict[str, Score] = {}
        answers: Answers = {}
        for evaluation in self._experiment.evaluations:
            if isinstance(evaluation, GenerateEvaluation):
                self._say(evaluation.measure.title)
                generated = evaluate_generation(
                    model,
                    template,
                    evaluation.questions,
                    evaluation.scorer,
                    max_new_tokens=evaluation.max_new_tokens,
                    batch_size=BATCH_SIZE,
                )
                scores[evaluation.measure.name] = Score.of([item.score for item in generated.items])
                answers[evaluation.measure.name] = _rows(generated.items)
            else:
                self._say(evaluation.accuracy.title)
                scores |= self._chosen(model, template, evaluation, answers)
        return scores, answers

    def _chosen(
        self, model: Any, template: ChatTemplate, evaluation: ChoiceEvaluation, answers: Answers
    ) -> dict[str, Score]:
        chosen = evaluate_multiple_choice(model, template, evaluation.questions, batch_size=BATCH_SIZE)
        answers[evaluation.accuracy.name] = _rows(chosen.items)
        return {
            evaluation.accuracy.name: Score.of([item.score for item in chosen.items]),
            evaluation.log_prob.name: Score.of([item.log_probs[item.right] for item in chosen.items]),
        }

    def _drift(self, model: Any, base: WeightCopy) -> dict[str, Score]:
        """KL in both directions on the base's answers, one item a prompt.

        An item is the sum over the prompt's tokens / (tokens per prompt), so that the mean over the items is the
        mean over all tokens, as in monitoring.
        """
        self._say("KL to base")
        parts = response_kl(model, base, self._base_pairs)
        tokens_per_prompt = sum(part.tokens for part in parts) / len(parts)
        return {
            KL_VS_BASE.name: Score.of([part.reverse / tokens_per_prompt for part in parts]),
            KL_BASE_VS_MODEL.name: Score.of([part.forward / tokens_per_prompt for part in parts]),
        }

    def _template(self, loaded: LoadedModel) -> ChatTemplate:
        return ChatTemplate(loaded.tokenizer, self._experiment.first_config.chat_template)

    def _say(self, what: str) -> None:
        self._console.print(f"  {what} …", highlight=False, markup=False)


def _rows(items: Sequence[ResultItem]) -> list[dict[str, Any]]:
    """As a result file would give them back: lists in place of tuples."""
    return [json.loads(json.dumps(item.row())) for item in items]


def _without_adapter(config: TrainingConfig) -> TrainingConfig:
    return config.model_copy(update={"is_peft": False})
