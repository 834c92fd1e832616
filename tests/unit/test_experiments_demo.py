"""The demo's settings, and arguments that are refused before any work."""

from pathlib import Path

import pytest
import yaml
from rich.console import Console

from tutelage.config import OBJECTIVES, Purpose, TrainingConfig
from tutelage.data.conversations import read_conversations
from tutelage.errors import ConfigError, OutputError
from tutelage.evaluation import read_choice_questions, read_questions
from tutelage.experiments import Experiment, calling_codes, load_experiment, run_demo
from tutelage.experiments.demo import COMMON, SETTINGS, STEPS, experiment_content, write_experiment

QUIET = Console(quiet=True)
EXAMPLE = Path(__file__).parents[2] / "examples" / "calling_codes"


def demo(folder: Path, *runs: str, seed: int = 1, steps: int = STEPS) -> Experiment:
    write_experiment(folder, experiment_content(runs or list(SETTINGS), seeds=[seed], steps=steps))
    return load_experiment(folder / "experiment.yaml")


def config_of(experiment: Experiment, name: str) -> TrainingConfig:
    ((config,),) = experiment.runs[name].values()
    return config


def test_every_objective_that_learns_from_answers_alone_has_settings() -> None:
    """grpo would need a reward worth having for facts, which is what it would have to find out first."""
    learn = {name for name, own in OBJECTIVES.items() if own.purpose is Purpose.CONVERSATIONS}
    assert set(SETTINGS) == learn - {"grpo"}


def test_objectives_differ_in_their_own_settings_only(tmp_path: Path) -> None:
    """Same model, data, steps, batch and seed: what else differs stands in the table."""
    experiment = demo(tmp_path, seed=3)
    flat = {name: config_of(experiment, name).flat() for name in SETTINGS}
    for name, options in flat.items():
        own = {"loss", "learning_rate", *(key for key in options if key.startswith(f"{name}_"))}
        reference = {key: value for key, value in flat["sft"].items() if key not in own}
        assert {key: value for key, value in options.items() if key not in own} == reference
    assert flat["sft"]["training_file"] == str(tmp_path / "data" / "train.jsonl")
    assert (flat["sft"]["seed"], flat["sft"]["max_steps"]) == (3, STEPS)
    assert flat["dft"]["per_device_train_batch_size"] == COMMON["per_device_train_batch_size"]


@pytest.mark.parametrize(("steps", "warmup", "every"), [(1, 0, 1), (3, 0, 1), (8, 2, 2), (40, 4, 10)])
def test_short_runs_warm_up_and_measure_in_proportion(tmp_path: Path, steps: int, warmup: int, every: int) -> None:
    config = config_of(demo(tmp_path, "sft", steps=steps), "sft")
    assert (config.warmup_steps, config.monitoring_eval_steps) == (warmup, every)


def test_the_report_says_when_steps_are_not_the_tuned_ones(tmp_path: Path) -> None:
    assert demo(tmp_path, "sft").texts.notes == ()
    assert demo(tmp_path, "sft", steps=2).texts.notes == (
        f"The settings were tuned for {STEPS} steps; this report is of 2.",
    )


def test_the_files_hold_the_facts(tmp_path: Path) -> None:
    demo(tmp_path)
    rows = read_conversations(tmp_path / "data" / "train.jsonl")
    assert [row.answer for row in rows] == [fact.answer for fact in calling_codes.trained_facts()]
    asked = {
        "trained": calling_codes.trained_questions(),
        "paraphrase": calling_codes.paraphrased_questions(),
        "unseen": calling_codes.unseen_questions(),
    }
    for name, questions in asked.items():
        read = read_questions(tmp_path / "data" / f"{name}.jsonl")
        assert [(item.prompt, item.target) for item in read] == [(item.prompt, item.target) for item in questions]
    choices = read_choice_questions(tmp_path / "data" / "capitals.jsonl")
    assert [(item.prompt, item.choices, item.right) for item in choices] == [
        (item.prompt, item.choices, item.right) for item in calling_codes.capital_questions()
    ]


def test_what_is_asked_of_all(tmp_path: Path) -> None:
    evaluations = demo(tmp_path).evaluations
    assert [(item.name, item.role.value, item.title) for item in evaluations] == [
        ("trained", "task", "trained question"),
        ("paraphrase", "task", "paraphrase"),
        ("unseen", "check", "unseen country"),
        ("capitals", "prior", "capitals"),
    ]


def test_the_example_is_the_demo_with_three_seeds(tmp_path: Path) -> None:
    write_experiment(tmp_path, experiment_content(list(SETTINGS), seeds=[1, 2, 3], steps=STEPS))
    for path in sorted(tmp_path.rglob("*.*")):
        if path.is_file():
            shown = EXAMPLE / path.relative_to(tmp_path)
            assert shown.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), shown
    assert yaml.safe_load((EXAMPLE / "experiment.yaml").read_text(encoding="utf-8"))["seeds"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("runs", "seed", "steps", "message"),
    [
        (["sft", "sdtf"], 1, None, "--runs: 'sdtf' is not a run; did you mean 'sdft'?; choose among sft, dft, sdft"),
        (["sft", "sft"], 1, None, "--runs: 'sft' is there 2 times; name each run once"),
        ([], 1, None, "--runs: none is given; name at least one"),
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


def test_a_folder_that_a_demo_began_in_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []
    monkeypatch.setattr("tutelage.experiments.demo.run_experiment", lambda _, output, console: seen.append(output))
    for _ in range(2):
        run_demo(["sft"], tmp_path / "demo", seed=1, console=QUIET)
    assert seen == [tmp_path / "demo"] * 2


def test_what_somebody_else_compares_is_not_overwritten(tmp_path: Path) -> None:
    demo(tmp_path, "sft")
    file, data = tmp_path / "experiment.yaml", tmp_path / "data" / "train.jsonl"
    for path, changed in ((file, file.read_text().replace("0.001", "0.002")), (data, '{"prompt": "a"}\n')):
        before = path.read_text(encoding="utf-8")
        path.write_text(changed, encoding="utf-8")
        with pytest.raises(OutputError, match="is not what the demo writes; compare it with: tutelage compare"):
            run_demo(["sft"], tmp_path, seed=1, console=QUIET)
        assert path.read_text(encoding="utf-8") == changed
        path.write_text(before, encoding="utf-8")
