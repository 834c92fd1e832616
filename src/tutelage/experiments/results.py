"""What came out: scores with intervals, answers, curves, and the two files that hold them all.

Not here: getting the numbers (`evaluate.py`), saying what they mean (`sentences.py`).
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from tutelage.evaluation import Interval, bootstrap_difference, bootstrap_interval
from tutelage.experiments.specification import BASE, Measure, Role, Unit
from tutelage.files import write_json, write_text

Curve = list[tuple[int, float]]
"""(optimizer step, value), in order."""


@cache
def _difference(items: tuple[float, ...], others: tuple[float, ...]) -> Interval:
    """Tables and sentences ask for the same ones again and again, and each takes ten thousand resamples."""
    return bootstrap_difference([items], [others])


class Status(str, Enum):
    """How a run ended."""

    FINISHED = "finished"
    FAILED = "failed"


@dataclass(frozen=True)
class Score:
    """The items' values and their mean with its bootstrap interval (over items; one seed)."""

    items: tuple[float, ...]
    interval: Interval

    @classmethod
    def of(cls, items: Sequence[float]) -> "Score":
        return cls(tuple(items), bootstrap_interval([items]))

    @property
    def mean(self) -> float:
        return self.interval.mean

    @property
    def counts(self) -> bool:
        """Every item is right or wrong, so that the score reads as `31 of 32`."""
        return all(value in (0.0, 1.0) for value in self.items)

    def difference(self, other: "Score") -> Interval:
        """mean(self) − mean(other), paired by item."""
        return _difference(self.items, other.items)


@dataclass(frozen=True)
class ModelResult:
    """The base model or one run. Of a failed run, `error` says why and there are no scores.

    scores: measure name to score. answers: evaluation name to one row an item. curves: metric name to curve.
    objective: `loss` of the config, None for the base. seconds: of training and of evaluation.
    """

    name: str
    objective: str | None
    status: Status = Status.FINISHED
    error: str | None = None
    scores: Mapping[str, Score] = field(default_factory=dict)
    answers: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    run_path: str | None = None
    training_seconds: float = 0.0
    evaluation_seconds: float = 0.0


@dataclass(frozen=True)
class ExperimentResults:
    """All that the report is made from. environment: versions, hardware, git commit. data: file name to hash."""

    name: str
    title: str
    model: str
    seed: int
    created: str
    task: str
    task_again: str | None
    measures: tuple[Measure, ...]
    models: tuple[ModelResult, ...]
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
        """The finished ones."""
        return [model for model in self.models if model.name != BASE and model.status is Status.FINISHED]

    @property
    def failed(self) -> list[ModelResult]:
        return [model for model in self.models if model.status is Status.FAILED]

    def measure(self, name: str) -> Measure:
        return next(measure for measure in self.measures if measure.name == name)

    # --- files ----------------------------------------------------------------------------------------------------

    def write(self, folder: Path) -> None:
        """`results.json` and `results.csv`. Raises OutputError."""
        write_json(folder / "results.json", self.as_json())
        write_text(folder / "results.csv", self.as_csv())

    def as_json(self) -> dict[str, Any]:
        """Plain values; `from_json` is the reverse."""
        return json.loads(json.dumps(asdict(self), default=_plain))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ExperimentResults":
        """The results that `as_json` was made from."""
        read = dict(values)
        read["measures"] = tuple(_measure(measure) for measure in values["measures"])
        read["models"] = tuple(_model(model) for model in values["models"])
        read["notes"], read["sources"] = tuple(values["notes"]), tuple(values["sources"])
        return cls(**read)

    def as_csv(self) -> str:
        """One row a model and measure; differences are to the base. Failed runs have one row without numbers."""
        text = io.StringIO()
        writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for model in self.models:
            head = {"model": model.name, "objective": model.objective or "", "status": model.status.value}
            if model.status is Status.FAILED:
                writer.writerow(head)
            for measure in self.measures:
                if measure.name in model.scores:
                    writer.writerow(head | self._csv_numbers(model, measure))
        return text.getvalue()

    def _csv_numbers(self, model: ModelResult, measure: Measure) -> dict[str, Any]:
        score = model.scores[measure.name]
        interval = score.interval
        difference = score.difference(self.base.scores[measure.name])
        return {
            "measure": measure.name,
            "unit": measure.unit.value,
            "items": len(score.items),
            "mean": interval.mean,
            "low": interval.low,
            "high": interval.high,
            "level": interval.level,
            "difference": difference.mean,
            "difference_low": difference.low,
            "difference_high": difference.high,
        }


CSV_COLUMNS = (
    *("model", "objective", "status", "measure", "unit", "items"),
    *("mean", "low", "high", "level", "difference", "difference_low", "difference_high"),
)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _measure(values: Mapping[str, Any]) -> Measure:
    return Measure(**{**values, "role": Role(values["role"]), "unit": Unit(values["unit"])})


def _model(values: Mapping[str, Any]) -> ModelResult:
    scores = {
        name: Score(tuple(score["items"]), Interval(**score["interval"])) for name, score in values["scores"].items()
    }
    curves = {name: [(step, value) for step, value in curve] for name, curve in values["curves"].items()}
    return ModelResult(**{**values, "status": Status(values["status"]), "scores": scores, "curves": curves})
