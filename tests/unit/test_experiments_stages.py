"""A comparison in stages: each begins with the model the one before it left."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.small_comparisons import failing, monitored, run_of, tiny_experiment
from tests.small_runs import ROWS, small_config, write_rows
from tutelage import TrainingConfig
from tutelage.events import Tag
from tutelage.experiments import (
    ExperimentResults,
    compare,
    run_experiment,
)
from tutelage.experiments.tables import results_csv
from tutelage.training import Run


def test_a_file_that_changes_on_the_way_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small_config(tmp_path, "a")
    rows = write_rows(tmp_path / "second.jsonl", ROWS[:4])
    second = small_config(tmp_path, "b", training_file=rows)
    real = compare.train

    def changing(config: TrainingConfig, **arguments: Any) -> Run:
        rows.write_text(rows.read_text(encoding="utf-8") + rows.read_text(encoding="utf-8"), encoding="utf-8")
        return real(config, **arguments)

    monkeypatch.setattr(compare, "train", changing)
    chains = {"long": {7: (first, second)}, "short": {7: (first, first)}}
    experiment = replace(tiny_experiment(sft=first), stages=("one", "two"), runs=chains)
    results = run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    ((failed, seed),) = results.failed
    assert failed.name == "long"
    assert (seed.error or "").startswith("stage two: a file it learns from or is measured on changed since it began")


def test_stages_follow_each_other_and_all_are_asked_after_each(tmp_path: Path) -> None:
    """The second stage begins where the first ended: with a learning rate too small to move anything, nothing moves."""
    first, other = monitored(tmp_path, "a", max_steps=2), write_rows(tmp_path / "other.jsonl", ROWS[:3])
    second = monitored(tmp_path, "b", training_file=other, max_steps=3)
    still = second.model_copy(update={"learning_rate": 1e-12})
    plain = tiny_experiment(sft=first)
    experiment = replace(
        plain, stages=("one", "two"), runs={"moving": {7: (first, second)}, "still": {7: (first, still)}}
    )
    results = run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    log_prob = "capitals_log_prob"
    assert results.stages == ("one", "two")
    moving, still_run = results.runs
    alone = run_experiment(plain, tmp_path / "alone", Console(quiet=True)).runs[0].scores
    for run in results.runs:
        assert run.after("one") == alone
        assert run.after("two") == run.scores
        assert [step for step, _ in run.seeds[0].curves["loss"]] == [1, 2, 3, 4, 5]
    assert run_of(results, "moving").events(Tag.MONITORING)[-1].values["delta_w_norm"] > 0.0
    assert "delta_w_norm" not in moving.seeds[0].curves  # from each stage's own start: no curve of anything
    assert (moving.config["max_steps"], moving.config["learning_rate"]) == ({"one": 2, "two": 3}, 0.5)
    assert still_run.config["learning_rate"] == {"one": 0.5, "two": 1e-12}
    rows = list(csv.DictReader(io.StringIO(results_csv(results))))
    means = {
        (row["model"], row["stage"], row["seed"]): float(row["mean"]) for row in rows if row["measure"] == log_prob
    }
    for run in results.runs:
        for stage in ("one", "two"):
            mean = run.after(stage)[log_prob].mean
            assert means[run.name, stage, "7"] == pytest.approx(means[run.name, stage, "all"]) == pytest.approx(mean)
    assert next((model, stage) for model, stage, seed in means if seed == "all") == ("base", "")
    assert still_run.scores[log_prob].mean == pytest.approx(alone[log_prob].mean, abs=1e-4)
    assert abs(moving.scores[log_prob].mean - alone[log_prob].mean) > 0.01
    assert moving.scores["kl_vs_base"].mean > moving.after("one")["kl_vs_base"].mean > 0.0
    assert {path.name.rpartition("-")[0] for path in (tmp_path / "out" / "runs").iterdir()} == {
        *("moving-seed7-one", "moving-seed7-two", "still-seed7-one", "still-seed7-two"),
    }
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert 'data-run="still" data-stage="two" data-stage-measure="trained"' in page
    assert (tmp_path / "out" / "stages.png").read_bytes()[:4] == b"\x89PNG"
    written = json.loads((tmp_path / "out" / "results.json").read_text(encoding="utf-8"))
    assert ExperimentResults.from_json(written) == results
    summary = written["models"][1]["summary_after"]["one"][log_prob]
    assert (summary["mean"], summary["low"]) == (alone[log_prob].mean, alone[log_prob].interval.low)


def test_stages_with_merged_models_and_scores_on_the_way(tmp_path: Path) -> None:
    """Steps count on, no step comes twice, and the KL is to the model before the first stage whatever was merged."""
    options: dict[str, Any] = {"merge_before_push": True, "save_steps": 1, "max_steps": 2}
    chain = (small_config(tmp_path, "a", **options), small_config(tmp_path, "b", **options, learning_rate=0.2))
    plain = tiny_experiment(sft=chain[0])
    experiment = replace(plain, stages=("one", "two"), runs={"sft": {7: chain}}, evaluate_every=1)
    run = run_experiment(experiment, tmp_path / "out", Console(quiet=True)).runs[0]
    curve = run.seeds[0].curves["score/kl_vs_base"]
    assert [step for step, _ in curve] == [0, 1, 2, 3, 4]
    assert curve[2][1] == pytest.approx(run.after("one")["kl_vs_base"].mean, rel=1e-3)
    assert curve[4][1] == pytest.approx(run.scores["kl_vs_base"].mean, rel=1e-3)


def test_a_stage_that_fails_names_itself(tmp_path: Path) -> None:
    first = small_config(tmp_path, "a")
    second = failing(tmp_path, "b")
    chains = {"bad": {7: (first, second)}, "good": {7: (first, first)}}
    experiment = replace(tiny_experiment(sft=first), stages=("one", "two"), runs=chains)
    results = run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    ((failed, seed),) = results.failed
    assert failed.name == "bad"
    assert (seed.error or "").startswith("stage two: ")
