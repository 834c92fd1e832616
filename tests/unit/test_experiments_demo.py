"""The demo's settings, and arguments that are refused before any work."""

from pathlib import Path

import pytest
from rich.console import Console

from tutelage.config import OBJECTIVES
from tutelage.errors import ConfigError, OutputError
from tutelage.experiments import Experiment, run_demo
from tutelage.experiments.demo import COMMON, SETTINGS, STEPS, demo_config, demo_experiment

QUIET = Console(quiet=True)


def test_every_objective_has_settings() -> None:
    assert set(SETTINGS) == set(OBJECTIVES)


def test_objectives_differ_in_their_own_settings_only(tmp_path: Path) -> None:
    """Same model, data, steps, batch and seed: what else differs stands in the table."""
    flat = {name: demo_config(name, tmp_path, seed=3, steps=STEPS).flat() for name in SETTINGS}
    for name, options in flat.items():
        own = {"loss", "learning_rate", *(key for key in options if key.startswith(f"{name}_"))}
        reference = {key: value for key, value in flat["sft"].items() if key not in own}
        assert {key: value for key, value in options.items() if key not in own} == reference
    assert flat["sft"]["training_file"] == str(tmp_path / "data" / "train.jsonl")
    assert (flat["sft"]["seed"], flat["sft"]["max_steps"]) == (3, STEPS)
    assert flat["dft"]["per_device_train_batch_size"] == COMMON["per_device_train_batch_size"]


@pytest.mark.parametrize(("steps", "warmup", "every"), [(1, 0, 1), (3, 0, 1), (8, 2, 2), (40, 4, 10)])
def test_short_runs_warm_up_and_measure_in_proportion(tmp_path: Path, steps: int, warmup: int, every: int) -> None:
    config = demo_config("sft", tmp_path, seed=1, steps=steps)
    assert (config.warmup_steps, config.monitoring_eval_steps) == (warmup, every)


def test_the_report_says_when_steps_are_not_the_tuned_ones(tmp_path: Path) -> None:
    assert demo_experiment(["sft"], tmp_path, seed=1).notes == ()
    assert demo_experiment(["sft"], tmp_path, seed=1, max_steps=2).notes == (
        f"The settings were tuned for {STEPS} steps; this report is of 2.",
    )


@pytest.mark.parametrize(
    ("runs", "seed", "steps", "message"),
    [
        (["sft", "sdtf"], 1, None, "--runs: 'sdtf' is not a run; did you mean 'sdft'?; choose among sft, dft, sdft"),
        (["sft", "sft"], 1, None, "--runs: 'sft' is there 2 times; name each run once"),
        ([], 1, None, "runs: none is given; name at least one"),
        (["sft"], 1, 0, "--max-steps: 0 does not fit; train at least 1 step"),
        (["sft"], -1, 1, "--seed: -1 does not fit; choose one from 0 to 4294967295"),
    ],
)
def test_wrong_arguments_are_refused_and_nothing_is_written(
    tmp_path: Path, runs: list[str], seed: int, steps: int | None, message: str
) -> None:
    output = tmp_path / "demo"
    with pytest.raises(ConfigError) as caught:
        run_demo(runs, output, seed=seed, max_steps=steps, console=QUIET)
    assert str(caught.value) == message
    assert not output.exists()


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="the folder is not empty; choose another --output, or remove it first"):
        run_demo(["sft"], tmp_path, seed=1, console=QUIET)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_runs_of_different_models_are_not_compared(tmp_path: Path) -> None:
    first = demo_config("sft", tmp_path, seed=1, steps=1)
    second = first.model_copy(update={"model": "other"})
    with pytest.raises(ConfigError, match=r"they start from different models or templates \(other, smollm2\)"):
        Experiment("x", "x", {"a": first, "b": second}, (), (), task="trained")
    with pytest.raises(ConfigError, match="'base' is the name of the model before training"):
        Experiment("x", "x", {"base": first}, (), (), task="trained")
