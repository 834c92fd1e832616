"""A whole comparison on the tiny model: numbers, files, a run that fails, ctrl-C."""

import csv
import io
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.small_runs import ROWS, small_config, write_rows
from tutelage import TrainingConfig
from tutelage.data.conversations import Message
from tutelage.errors import ConfigError, DataError, Interrupted, OutputError, TrainingError
from tutelage.evaluation import (
    ChoiceEvaluation,
    ChoiceQuestion,
    GenerateEvaluation,
    Question,
    Role,
    exact_match,
)
from tutelage.events import Tag
from tutelage.experiments import (
    Experiment,
    ExperimentResults,
    check_experiment,
    compare,
    planning,
    run_experiment,
    unequal_passes,
)
from tutelage.experiments.results import ModelResult
from tutelage.experiments.specification import Texts
from tutelage.experiments.tables import results_csv
from tutelage.files import only_process_in
from tutelage.monitoring import everyday_prompts
from tutelage.training import Run
from tutelage.training.checks import checked_inputs
from tutelage.training.inputs import TrainingInputs

PROMPTS = 3
TOKENS = 8


def tiny_experiment(
    *, seeds: tuple[int, ...] = (7,), every: int | None = None, **configs: TrainingConfig
) -> Experiment:
    asked = [Question((Message("user", question),), answer, question) for question, answer in ROWS]
    choice = ChoiceQuestion((Message("user", "Count."),), ("one", "two", "four"), 1)
    return Experiment(
        name="tiny",
        texts=Texts("Tiny"),
        runs={
            name: {seed: (config.model_copy(update={"seed": seed}),) for seed in seeds}
            for name, config in configs.items()
        },
        evaluations=(
            GenerateEvaluation(
                name="trained",
                title="trained question",
                role=Role.TASK,
                identity={"version": 1},
                questions=tuple(asked),
                scorer=exact_match,
                max_new_tokens=TOKENS,
            ),
            ChoiceEvaluation(name="capitals", title="capitals", role=Role.PRIOR, questions=(choice, choice)),
        ),
        drift_prompts=tuple(everyday_prompts()[:PROMPTS]),
        drift_max_new_tokens=TOKENS,
        evaluate_every=every,
    )


def run_named(results: ExperimentResults, name: str) -> ModelResult:
    return next(run for run in results.runs if run.name == name)


def run_of(results: ExperimentResults, name: str) -> Run:
    return Run.open(run_named(results, name).seeds[0].run_path or "")


def monitored(folder: Path, name: str, **options: Any) -> TrainingConfig:
    """A run that measures the KL of the experiment itself."""
    prompts = folder / "prompts.jsonl"
    texts = [prompt.messages[0].content for prompt in everyday_prompts()[:PROMPTS]]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts), encoding="utf-8")
    defaults = {"monitoring_eval_steps": 1, "monitoring_prompts": prompts, "monitoring_max_new_tokens": TOKENS}
    return small_config(folder, name, **(defaults | options))


def failing(folder: Path, name: str) -> TrainingConfig:
    """A run that nobody can know will fail: its reward raises for answers that the model gives."""
    reward = folder / "reward.py"
    reward.write_text(
        "def score(*, completions, gold_response, **columns):\n"
        "    if [turns[-1]['content'] for turns in completions] != gold_response:\n"
        "        raise ValueError('no scores today')\n"
        "    return [1.0] * len(gold_response)\n",
        encoding="utf-8",
    )
    return small_config(folder, name, loss="grpo", grpo_reward_function=f"{reward}:score", grpo_num_generations=4)


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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('no scores today')", "raised ValueError: no scores today (bad.py:2)"),
        ("return [1.0]", "returned 1 scores for 4 answers"),
        ("return [None] * 4", "has no finite score for any of the gold answers"),
    ],
)
def test_a_reward_that_cannot_work_is_found_before_anything_is_trained(tmp_path: Path, body: str, message: str) -> None:
    reward = tmp_path / "bad.py"
    reward.write_text(f"def score(**columns):\n    {body}\n", encoding="utf-8")
    bad = small_config(tmp_path, "bad", loss="grpo", grpo_reward_function=f"{reward}:score", grpo_num_generations=4)
    experiment = tiny_experiment(adapter=small_config(tmp_path, "adapter"), bad=bad)
    with pytest.raises(TrainingError) as caught:
        run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    assert str(caught.value).startswith(f"runs.bad: grpo_reward_function '{reward}:score' ")
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


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


def test_what_a_run_cannot_read_stops_the_comparison_before_it_begins(tmp_path: Path) -> None:
    """Also the third run's second stage; nothing was written."""
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n', encoding="utf-8")
    fine = small_config(tmp_path, "sft")
    late = small_config(tmp_path, "late", training_file=tmp_path / "bad.jsonl")
    chains = {"sft": {7: (fine, fine)}, "late": {7: (fine, late)}}
    experiment = replace(tiny_experiment(sft=fine), stages=("one", "two"), runs=chains)
    with pytest.raises(DataError, match=r"^runs\.late: .*bad\.jsonl:1: "):
        run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_judge_that_is_not_there_stops_the_comparison_before_it_begins(tmp_path: Path) -> None:
    judged: dict[str, Any] = {"grpo_reward_function": "llm_judge", "grpo_judge_model": "judge"}
    judged |= {"grpo_judge_base_url": "http://127.0.0.1:9/v1", "grpo_num_generations": 4}
    runs = {"sft": small_config(tmp_path, "sft"), "judged": small_config(tmp_path, "judged", loss="grpo", **judged)}
    with pytest.raises(ConfigError, match=r"^runs\.judged: .*127\.0\.0\.1:9"):
        run_experiment(tiny_experiment(**runs), tmp_path / "out", Console(quiet=True))


