"""A whole comparison on the tiny model: numbers, files, a run that fails, ctrl-C."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.small_comparisons import PROMPTS, failing, monitored, run_named, run_of, tiny_experiment
from tests.small_runs import ROWS, small_config
from tutelage import TrainingConfig
from tutelage.errors import Interrupted, OutputError, TrainingError
from tutelage.events import Tag
from tutelage.experiments import (
    ExperimentResults,
    compare,
    run_experiment,
)
from tutelage.files import only_process_in
from tutelage.training import Run


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentResults, Path, str]:
    """An adapter, a merged one, full fine-tuning, and a run whose reward raises."""
    folder = tmp_path_factory.mktemp("compared")
    output = folder / "out"
    console = Console(record=True, file=io.StringIO())
    experiment = tiny_experiment(
        adapter=monitored(folder, "adapter"),
        merged=monitored(folder, "merged", merge_before_push=True),
        full=monitored(folder, "full", is_peft=False, learning_rate=0.05),
        broken=failing(folder, "broken"),
    )
    results = run_experiment(experiment, output, console)
    return results, output, console.export_text()


@pytest.mark.parametrize("name", ["adapter", "merged", "full"])
def test_drift_is_what_monitoring_measured_at_the_last_step(
    compared: tuple[ExperimentResults, Path, str], name: str
) -> None:
    """Two ways to the same number: inside the run with weights put aside, and from the files it left.

    A merged model loaded with a fresh adapter beside it would have a KL of 0.
    """
    results = compared[0]
    last = run_of(results, name).events(Tag.MONITORING)[-1].values
    scores = run_named(results, name).scores
    assert last["kl_vs_base"] > 1e-4
    assert scores["kl_vs_base"].mean == pytest.approx(last["kl_vs_base"], rel=1e-3)
    assert scores["kl_base_vs_model"].mean == pytest.approx(last["kl_base_vs_model"], rel=1e-3)


def test_merged_or_not_the_scores_are_the_same(compared: tuple[ExperimentResults, Path, str]) -> None:
    adapter, merged = (run_named(compared[0], name) for name in ("adapter", "merged"))
    assert adapter.answers["trained"] == merged.answers["trained"]
    assert adapter.scores["capitals_log_prob"].mean == pytest.approx(merged.scores["capitals_log_prob"].mean, rel=1e-4)


def test_the_base_has_not_moved(compared: tuple[ExperimentResults, Path, str]) -> None:
    assert compared[0].base.scores["kl_vs_base"].items == ((0.0,) * PROMPTS,)


def test_a_run_that_fails_is_reported_and_the_others_go_on(compared: tuple[ExperimentResults, Path, str]) -> None:
    results, output, console = compared
    assert [run.name for run in results.runs] == ["adapter", "merged", "full"]
    ((broken, seed),) = results.failed
    assert (broken.name, seed.seed) == ("broken", 7)
    assert "raised ValueError: no scores today" in (seed.error or "")
    assert "warning: broken, seed 7 (4/4) failed and is left out: " in console
    assert 'data-failed="broken"' in (output / "report.html").read_text(encoding="utf-8")


def test_progress_names_every_phase(compared: tuple[ExperimentResults, Path, str]) -> None:
    phases = ["evaluating base", "training adapter, seed 7 (1/4)", "evaluating adapter, seed 7 (1/4)"]
    phases += ["training full, seed 7 (3/4)", "writing"]
    places = [compared[2].index(phase) for phase in phases]
    assert places == sorted(places)


def test_everything_is_on_disk(compared: tuple[ExperimentResults, Path, str]) -> None:
    results, output, _ = compared
    assert {path.name for path in output.iterdir()} == {
        ".lock",
        "differences.csv",
        "evaluations",
        "report.html",
        "results.csv",
        "results.json",
        "runs",
        "tradeoff.pdf",
        "tradeoff.png",
        "training_trajectories.pdf",
        "training_trajectories.png",
    }
    read = ExperimentResults.from_json(json.loads((output / "results.json").read_text(encoding="utf-8")))
    assert read == results
    folders = {path.name for path in (output / "evaluations").iterdir()}
    assert folders == {"base", "adapter-seed7", "merged-seed7", "full-seed7"}
    rows = [json.loads(line) for line in (output / "evaluations/base/trained.jsonl").read_text().splitlines()]
    assert [row["target"] for row in rows] == [answer for _, answer in ROWS]
    assert results.environment["versions"].keys() >= {"torch", "transformers", "tutelage"}


def test_curves_are_the_runs_own(compared: tuple[ExperimentResults, Path, str]) -> None:
    run = run_of(compared[0], "adapter")
    curves = compared[0].runs[0].seeds[0].curves
    assert curves["loss"] == [(event.step, event.values["loss"]) for event in run.events(Tag.TRAIN)]
    assert [step for step, _ in curves["kl_vs_base"]] == [0, 1, 2]
    assert curves["kl_vs_base"][0] == (0, 0.0)


def test_no_run_left_is_an_error(tmp_path: Path) -> None:
    experiment = tiny_experiment(grpo=failing(tmp_path, "grpo"))
    with pytest.raises(TrainingError, match=r"no run finished, so there is nothing to compare; grpo \(seed 7\): "):
        run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out" / "report.html").exists()


def test_two_comparisons_do_not_work_in_one_folder(tmp_path: Path) -> None:
    experiment = tiny_experiment(sft=small_config(tmp_path, "sft"))
    output = tmp_path / "out"
    with (
        only_process_in(output, "--output"),
        pytest.raises(OutputError, match="out: another process works in this folder; wait for it, or choose another"),
    ):
        run_experiment(experiment, output, Console(quiet=True))
    run_experiment(experiment, output, Console(quiet=True))


def test_what_is_there_is_used_again_and_what_changed_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[tuple[str, int]] = []
    real = compare.train

    def noted(config: TrainingConfig, **arguments: Any) -> Run:
        trained.append((config.loss, config.seed))
        return real(config, **arguments)

    monkeypatch.setattr(compare, "train", noted)
    output = tmp_path / "out"

    def compared(**options: Any) -> ExperimentResults:
        sft, dft = small_config(tmp_path, "sft"), small_config(tmp_path, "dft", loss="dft", **options)
        return run_experiment(tiny_experiment(seeds=(1, 2), sft=sft, dft=dft), output, Console(quiet=True))

    first = compared()
    assert trained == [("sft", 1), ("sft", 2), ("dft", 1), ("dft", 2)]
    sft = run_named(first, "sft")
    assert sft.scores["capitals_log_prob"].items[0] != sft.scores["capitals_log_prob"].items[1]
    answers = output / "evaluations" / "base" / "trained.json"
    kept = answers.stat().st_mtime_ns

    second = compared()
    assert len(trained) == 4
    assert answers.stat().st_mtime_ns == kept
    assert all(seed.reused for run in second.runs for seed in run.seeds)
    assert [run.scores for run in second.runs] == [run.scores for run in first.runs]

    third = compared(learning_rate=0.1)
    assert trained[4:] == [("dft", 1), ("dft", 2)]
    assert run_named(third, "sft").scores == sft.scores
    assert run_named(third, "dft").scores != run_named(first, "dft").scores


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = tiny_experiment(sft=small_config(tmp_path, "sft", save_steps=1, max_steps=3))
    whole = run_experiment(experiment, tmp_path / "whole", Console(quiet=True))
    run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    (folder,) = (tmp_path / "out" / "runs").iterdir()
    shutil.rmtree(folder / "adapter")
    shutil.rmtree(folder / "checkpoint-3")
    events = folder / "events.jsonl"
    lines = events.read_text(encoding="utf-8").splitlines(keepends=True)
    events.write_text("".join(line for line in lines if json.loads(line)["step"] <= 2), encoding="utf-8")

    console = Console(record=True, file=io.StringIO())
    again = run_experiment(experiment, tmp_path / "out", console)
    assert "continuing sft, seed 7 (1/1)" in console.export_text()
    assert again.runs[0].scores == whole.runs[0].scores


def test_checkpoints_are_evaluated_on_the_way_if_asked(tmp_path: Path) -> None:
    experiment = tiny_experiment(every=1, sft=small_config(tmp_path, "sft", save_steps=1, max_steps=2))
    results = run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    curve = results.runs[0].seeds[0].curves["score/kl_vs_base"]
    assert [step for step, _ in curve] == [0, 1, 2]
    assert curve[0][1] == 0.0 < curve[1][1] < curve[2][1]
    assert curve[2][1] == pytest.approx(results.runs[0].scores["kl_vs_base"].mean, rel=1e-4)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped after step 1 of 2; continue with: this")])
def test_ctrl_c_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    real = compare.train

    def second_is_stopped(config: TrainingConfig, **arguments: Any) -> Run:
        if config.loss == "dft":
            raise stop
        return real(config, **arguments)

    monkeypatch.setattr(compare, "train", second_is_stopped)
    experiment = tiny_experiment(sft=small_config(tmp_path, "sft"), dft=small_config(tmp_path, "dft", loss="dft"))
    output = tmp_path / "out"
    with pytest.raises(Interrupted) as caught:
        run_experiment(experiment, output, Console(quiet=True))
    said = "stopped after step 1 of 2" if isinstance(stop, Interrupted) else "stopped"
    assert str(caught.value) == (
        f"{said}; what is done stays in {output}: the same command goes on from there; no report was written"
    )
    (kept,) = (output / "runs").iterdir()
    assert Run.open(kept).is_finished
