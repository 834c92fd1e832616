"""What of a comparison cannot work, or is there already, is known before anything is trained."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.small_comparisons import tiny_experiment
from tests.small_runs import ROWS, small_config, write_rows
from tutelage import TrainingConfig
from tutelage.errors import ConfigError, DataError, OutputError, TrainingError
from tutelage.evaluation import (
    GenerateEvaluation,
    Role,
    exact_match,
)
from tutelage.experiments import (
    check_experiment,
    planning,
    run_experiment,
    unequal_passes,
)
from tutelage.training.checks import checked_inputs
from tutelage.training.inputs import TrainingInputs


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
