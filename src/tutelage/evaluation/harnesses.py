"""Tasks of others' harnesses as evaluations: lm-evaluation-harness and Inspect. Not here: running them."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tutelage.data.chat_template import ChatTemplate
from tutelage.evaluation.inspect_tasks import check_inspect, evaluate_inspect
from tutelage.evaluation.kinds import NamedEvaluation
from tutelage.evaluation.lm_eval import LmEvalTask, check_lm_eval, evaluate_lm_eval
from tutelage.evaluation.measures import Measure, Outcome, Role, Unit
from tutelage.models import LoadedModel

SHARES = ("acc", "acc_norm", "exact_match", "em", "accuracy", "match", "includes", "exact")
"""Metrics whose items are right or wrong."""


@dataclass(frozen=True, kw_only=True)
class LmEvalEvaluation(NamedEvaluation):
    """Tasks of lm-evaluation-harness: a measure each, of the task's first metric. See `evaluate_lm_eval`."""

    tasks: Sequence[str]
    include_path: Path | None = None
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    seed: int = 0
    batch_size: int = 32

    def check(self) -> None:
        """Once: the same evaluation asks many models, and reading the tasks takes seconds."""
        _ = self._found

    @cached_property
    def _found(self) -> None:
        check_lm_eval(self.tasks, self.include_path)

    def run(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        result = evaluate_lm_eval(
            loaded.model,
            template,
            self.tasks,
            include_path=self.include_path,
            limit=self.limit,
            num_fewshot=self.num_fewshot,
            apply_chat_template=self.apply_chat_template,
            batch_size=self.batch_size,
            seed=self.seed,
        )
        tasks = [task for task in result.tasks if task.items]  # a group is a mean of its tasks, without items
        measures = {task.name: self._measure(task, alone=len(tasks) == 1) for task in tasks}
        scores = {
            measures[task.name].name: tuple(math.nan if item.score is None else item.score for item in task.items)
            for task in tasks
        }
        rows = [_with_prompt(item.row()) for item in result.items]
        return Outcome(tuple(measures.values()), scores, rows)

    def _measure(self, task: LmEvalTask, *, alone: bool) -> Measure:
        metric = task.metrics[0]
        better = None if self.role is Role.CHECK else metric.higher_is_better
        title = self.title if alone else f"{self.title}: {task.name}"
        name = self.name if alone else f"{self.name}.{task.name}"
        meaning = self.meaning or f"The harness's metric {metric.name}."
        return Measure(name, title, self.role, _unit(metric.name), meaning, better)


@dataclass(frozen=True, kw_only=True)
class InspectEvaluation(NamedEvaluation):
    """An Inspect task, by its first scorer. See `evaluate_inspect`. log_folder: None keeps no log."""

    task: str
    log_folder: Path | None = None
    limit: int | None = None
    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 32

    def check(self) -> None:
        check_inspect(self.task)

    def run(self, loaded: LoadedModel, template: ChatTemplate) -> Outcome:
        with tempfile.TemporaryDirectory() as scratch:
            result = evaluate_inspect(
                loaded.model,
                template,
                self.task,
                log_folder=self.log_folder or Path(scratch),
                limit=self.limit,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                batch_size=self.batch_size,
                seed=self.seed,
            )
        scores = tuple(math.nan if item.score is None else item.score for item in result.items)
        known = {score for score in scores if math.isfinite(score)}
        unit = Unit.SHARE if known <= {0.0, 1.0} else Unit.OTHER
        missing = len(scores) - sum(map(math.isfinite, scores))
        failed = {"no score": missing} if missing else {}
        return Outcome((self.measure(unit),), {self.name: scores}, [item.row() for item in result.items], failed)


def _unit(metric: str) -> Unit:
    return Unit.SHARE if metric in SHARES else Unit.OTHER


def _with_prompt(row: dict[str, Any]) -> dict[str, Any]:
    """The prompt as messages, as the rows of every other kind have it."""
    return row | {"prompt": [{"role": "user", "content": row["prompt"]}], "log_probs": list(row["log_probs"])}
