"""What must not change a loss, a gradient or a weight, in a real Axolotl. Loss and gradient norm agree to 1e-5."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.real_axolotl.configs import STEPS
from tests.real_axolotl.conftest import Runs
from tests.real_axolotl.runs import CHUNKED, ROOT, AxolotlRun
from tests.small_runs import largest_difference, small_config, trained_weights
from tutelage import train
from tutelage.config import load_config
from tutelage.training.inputs import prepare_inputs
from tutelage.training.token_loss import token_loss_sum

TIMES = ("runtime", "per_second", "per_sec_per_gpu")


def assert_same_steps(run: AxolotlRun, other: AxolotlRun, tolerance: float = 1e-5) -> None:
    """Loss, gradient norm and NLL of every step."""
    assert len(run.steps) == len(other.steps) == STEPS
    for name in ("loss", "grad_norm", "nll"):
        assert run.values(name) == pytest.approx(other.values(name), rel=tolerance, abs=tolerance), name


def without_times(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in step.items() if not name.endswith(TIMES)} for step in steps]


@pytest.mark.runs("no plugin", "disabled")
def test_disabled_is_as_if_there_were_no_plugin(runs: Runs) -> None:
    plain, disabled = runs["no plugin"], runs["disabled"]
    assert without_times(plain.steps) == without_times(disabled.steps)
    assert "nll" not in disabled.steps[0]
    assert largest_difference(plain.weights, disabled.weights) == 0.0
    assert disabled.dft_lines == []


@pytest.mark.runs("no plugin", "4x1")
def test_the_first_nll_is_the_cross_entropy_of_a_run_without_the_plugin(runs: Runs) -> None:
    """And the loss is another one, and no model trains as it would with cross-entropy."""
    plain, dft = runs["no plugin"], runs["4x1"]
    assert dft.steps[0]["nll"] == pytest.approx(plain.steps[0]["loss"], abs=1e-5)
    assert dft.steps[0]["loss"] < 0.2 * plain.steps[0]["loss"]
    assert largest_difference(plain.weights, dft.weights) > 1e-3


@pytest.mark.runs("4x1", "1x4", "2 processes, 1x2", "2 processes, 2x1")
@pytest.mark.parametrize("other", ["1x4", "2 processes, 1x2", "2 processes, 2x1"])
def test_accumulation_and_processes_change_nothing(runs: Runs, other: str) -> None:
    assert_same_steps(runs["4x1"], runs[other])
    assert largest_difference(runs["4x1"].weights, runs[other].weights) < 1e-5


@pytest.mark.runs("4x1", "packed")
def test_packing_changes_nothing(runs: Runs) -> None:
    assert_same_steps(runs["4x1"], runs["packed"])
    assert largest_difference(runs["4x1"].weights, runs["packed"].weights) < 1e-5


@pytest.mark.runs("4x1", "gradient checkpointing")
def test_gradient_checkpointing_changes_nothing(runs: Runs) -> None:
    assert_same_steps(runs["4x1"], runs["gradient checkpointing"])


WHOLE_TEXTS = ("whole texts", "whole texts, Axolotl's chunked cross-entropy")


@pytest.mark.runs(*WHOLE_TEXTS)
def test_axolotls_chunked_cross_entropy_changes_no_count(runs: Runs) -> None:
    """It replaces the function by which `transformers` knows that a loss shifts; here every first token has a label."""
    one, other = (runs[name] for name in WHOLE_TEXTS)
    assert_same_steps(one, other)


@pytest.mark.runs("4x1", "folder alone", "folder alone, 1x4")
@pytest.mark.parametrize("other", ["folder alone", "folder alone, 1x4"])
def test_the_folder_copied_alone_gives_the_same(runs: Runs, other: str) -> None:
    """Its few lines of dense loss against the chunked head of the whole distribution."""
    assert_same_steps(runs["4x1"], runs[other])
    assert largest_difference(runs["4x1"].weights, runs[other].weights) < 1e-5


@pytest.mark.runs("4x1", "lora", "lora, 1x4")
def test_lora_with_accumulation(runs: Runs) -> None:
    """Both go on from one adapter, which is not zero."""
    assert_same_steps(runs["lora"], runs["lora, 1x4"])
    assert largest_difference(runs["lora"].weights, runs["lora, 1x4"].weights) < 1e-5
    assert runs["lora"].steps[0]["loss"] != pytest.approx(runs["4x1"].steps[0]["loss"], rel=1e-3)


@pytest.mark.runs("one row masked", "three rows", "all rows masked")
def test_masked_batches_count_nothing(runs: Runs) -> None:
    """A micro-batch without a label is as if it were not there; a step without any has loss 0 and changes nothing."""
    assert_same_steps(runs["one row masked"], runs["three rows"])
    masked = runs["all rows masked"]
    assert masked.values("loss") == masked.values("grad_norm") == [0.0] * STEPS
    assert "nll" not in masked.steps[0]


@pytest.mark.runs("all rows masked")
def test_steps_without_labels_leave_the_weights(runs: Runs, models: dict[str, Path]) -> None:
    before = load_file(models["tiny"] / "model.safetensors")
    assert largest_difference(before, runs["all rows masked"].weights) == 0.0


@pytest.mark.runs("dpo", "dpo with the plugin")
def test_a_reinforcement_learning_trainer_is_left_alone(runs: Runs) -> None:
    plain, listed = runs["dpo"], runs["dpo with the plugin"]
    assert without_times(plain.steps) == without_times(listed.steps)
    assert largest_difference(plain.weights, listed.weights) == 0.0
    assert listed.dft_lines == ["dft: left alone, this run trains with rl: dpo"]


@pytest.mark.runs("the example")
def test_the_example_starts_where_tutelage_would(runs: Runs, models: dict[str, Path], tmp_path: Path) -> None:
    """examples/axolotl/dft.yml on the real model, all 32 rows in one step: its first loss, and where it goes."""
    config = load_config(ROOT / "examples/calling_codes/dft.yaml").model_copy(update={"output_dir": tmp_path / "run"})
    inputs = prepare_inputs(config)
    model: Any = AutoModelForCausalLM.from_pretrained(models["smollm2"], dtype="float32").eval()
    with torch.no_grad():
        loss_sum, stats = token_loss_sum(model, inputs.collate(inputs.train_items), "dft")
    (step,) = runs["the example"].steps
    assert step["nll"] == pytest.approx(float(stats.nll.mean()), abs=2e-5)
    assert step["mean_token_probability"] == pytest.approx(float(stats.probability.mean()), abs=2e-5)
    assert step["loss"] == pytest.approx(float(loss_sum) / stats.nll.numel(), rel=1e-4)
    assert runs["the example"].dft_lines == [CHUNKED]
    assert (runs["the example"].output / "adapter_model.safetensors").is_file()


@pytest.mark.runs("4x1", "lora")
@pytest.mark.parametrize(("name", "model", "is_peft"), [("4x1", "tiny", False), ("lora", "adapter", True)])
def test_axolotl_and_tutelage_train_the_same_model(
    runs: Runs, models: dict[str, Path], data: dict[str, Path], tmp_path: Path, name: str, model: str, is_peft: bool
) -> None:
    """Two front doors of one loss: the same token ids, the same steps, the same weights."""
    axolotl = runs[name]
    config = small_config(
        tmp_path,
        "tutelage",
        model=str(models[model]),
        training_file=data["rows"],
        loss="dft",
        is_peft=is_peft,
        max_steps=STEPS,
        per_device_train_batch_size=4,
    )
    prepared: Any = load_from_disk(str(next(axolotl.output.glob("prepared/**/dataset_info.json")).parent))
    ours = {(tuple(row.input_ids), tuple(row.labels)) for row in prepare_inputs(config).train_items}
    theirs = {(tuple(row["input_ids"]), tuple(row["labels"])) for row in prepared}
    assert ours == theirs, "the comparison needs the same tokens and the same labels"
    run = train(config, console=Console(quiet=True))
    assert axolotl.steps[-1]["loss"] == pytest.approx(run.metrics["loss"], rel=1e-5)
    assert axolotl.steps[-1]["grad_norm"] == pytest.approx(run.metrics["grad_norm"], rel=1e-5)
    assert axolotl.steps[-1]["nll"] == pytest.approx(run.metrics["nll"], abs=1e-5)
    assert largest_difference(axolotl.weights, trained_weights(run)) < 1e-5
