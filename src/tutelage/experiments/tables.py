"""The results as files: `results.json`, and two tables for whoever makes figures of their own."""

import csv
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tutelage.evaluation import Interval
from tutelage.experiments.results import ExperimentResults, ModelResult, Score, Status
from tutelage.files import write_json, write_text

RESULTS_COLUMNS = (
    *("model", "objective", "stage", "seed", "status", "measure", "unit", "items"),
    *("mean", "low", "high", "level", "difference", "difference_low", "difference_high"),
)
DIFFERENCES_COLUMNS = ("run", "other", "stage", "measure", "unit", "items", "difference", "low", "high", "level")


def write_results(results: ExperimentResults, folder: Path) -> None:
    """`results.json`, `results.csv` and `differences.csv`. Raises OutputError."""
    write_json(folder / "results.json", results.as_json())
    write_text(folder / "results.csv", results_csv(results))
    write_text(folder / "differences.csv", differences_csv(results))


def results_csv(results: ExperimentResults) -> str:
    """One row a model, stage, seed and measure, and one for all seeds together (`all`), which has the intervals;
    differences are to the base, which is before all stages. Failed seeds have one row without numbers."""
    return _table(RESULTS_COLUMNS, _result_rows(results))


def differences_csv(results: ExperimentResults) -> str:
    """One row a pair of runs, stage and measure: mean(run) − mean(other), paired by item, with its interval."""
    return _table(DIFFERENCES_COLUMNS, _difference_rows(results))


def _result_rows(results: ExperimentResults) -> Iterator[dict[str, Any]]:
    for model in results.models:
        head = {"model": model.name, "objective": model.objective or ""}
        for seed in model.failed:
            yield head | {"seed": seed.seed, "status": seed.status.value}
        for stage in ("",) if model is results.base else _stages(results):
            for seed in model.finished:
                row = head | {"stage": stage, "seed": seed.seed, "status": seed.status.value}
                for name, items in (seed.after.get(stage, {}) if stage else seed.scores).items():
                    yield row | _measure(results, name) | _of_seed(items)
            row = head | {"stage": stage, "seed": "all", "status": Status.FINISHED.value}
            for name, score in _scores(model, stage).items():
                yield row | _measure(results, name) | _of_all(score, results.base.scores.get(name))


def _difference_rows(results: ExperimentResults) -> Iterator[dict[str, Any]]:
    for (run, other), stage in itertools.product(itertools.combinations(results.runs, 2), _stages(results)):
        others = _scores(other, stage)
        for name, score in _scores(run, stage).items():
            shared = score.valid & others[name].valid if name in others else frozenset()
            if shared:
                difference = score.difference(others[name])
                row = {"run": run.name, "other": other.name, "stage": stage, "items": len(shared)}
                yield row | _measure(results, name) | {"difference": difference.mean} | _bounds(difference)


def _stages(results: ExperimentResults) -> tuple[str, ...]:
    return results.stages or ("",)


def _scores(model: ModelResult, stage: str) -> Mapping[str, Score]:
    return model.after(stage) if stage else model.scores


def _measure(results: ExperimentResults, name: str) -> dict[str, str]:
    return {"measure": name, "unit": results.measure(name).unit.value}


def _of_seed(items: Sequence[float]) -> dict[str, Any]:
    finite = [value for value in items if math.isfinite(value)]
    return {"items": len(finite), "mean": sum(finite) / len(finite) if finite else ""}


def _of_all(score: Score, base: Score | None) -> dict[str, Any]:
    numbers: dict[str, Any] = {"items": len(score.valid), "mean": score.mean} | _bounds(score.interval)
    if base is not None and base.valid & score.valid:
        difference = score.difference(base)
        numbers |= {
            "difference": difference.mean,
            "difference_low": difference.low,
            "difference_high": difference.high,
        }
    return numbers


def _bounds(interval: Interval) -> dict[str, float]:
    return {"low": interval.low, "high": interval.high, "level": interval.level}


def _table(columns: Sequence[str], rows: Iterator[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
