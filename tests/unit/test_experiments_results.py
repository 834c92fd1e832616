"""Results: intervals, the two files, and the way back from them."""

import csv
import io
import json
import math
from pathlib import Path

import pytest

from tests.made_up import made_up_base, made_up_failure, made_up_model, made_up_results, made_up_seeds, right
from tutelage.experiments import ExperimentResults
from tutelage.experiments.results import Score
from tutelage.experiments.tables import (
    DIFFERENCES_COLUMNS,
    RESULTS_COLUMNS,
    differences_csv,
    results_csv,
    write_results,
)


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


def test_an_item_without_a_value_in_a_seed_counts_in_none() -> None:
    score = Score.of([1.0, math.nan, 0.5], [0.0, 1.0, 0.5])
    assert score.valid == {0, 2}
    assert score.mean == pytest.approx((1.0 + 0.5 + 0.0 + 0.5) / 4)
    other = Score.of([0.0, 0.0, math.nan])
    assert score.difference(other).mean == pytest.approx(0.5)  # the first item alone


def test_seeds_widen_the_interval() -> None:
    """The same items in every seed: what differs is the seed alone, drawn among 0 and 1."""
    apart, alike = Score.of([0.0] * 50, [1.0] * 50), Score.of([0.5] * 50, [0.5] * 50)
    assert (apart.interval.low, apart.interval.high) == (0.0, 1.0)
    assert (alike.interval.low, alike.interval.high) == (0.5, 0.5)


def test_json_and_back() -> None:
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_failure())
    assert ExperimentResults.from_json(json.loads(json.dumps(results.as_json()))) == results


def test_csv_has_a_row_for_each_model_seed_and_measure_and_one_for_all_seeds() -> None:
    results = made_up_results(made_up_seeds("sft", "sft", 30, 32), made_up_model("dft", "dft", 14, 12, 0.25))
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    assert tuple(rows[0]) == RESULTS_COLUMNS
    names = [measure.name for measure in results.measures]
    expected = [
        ("base", "7"),
        ("base", "all"),
        ("sft", "1"),
        ("sft", "2"),
        ("sft", "all"),
        ("dft", "7"),
        ("dft", "all"),
    ]
    assert [(row["model"], row["seed"], row["measure"]) for row in rows] == [
        (model, seed, name) for model, seed in expected for name in names
    ]
    trained = {(row["model"], row["seed"]): row for row in rows if row["measure"] == "trained"}
    assert (float(trained["sft", "1"]["mean"]), trained["sft", "1"]["low"]) == (30 / 32, "")
    both = trained["sft", "all"]
    assert (float(both["mean"]), both["items"], both["unit"]) == (31 / 32, "32", "share of items")
    interval = results.runs[0].scores["trained"].interval
    assert (float(both["low"]), float(both["high"])) == (interval.low, interval.high)
    assert float(both["difference"]) == 31 / 32


def test_runs_are_compared_with_each_other_too() -> None:
    """Paired by item, as in the sentences: 32 against 14 of 32, the first 14 right in both."""
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_model("dft", "dft", 14, 12, 0.25))
    rows = list(csv.DictReader(io.StringIO(differences_csv(results))))
    assert tuple(rows[0]) == DIFFERENCES_COLUMNS
    assert {(row["run"], row["other"], row["stage"]) for row in rows} == {("sft", "dft", "")}
    assert [row["measure"] for row in rows] == [measure.name for measure in results.measures]
    trained = rows[0]
    expected = results.runs[0].scores["trained"].difference(results.runs[1].scores["trained"])
    assert float(trained["difference"]) == 18 / 32 == expected.mean
    assert (float(trained["low"]), float(trained["high"]), trained["items"]) == (expected.low, expected.high, "32")


def test_a_failed_run_is_in_the_csv_without_numbers() -> None:
    results = made_up_results(made_up_model("sft", "sft", 32, 31, 0.3), made_up_failure())
    rows = [row for row in csv.DictReader(io.StringIO(results_csv(results))) if row["model"] == "dft"]
    assert [(row["status"], row["mean"]) for row in rows] == [("failed", "")]


def test_files_hold_the_same_numbers(tmp_path: Path) -> None:
    results = made_up_results()
    write_results(results, tmp_path)
    assert ExperimentResults.from_json(json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))) == results
    assert (tmp_path / "results.csv").read_text(encoding="utf-8") == results_csv(results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["differences.csv", "results.csv", "results.json"]
    assert (tmp_path / "differences.csv").read_text(encoding="utf-8") == differences_csv(results)


def test_base_runs_and_failures_are_told_apart() -> None:
    results = made_up_results(made_up_model("sft", "sft", 1, 1, 0.1), made_up_failure())
    assert results.base == made_up_base()
    assert [run.name for run in results.runs] == ["sft"]
    assert [(run.name, seed.seed) for run, seed in results.failed] == [("dft", 7)]
