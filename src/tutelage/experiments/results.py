"""What came out: scores with intervals, answers, curves, and their form as JSON.

Not here: getting the numbers (`evaluate.py`), tables (`tables.py`), saying what they mean (`sentences.py`).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cache, cached_property
from typing import Any

from tutelage.evaluation import Interval, Measure, Role, bootstrap_difference, bootstrap_interval
from tutelage.evaluation.results import read_measure
from tutelage.experiments.specification import BASE

Curve = list[tuple[int, float]]
"""(optimizer step, value), in order."""

Matrix = tuple[tuple[float, ...], ...]
"""One row a seed, one column an item."""


@cache
def _difference(items: Matrix, others: Matrix) -> Interval:
    """Tables and sentences ask for the same ones again and again, and each takes ten thousand resamples."""
    return bootstrap_difference(items, others)


@cache
def _interval(items: Matrix) -> Interval:
    return bootstrap_interval(items)


class Status(str, Enum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class Score:
    """The items' values, one row a seed, and their mean with its bootstrap interval over items and seeds.

    An item without a value (NaN) in some seed counts in none.
    """

    items: Matrix

    @classmethod
    def of(cls, *seeds: Sequence[float]) -> "Score":
        return cls(tuple(tuple(row) for row in seeds))

    @cached_property
    def interval(self) -> Interval:
        return _interval(self._columns(self.valid))

    @property
    def valid(self) -> frozenset[int]:
        """The items that have a value in every seed."""
        return frozenset(index for index, column in enumerate(zip(*self.items, strict=True)) if _finite(column))

    @property
    def mean(self) -> float:
        return self.interval.mean

    @property
    def counts(self) -> bool:
        """Every item is right or wrong, so that the score reads as `31 of 32`."""
        return all(value in (0.0, 1.0) for row in self.items for value in row)

    def difference(self, other: "Score") -> Interval:
        """mean(self) − mean(other), paired by item, over the items that both have."""
        shared = self.valid & other.valid
        return _difference(self._columns(shared), other._columns(shared))

    def _columns(self, chosen: frozenset[int]) -> Matrix:
        return tuple(tuple(row[index] for index in sorted(chosen)) for row in self.items)


@dataclass(frozen=True)
class SeedResult:
    """The base model, or a run with one seed. Of a failed one, `error` says why and there are no scores.

    scores: measure name to one value an item. failed: evaluation name to what it had to leave out. after:
    stage to scores, where there are stages; the last ones are `scores`. environments: stage, or an empty text, to what
    it was trained in, as in `ExperimentResults`. reused: it was there already.
    """

    seed: int
    status: Status = Status.FINISHED
    error: str | None = None
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    failed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    environments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    run_path: str | None = None
    after: Mapping[str, Mapping[str, tuple[float, ...]]] = field(default_factory=dict)
    reused: bool = False
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class ModelResult:
    """The base model or one run with all its seeds. objective: `loss` of its (first) config, None for the base.

    answers: evaluation name to one row an item, of the first seed that finished.
    """

    name: str
    objective: str | None
    seeds: tuple[SeedResult, ...]
    answers: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def finished(self) -> tuple[SeedResult, ...]:
        return tuple(seed for seed in self.seeds if seed.status is Status.FINISHED)

    @property
    def failed(self) -> tuple[SeedResult, ...]:
        return tuple(seed for seed in self.seeds if seed.status is Status.FAILED)

    @cached_property
    def scores(self) -> Mapping[str, Score]:
        """Of the measures that have a value for some item in every finished seed."""
        return _scores([seed.scores for seed in self.finished])

    def after(self, stage: str) -> Mapping[str, Score]:
        """The same after a stage; empty where the run has none."""
        return _scores([seed.after.get(stage, {}) for seed in self.finished])

    @property
    def config(self) -> Mapping[str, Any]:
        """Of the first seed; the others differ in the seed alone."""
        return self.seeds[0].config


@dataclass(frozen=True)
class ExperimentResults:
    """All that the report is made from. environment: versions, hardware, git commit. data: file name to hash."""

    name: str
    title: str
    model: str
    seeds: tuple[int, ...]
    created: str
    measures: tuple[Measure, ...]
    models: tuple[ModelResult, ...]
    stages: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    introduction: str = ""
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    @property
    def base(self) -> ModelResult:
        return next(model for model in self.models if model.name == BASE)

    @property
    def runs(self) -> list[ModelResult]:
        """Those of which a seed finished."""
        return [model for model in self.models if model.name != BASE and model.finished]

    @property
    def failed(self) -> list[tuple[ModelResult, SeedResult]]:
        """Every run and seed that failed."""
        return [(model, seed) for model in self.models for seed in model.failed]

    def measure(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    def of_role(self, role: Role) -> list[Measure]:
        """The measures of a role, in order."""
        return [measure for measure in self.measures if measure.role is role]

    def as_json(self) -> dict[str, Any]:
        """Plain values, with the means and intervals beside the items; `from_json` is the reverse."""
        plain: dict[str, Any] = json.loads(json.dumps(_without_nan(asdict(self)), default=_plain))
        for model, values in zip(self.models, plain["models"], strict=True):
            values["summary"] = _summary(model.scores)
            values["summary_after"] = {stage: _summary(model.after(stage)) for stage in self.stages}
        return plain

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ExperimentResults":
        """The results that `as_json` was made from."""
        read = dict(values)
        read["measures"] = tuple(read_measure(measure) for measure in values["measures"])
        read["models"] = tuple(_model(model) for model in values["models"])
        read["seeds"], read["stages"] = tuple(values["seeds"]), tuple(values["stages"])
        read["notes"], read["sources"] = tuple(values["notes"]), tuple(values["sources"])
        return cls(**read)


def _summary(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: asdict(score.interval) for name, score in scores.items()}


def _scores(seeds: Sequence[Mapping[str, tuple[float, ...]]]) -> dict[str, Score]:
    names = [name for name in (seeds[0] if seeds else {}) if all(name in scores for scores in seeds)]
    found = {name: Score(tuple(tuple(scores[name]) for scores in seeds)) for name in names}
    return {name: score for name, score in found.items() if score.valid}


def _finite(column: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in column)


def _without_nan(value: Any) -> Any:
    """NaN as None, which JSON has."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _model(values: Mapping[str, Any]) -> ModelResult:
    fields = {key: value for key, value in values.items() if key not in ("summary", "summary_after", "seeds")}
    return ModelResult(**fields, seeds=tuple(_seed(seed) for seed in values["seeds"]))


def _seed(values: Mapping[str, Any]) -> SeedResult:
    scores, after = _items(values["scores"]), {stage: _items(items) for stage, items in values["after"].items()}
    curves = {name: [(step, value) for step, value in curve] for name, curve in values["curves"].items()}
    known = {"status": Status(values["status"]), "scores": scores, "after": after, "curves": curves}
    return SeedResult(**{**values, **known})


def _items(scores: Mapping[str, Sequence[float | None]]) -> dict[str, tuple[float, ...]]:
    return {name: tuple(math.nan if item is None else item for item in items) for name, items in scores.items()}