def test_what_is_to_be_trained_is_known_before(tmp_path: Path) -> None:
    """Nine rows, of which one is too long. Packs of 128 tokens hold several. Of eight rows three steps of three are an
    epoch, the last with two; grpo samples four answers to each of two prompts, and four steps are an epoch."""
    data = write_rows(tmp_path / "data.jsonl", [*ROWS, ("long", "so " * 200)])
    short: dict[str, Any] = {"training_file": data, "max_seq_length": 64, "on_too_long": "drop", "max_steps": 6}
    longer = short | {"max_seq_length": 128}
    packed = small_config(tmp_path, "packed", **longer, packing=True, per_device_train_batch_size=2)
    rows = small_config(tmp_path, "rows", **short, per_device_train_batch_size=3)
    few = small_config(tmp_path, "few", **short, per_device_train_batch_size=2)
    judged = small_config(
        *(tmp_path, "judged"),
        **short,
        loss="grpo",
        grpo_reward_function="exact_match",
        grpo_num_generations=4,
        grpo_max_completion_length=4,
    )
    experiment = tiny_experiment(seeds=(1, 2), packed=packed, rows=rows, judged=judged, few=few)
    by_packs, by_rows, by_answers, by_few = check_experiment(experiment)
    assert [run.seeds for run in (by_packs, by_rows, by_answers)] == [(1, 2)] * 3
    assert (by_rows.sizes[0].rows, by_rows.sizes[0].units, by_rows.sizes[0].passes) == (8, 8, 2.0)
    assert by_packs.sizes[0].rows == 8 > by_packs.sizes[0].units
    assert by_packs.sizes[0].units in (3, 4)  # two steps of two packs, or of two and one
    assert (by_packs.sizes[0].passes, by_few.sizes[0].passes) == (3.0, 1.5)
    assert (by_answers.sizes[0].answers, by_answers.sizes[0].per_step, by_answers.sizes[0].passes) == (8, 2, 12 / 9)
    assert [run.gold_rewards for run in (by_packs, by_rows, by_answers)] == [(None,), (None,), (1.0,)]
    assert all("1 of 9 rows" in run.warnings[0] for run in (by_packs, by_rows))
    assert by_answers.warnings == ()  # whose own answers are short
    said = "the runs do not go over their rows equally often"
    assert unequal_passes([by_packs, by_rows, by_answers], ()) == f"{said} (packed 3, rows 2, judged 1.33 times)"
    remedy = "; with packing: false a step is as many rows for all"
    assert unequal_passes([by_packs, by_few], ()) == f"{said} (packed 3, few 1.5 times){remedy}"
    assert unequal_passes([by_rows, by_rows], ()) is None
    assert unequal_passes([], ()) is None


def test_a_file_is_no_folder_for_a_comparison(tmp_path: Path) -> None:
    experiment = tiny_experiment(sft=small_config(tmp_path, "sft"))
    (tmp_path / "out").write_text("", encoding="utf-8")
    with pytest.raises(OutputError, match="out is a file; name a folder"):
        run_experiment(experiment, tmp_path / "out", Console(quiet=True))


def test_a_comparison_that_is_trained_needs_no_judge_of_its_rewards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def checked(config: TrainingConfig) -> TrainingInputs:
        asked.append(config.loss)
        return checked_inputs(config)

    monkeypatch.setattr(planning, "checked_inputs", checked)
    experiment = tiny_experiment(seeds=(1, 2), sft=small_config(tmp_path, "sft"))
    run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    assert asked == ["sft"]  # the seeds have their rows in common
    shutil.rmtree(next((tmp_path / "out" / "runs").glob("sft-seed2-*")))
    run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    assert asked == ["sft", "sft"]
    run_experiment(experiment, tmp_path / "out", Console(quiet=True))
    assert asked == ["sft", "sft"]


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


def test_runs_that_differ_in_nothing_are_not_compared(tmp_path: Path) -> None:
    same = small_config(tmp_path, "a")
    with pytest.raises(ConfigError, match="'one' and 'two' differ in nothing; change an option of one"):
        tiny_experiment(one=same, two=same.model_copy(update={"output_dir": tmp_path / "b", "report_to": ["wandb"]}))


def test_four_bits_are_compared_with_four_bits(tmp_path: Path) -> None:
    plain = small_config(tmp_path, "a")
    quantised = plain.model_copy(update={"load_in_4bit": True})
    with pytest.raises(ConfigError, match="load_in_4bit is true for some and false for others"):
        tiny_experiment(a=plain, b=quantised)
    with pytest.raises(ConfigError, match="measured against the base model; set merge_before_push: false"):
        tiny_experiment(b=quantised.model_copy(update={"merge_before_push": True}))
    tiny_experiment(b=quantised)


def test_runs_of_different_models_are_not_compared(tmp_path: Path) -> None:
    first = small_config(tmp_path, "a")
    second = first.model_copy(update={"model": "other"})
    with pytest.raises(ConfigError, match="they start from different models or templates"):
        tiny_experiment(a=first, b=second)
    with pytest.raises(ConfigError, match="'base' is the name of the model before training"):
        tiny_experiment(base=first)
    with pytest.raises(ConfigError, match="runs: none is given; name at least one"):
        tiny_experiment()


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


def test_a_judge_that_is_not_there_stops_before_the_first_run(tmp_path: Path) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Judged(GenerateEvaluation):
        def check(self) -> None:
            raise ConfigError("judge: nothing answers")

    experiment = tiny_experiment(sft=small_config(tmp_path, "sft"))
    judged = Judged(name="judged", title="judged", role=Role.FREEFORM, questions=(), scorer=exact_match)
    with pytest.raises(ConfigError, match="nothing answers"):
        run_experiment(replace(experiment, evaluations=(judged,)), tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()
