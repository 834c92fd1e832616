"""Asking the base model and the runs: outcomes of all evaluations, and KL to base, kept to be used again.

Not here: what is asked (`specification.py`), the kinds of evaluation (`evaluation`).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.config import TrainingConfig
from tutelage.data.chat_template import ChatTemplate
from tutelage.evaluation import Measure, Outcome, OutcomeFolder, Role
from tutelage.evaluation.kinds import NamedEvaluation
from tutelage.evaluation.questions import question_text
from tutelage.evaluation.run_suite import evaluate_suite
from tutelage.experiments.identity import base_identity
from tutelage.experiments.specification import BASE, KL_BASE_VS_MODEL, KL_VS_BASE, Experiment
from tutelage.models import LoadedModel, WeightCopy, load_frozen, load_model, resolve_model, response_kl
from tutelage.models.loading import base_of
from tutelage.models.scoring import Pair
from tutelage.monitoring import KlToBase
from tutelage.monitoring.prompts import answer_text

BATCH_SIZE = 32

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluated:
    """What all evaluations of one model gave, together."""

    measures: tuple[Measure, ...]
    scores: Mapping[str, tuple[float, ...]]
    answers: Mapping[str, list[dict[str, Any]]]
    failed: Mapping[str, Mapping[str, int]]
    seconds: float

    @property
    def means(self) -> dict[str, float]:
        """Of every measure that an item has a value of."""
        finite = {name: [value for value in values if math.isfinite(value)] for name, values in self.scores.items()}
        return {name: sum(values) / len(values) for name, values in finite.items() if values}


@dataclass
class Evaluator:
    """Asks every model of an experiment the same. `base` comes first: its answers are what KL is measured on.

    folder: where outcomes are kept, a folder a model.
    """

    experiment: Experiment
    folder: Path
    say: Say
    base_pairs: Sequence[Pair] = ()
    _drift: NamedEvaluation = field(init=False)

    def __post_init__(self) -> None:
        prompts = [question_text(prompt.messages) for prompt in self.experiment.drift_prompts]
        self._drift = NamedEvaluation(
            name=KL_VS_BASE.name,
            title="KL to base",
            role=Role.DRIFT,
            identity={"prompts": prompts, "max_new_tokens": self.experiment.drift_max_new_tokens},
        )

    def base(self) -> Evaluated:
        """The model before training."""
        config = self.experiment.first_config
        model = _Model(lambda: load_frozen(config.model, load_in_4bit=config.load_in_4bit), config.chat_template)
        folder = OutcomeFolder(self.folder / BASE, base_identity(config))
        outcomes = self._outcomes(model, folder)
        drift = self._kept_drift(folder, lambda: self._base_drift(model.loaded, model.template))
        self.base_pairs = [(row["prompt_ids"], row["answer_ids"]) for row in drift.rows]
        return _together({**outcomes, KL_VS_BASE.name: drift})

    def run(self, name: str, config: TrainingConfig, path: Path, identity: str) -> Evaluated:
        """A finished run's model, or one of its checkpoints. identity: what the run is, as a hash."""
        # A merged model has the adapter inside: beside a fresh one it would look unchanged.
        # One on another base, such as the merged model of a stage before, is merged first: see `load_frozen`.
        has_adapter = (path / "adapter_config.json").exists() and base_of(str(path)) == resolve_model(config.model)
        folder = OutcomeFolder(self.folder / name, identity)
        load = (lambda: load_model(config, str(path))) if has_adapter else (lambda: _whole(str(path)))
        model = _Model(load, config.chat_template)
        base = (lambda: load_model(config)) if has_adapter else (lambda: _whole(config.model))
        drift = self._kept_drift(folder, lambda: self._run_drift(model.loaded, base))
        model.merge = has_adapter and not config.load_in_4bit  # merged into four bits, a small change may be lost
        outcomes = self._outcomes(model, folder)
        return _together({**outcomes, KL_VS_BASE.name: drift})

    def _outcomes(self, model: "_Model", folder: OutcomeFolder) -> dict[str, Outcome]:
        done = evaluate_suite(lambda: (model.merged, model.template), self.experiment.evaluations, folder, self.say)
        if done.kept:
            self.say(f"as before: {', '.join(done.kept)}")
        return done.outcomes

    def _kept_drift(self, folder: OutcomeFolder, measure: Callable[[], Outcome]) -> Outcome:
        kept = folder.read(self._drift)
        if kept is not None:
            return kept
        self.say(f"{self._drift.title} …")
        started = time.perf_counter()
        outcome = replace(measure(), seconds=time.perf_counter() - started)
        folder.write(self._drift, outcome)
        return outcome

    def _base_drift(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        """0 by definition; its rows are the base model's own answers, on which every run is measured."""
        prompts, limit = self.experiment.drift_prompts, self.experiment.drift_max_new_tokens
        kl = KlToBase.prepare(loaded.model, WeightCopy({}), prompts, template, limit, BATCH_SIZE)
        zeros = (0.0,) * len(prompts)
        rows = [
            {
                "prompt": question_text(prompt.messages),
                "answer": answer_text(template, answer_ids),
                "score": 0.0,
                "prompt_ids": list(prompt_ids),
                "answer_ids": list(answer_ids),
            }
            for prompt, (prompt_ids, answer_ids) in zip(prompts, kl.base_pairs, strict=True)
        ]
        return Outcome(_DRIFT, {KL_VS_BASE.name: zeros, KL_BASE_VS_MODEL.name: zeros}, rows)

    def _run_drift(self, loaded: LoadedModel, base: Callable[[], LoadedModel]) -> Outcome:
        """KL in both directions on the base's answers, one item a prompt. base: loaded the same way.

        An item is the sum over the prompt's tokens / (tokens per prompt), so that the mean over the items is the
        mean over all tokens, as in monitoring.
        """
        copied = WeightCopy.of(base().model)  # what is not copied of the base is let go at once
        parts = response_kl(loaded.model, copied, self.base_pairs)
        tokens_per_prompt = sum(part.tokens for part in parts) / len(parts)
        scores = {
            KL_VS_BASE.name: tuple(part.reverse / tokens_per_prompt for part in parts),
            KL_BASE_VS_MODEL.name: tuple(part.forward / tokens_per_prompt for part in parts),
        }
        rows = [{"score": value} for value in scores[KL_VS_BASE.name]]
        return Outcome(_DRIFT, scores, rows)


_DRIFT = (KL_VS_BASE, KL_BASE_VS_MODEL)


@dataclass
class _Model:
    """A model that is loaded when something has to be asked, and merged when answers are."""

    load: Callable[[], LoadedModel]
    chat_template: str
    merge: bool = False
    _loaded: LoadedModel | None = None

    @property
    def loaded(self) -> LoadedModel:
        self._loaded = self._loaded or self.load()
        return self._loaded

    @property
    def merged(self) -> LoadedModel:
        if self.merge:
            self._loaded = replace(self.loaded, model=self.loaded.model.merge_and_unload())
            self.merge = False
        return self.loaded

    @property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.loaded.tokenizer, self.chat_template)


def _together(outcomes: Mapping[str, Outcome]) -> Evaluated:
    return Evaluated(
        measures=tuple(measure for outcome in outcomes.values() for measure in outcome.measures),
        scores={name: values for outcome in outcomes.values() for name, values in outcome.scores.items()},
        answers={name: outcome.rows for name, outcome in outcomes.items() if name != KL_VS_BASE.name},
        failed={name: outcome.failed for name, outcome in outcomes.items() if outcome.failed},
        seconds=sum(outcome.seconds for outcome in outcomes.values()),
    )


def _whole(source: str) -> LoadedModel:
    """A model without an adapter, with all weights as those that a copy of the base's takes the place of."""
    loaded = load_frozen(source)
    loaded.model.requires_grad_(True)
    return loaded
