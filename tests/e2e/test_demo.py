"""The demo as a user runs it: the real model, one step, and what is then on disk."""

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    output = tmp_path_factory.mktemp("demo") / "out"
    arguments = ["demo", "--runs", "sdft", "--max-steps", "1", "--seed", "2", "--output", str(output)]
    result = subprocess.run(
        [sys.executable, "-m", "tutelage", *arguments],
        capture_output=True,
        text=True,
        check=False,
        # A user has all cores; tests of tiny models are limited to one.
        env={name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"},
    )
    assert result.returncode == 0, result.stderr
    return output, result


@pytest.fixture(scope="module")
def results(demo: tuple[Path, Any]) -> dict[str, Any]:
    return json.loads((demo[0] / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def scores(results: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (model["name"], name): {"items": model["seeds"][0]["scores"][name], "interval": interval}
        for model in results["models"]
        for name, interval in model["summary"].items()
    }


def test_all_files_are_there(demo: tuple[Path, Any]) -> None:
    output = demo[0]
    assert {path.name for path in output.iterdir()} == {
        *(".lock", "data", "experiment.yaml", "runs", "evaluations", "report.html", "results.csv", "results.json"),
        *("differences.csv", "tradeoff.pdf", "tradeoff.png", "training_trajectories.pdf", "training_trajectories.png"),
    }
    runs = sorted((output / "runs").iterdir())
    assert [path.name.rpartition("-")[0] for path in runs] == ["sdft-seed2"]
    for run in runs:
        assert {"run.json", "events.jsonl", "adapter"} <= {path.name for path in run.iterdir()}


def test_the_csv_has_the_numbers_of_the_json(
    demo: tuple[Path, Any], scores: dict[tuple[str, str], dict[str, Any]]
) -> None:
    with (demo[0] / "results.csv").open(encoding="utf-8", newline="") as file:
        all_seeds = [row for row in csv.DictReader(file) if row["seed"] == "all"]
    rows = {(row["model"], row["measure"]): float(row["mean"]) for row in all_seeds}
    assert rows == {key: score["interval"]["mean"] for key, score in scores.items()}


def test_the_page_has_the_numbers_of_the_json(
    demo: tuple[Path, Any], scores: dict[tuple[str, str], dict[str, Any]]
) -> None:
    html = (demo[0] / "report.html").read_text(encoding="utf-8")
    cells = re.findall(r'data-model="(\w+)" data-measure="(\w+)" data-value="([^"]+)"', html)
    assert {(model, measure): float(value) for model, measure, value in cells} == {
        key: score["interval"]["mean"] for key, score in scores.items()
    }


def test_base_and_runs_were_asked_everything(scores: dict[tuple[str, str], dict[str, Any]]) -> None:
    items = {"trained": 32, "paraphrase": 32, "unseen": 32, "capitals": 120, "capitals_log_prob": 120}
    items |= {"kl_vs_base": 16, "kl_base_vs_model": 16}
    assert {key: len(score["items"]) for key, score in scores.items()} == {
        (model, measure): count for model in ("base", "sdft") for measure, count in items.items()
    }


def test_the_real_model_knows_capitals_and_no_calling_codes(scores: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert scores["base", "trained"]["interval"]["mean"] == 0.0
    assert scores["base", "capitals"]["interval"]["mean"] > 0.8
    assert scores["base", "kl_vs_base"]["interval"]["mean"] == 0.0


def test_one_step_moved_the_model(scores: dict[tuple[str, str], dict[str, Any]]) -> None:
    assert 0.0 < scores["sdft", "kl_vs_base"]["interval"]["mean"] < 0.5


def test_configs_seed_data_and_versions_are_recorded(results: dict[str, Any]) -> None:
    assert results["seeds"] == [2]
    asked = ("train", "trained", "paraphrase", "unseen", "capitals")
    assert results["data"].keys() == {f"data/{name}.jsonl" for name in asked}
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in results["data"].values())
    configs = {model["name"]: model["seeds"][0]["config"] for model in results["models"]}
    assert (configs["sdft"]["loss"], configs["sdft"]["max_steps"], configs["sdft"]["seed"]) == ("sdft", 1, 2)
    assert results["environment"]["versions"].keys() >= {"python", "torch", "transformers", "peft"}


def test_the_summary_is_a_line_a_model_and_names_the_report(demo: tuple[Path, Any]) -> None:
    output, result = demo
    lines = result.stdout.strip().splitlines()
    assert lines[-1] == f"report: {output / 'report.html'}"
    assert [line.split()[0] for line in lines[-3:-1]] == ["base", "sdft"]


def test_progress_was_shown(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    shown = demo[1].stderr
    for phase in (
        "preparing the model",
        "evaluating base",
        "training sdft, seed 2 (1/1)",
        "evaluating sdft, seed 2 (1/1)",
        "writing",
    ):
        assert phase in shown
    assert "Traceback" not in shown
    assert "Warning" not in shown
