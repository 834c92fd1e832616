"""Results: intervals, the two files, and the way back from them."""

import csv
import io
import json
from pathlib import Path

import pytest

from tests.made_up import made_up_base, made_up_failure, made_up_model, made_up_results, right
from tutelage.experiments import ExperimentResults
from tutelage.experiments.results import CSV_COLUMNS, Score


def test_a_score_is_the_mean_of_its_items() -> None:
    score = Score.of([0.25, 0.75, 0.5, 0.1])
    assert score.mean == pytest.approx(0.4)
    assert not score.counts
    assert right(14).mean == 14 / 32
    assert right(14).counts


def test_differences_are_paired_by_item() -> None:
    """0.1 more on every item is 0.1 more in every resample, however the items differ among themselves."""
    items = [float(index) for index in range(10)]
    difference = Score.of([item + 0.1 for item in items]).difference(Score.of(items))
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    assert difference.excludes_zero


def test_json_and_back() -> None:
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_failure())
    assert ExperimentResults.from_json(json.loads(json.dumps(results.as_json()))) == results


def test_csv_has_a_row_for_each_model_and_measure() -> None:
    results = made_up_results()
    rows = list(csv.DictReader(io.StringIO(results.as_csv())))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [(row["model"], row["measure"]) for row in rows] == [
        (model, measure.name) for model in ("base", "sft", "dft", "sdft") for measure in results.measures
    ]
    for row in rows:
        model = next(model for model in results.models if model.name == row["model"])
        interval = model.scores[row["measure"]].interval
        assert (float(row["mean"]), float(row["low"]), float(row["high"])) == (
            interval.mean,
            interval.low,
            interval.high,
        )
    sft = next(row for row in rows if (row["model"], row["measure"]) == ("sft", "trained"))
    assert (sft["items"], sft["unit"], float(sft["difference"])) == ("32", "share of items", 1.0)


def test_a_failed_run_is_in_the_csv_without_numbers() -> None:
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_failure())
    rows = [row for row in csv.DictReader(io.StringIO(results.as_csv())) if row["model"] == "dft"]
    assert [(row["status"], row["mean"]) for row in rows] == [("failed", "")]


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    results = made_up_results()
    results.write(tmp_path)
    assert ExperimentResults.from_json(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))) == results
    assert (tmp_path / "results.csv").read_text(encoding="utf-8") == results.as_csv()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv", "results.json"]


def test_base_runs_and_failures_are_told_apart() -> None:
    results = made_up_results(made_up_model("sft", "sft", 1, 1, 0.1), made_up_failure())
    assert results.base == made_up_base()
    assert [run.name for run in results.runs] == ["sft"]
    assert [run.name for run in results.failed] == ["dft"]
