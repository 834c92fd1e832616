"""A whole comparison on the tiny model: numbers, files, a run that fails, ctrl-C."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.small_runs import ROWS, small_config
from tutelage import TrainingConfig
from tutelage.data.conversations import Message
from tutelage.errors import Interrupted, TrainingError
from tutelage.evaluation import ChoiceQuestion, Question, exact_match
from tutelage.events import Tag
from tutelage.experiments import Experiment, ExperimentResults, compare, run_experiment
from tutelage.experiments.demo import CAPITALS, CAPITALS_LOG_PROB, TRAINED
from tutelage.experiments.specification import ChoiceEvaluation, GenerateEvaluation
from tutelage.monitoring import everyday_prompts
from tutelage.training import Run

PROMPTS = 3
TOKENS = 8


def tiny_experiment(folder: Path, **configs: TrainingConfig) -> Experiment:
    asked = [Question((Message("user", question),), answer, question) for question, answer in ROWS]
    choice = ChoiceQuestion((Message("user", "Count."),), ("one", "two", "four"), 1)
    return Experiment(
        name="tiny",
        title="Tiny",
        configs=configs,
        evaluations=(
            GenerateEvaluation(TRAINED, tuple(asked), exact_match, TOKENS),
            ChoiceEvaluation(CAPITALS, CAPITALS_LOG_PROB, (choice, choice)),
        ),
        drift_prompts=tuple(everyday_prompts()[:PROMPTS]),
        drift_max_new_tokens=TOKENS,
        task=TRAINED.name,
    )


def monitored(folder: Path, name: str, **options: Any) -> TrainingConfig:
    """A run that measures the KL of the experiment itself."""
    prompts = folder / "prompts.jsonl"
    texts = [prompt.messages[0].content for prompt in everyday_prompts()[:PROMPTS]]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    defaults = {"monitoring_eval_steps": 1, "monitoring_prompts": prompts, "monitoring_max_new_tokens": TOKENS}
    return small_config(folder, name, **(defaults | options))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExperimentResults, Path, str]:
    """An adapter, a merged one, full fine-tuning, and a run whose file is missing."""
    folder = tmp_path_factory.mktemp("compared")
    output = folder / "out"
    console = Console(record=True, file=io.StringIO())
    experiment = tiny_experiment(
        folder,
        adapter=monitored(folder, "adapter"),
        merged=monitored(folder, "merged", merge_before_push=True),
        full=monitored(folder, "full", is_peft=False, learning_rate=0.05),
        broken=monitored(folder, "broken", training_file=folder / "nowhere.jsonl"),
    )
    (folder / "nowhere.jsonl").write_text("{}\n", encoding="utf-8")
    results = run_experiment(experiment, output, console)
    return results, output, console.export_text()


@pytest.mark.parametrize("name", ["adapter", "merged", "full"])
def test_drift_is_what_monitoring_measured_at_the_last_step(
    compared: tuple[ExperimentResults, Path, str], name: str
) -> None:
    """Two ways to the same number: inside the run with weights put aside, and from the files it left.

    A merged model loaded with a fresh adapter beside it would have a KL of 0.
    """
    results, output, _ = compared
    last = Run.open(output / "runs" / name).events(Tag.MONITORING)[-1].values
    scores = next(run for run in results.runs if run.name == name).scores
    assert last["kl_vs_base"] > 1e-4
    assert scores["kl_vs_base"].mean == pytest.approx(last["kl_vs_base"], rel=1e-3)
    assert scores["kl_base_vs_model"].mean == pytest.approx(last["kl_base_vs_model"], rel=1e-3)


def test_merged_or_not_the_scores_are_the_same(compared: tuple[ExperimentResults, Path, str]) -> None:
    adapter, merged = (next(run for run in compared[0].runs if run.name == name) for name in ("adapter", "merged"))
    assert adapter.answers["trained"] == merged.answers["trained"]
    assert adapter.scores["capitals_log_prob"].mean == pytest.approx(merged.scores["capitals_log_prob"].mean, rel=1e-4)


def test_the_base_has_not_moved(compared: tuple[ExperimentResults, Path, str]) -> None:
    assert compared[0].base.scores["kl_vs_base"].items == (0.0,) * PROMPTS


def test_a_run_that_fails_is_reported_and_the_others_go_on(compared: tuple[ExperimentResults, Path, str]) -> None:
    results, output, console = compared
    assert [run.name for run in results.runs] == ["adapter", "merged", "full"]
    assert [run.name for run in results.failed] == ["broken"]
    assert "nowhere.jsonl:1" in (results.failed[0].error or "")
    assert "warning: broken failed and is left out: " in console
    assert 'data-failed="broken"' in (output / "report.html").read_text(encoding="utf-8")


def test_progress_names_every_phase(compared: tuple[ExperimentResults, Path, str]) -> None:
    phases = ["evaluating base", "training adapter (1/4)", "evaluating adapter (1/4)", "training full (3/4)", "writing"]
    places = [compared[2].index(phase) for phase in phases]
    assert places == sorted(places)


def test_everything_is_on_disk(compared: tuple[ExperimentResults, Path, str]) -> None:
    results, output, _ = compared
    assert {path.name for path in output.iterdir()} == {
        "report.html",
        "results.csv",
        "results.json",
        "runs",
        "tradeoff.png",
        "training_trajectories.png",
    }
    read = ExperimentResults.from_json(json.loads((output / "results.json").read_text(encoding="utf-8")))
    assert read == results
    assert results.data.keys() == {"rows.jsonl", "nowhere.jsonl"}
    assert results.environment["versions"].keys() >= {"torch", "transformers", "tutelage"}


def test_curves_are_the_runs_own(compared: tuple[ExperimentResults, Path, str]) -> None:
    results, output, _ = compared
    run = Run.open(output / "runs" / "adapter")
    curves = results.runs[0].curves
    assert curves["loss"] == [(event.step, event.values["loss"]) for event in run.events(Tag.TRAIN)]
    assert [step for step, _ in curves["kl_vs_base"]] == [0, 1, 2]
    assert curves["kl_vs_base"][0] == (0, 0.0)


def test_no_run_left_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    experiment = tiny_experiment(tmp_path, sft=small_config(tmp_path, "sft", training_file=tmp_path / "empty.jsonl"))
    with pytest.raises(TrainingError, match="no run finished, so there is nothing to compare; sft: "):
        run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped after step 1 of 2")])
def test_ctrl_c_keeps_finished_runs_and_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException
) -> None:
    real = compare.train

    def second_is_stopped(config: TrainingConfig, **arguments: Any) -> Run:
        if config.output_dir is not None and config.output_dir.name == "dft":
            raise stop
        return real(config, **arguments)

    monkeypatch.setattr(compare, "train", second_is_stopped)
    experiment = tiny_experiment(
        tmp_path, sft=small_config(tmp_path, "sft"), dft=small_config(tmp_path, "dft", loss="dft")
    )
    output = tmp_path / "out"
    with pytest.raises(Interrupted) as caught:
        run_experiment(experiment, output, Console(quiet=True))
    said = str(stop) if isinstance(stop, Interrupted) else "stopped"
    assert str(caught.value) == f"{said}; finished runs: {output / 'runs' / 'sft'}; no report was written"
    assert Run.open(output / "runs" / "sft").model_path.is_dir()
