"""What a user of the plugin sees in a real Axolotl: lines in the log, metrics, refusals, memory, a clean install."""

import json
import math
import re
import subprocess
from pathlib import Path

import pytest

from tests.real_axolotl.conftest import Runs
from tests.real_axolotl.runs import CHUNKED, AxolotlRun

DENSE = "dft: the loss is computed from whole logits, which costs memory: "


# --- installing -----------------------------------------------------------------------------------------------------


def test_installing_changes_no_package_of_axolotls_environment(axolotl_python: Path, wheel: Path) -> None:
    """pip resolves what installing the distribution would do there: it brings itself and nothing else."""
    command = [str(axolotl_python), "-m", "pip", "install", "--quiet", "--dry-run", "--report", "-", str(wheel)]
    report = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [item["metadata"]["name"] for item in report["install"]] == ["tutelage"]


def test_the_plugin_loads_by_its_dotted_name(axolotl_python: Path, distributions: dict[str, Path]) -> None:
    """Through Axolotl's own loader, as a plugin of its base class, with a schema that knows `dft:`."""
    code = (
        "from axolotl.integrations.base import BasePlugin, load_plugin\n"
        "plugin = load_plugin('axolotl_dft_plugin.DFTPlugin')\n"
        "print(isinstance(plugin, BasePlugin), plugin.get_input_args(), plugin.get_adapter_capabilities())"
    )
    environment = {"PYTHONPATH": str(distributions["installed"]), "PATH": "/usr/bin:/bin"}
    result = subprocess.run([axolotl_python, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split("\n")[-2] == "True axolotl_dft_plugin.args.DFTArgs []"


# --- the log --------------------------------------------------------------------------------------------------------


@pytest.mark.runs("4x1", "packed", "lora", "2 processes, 2x1", "key without options")
@pytest.mark.parametrize("name", ["4x1", "packed", "lora", "2 processes, 2x1", "key without options"])
def test_one_line_says_that_the_chunked_head_is_used(runs: Runs, name: str) -> None:
    """`dft:` with nothing below it is DFT too: the plugin is listed."""
    assert runs[name].exit_code == 0
    assert runs[name].dft_lines == [CHUNKED]


@pytest.mark.runs("folder alone", "lora on the head")
def test_one_line_says_why_the_logits_are_whole(runs: Runs) -> None:
    (line,) = runs["folder alone"].dft_lines
    assert line.startswith(f"{DENSE}the chunked head needs the package tutelage")
    on_head = runs["lora on the head"]
    assert on_head.exit_code == 0
    assert on_head.log.count("its head is not a plain linear layer on the decoder; losses use its full logits") == 1
    assert on_head.dft_lines == []


@pytest.mark.runs("4x1", "no plugin")
def test_nll_probability_and_perplexity_are_logged_beside_the_loss(runs: Runs) -> None:
    for step in runs["4x1"].steps:
        assert step["ppl"] == pytest.approx(math.exp(step["nll"]), rel=1e-4)
        assert step["ppl"] != pytest.approx(math.exp(step["loss"]), rel=0.1)
        assert 0.0 < step["mean_token_probability"] < 1.0
        # Jensen: the mean of log p is at most the log of the mean of p.
        assert -step["nll"] <= math.log(step["mean_token_probability"])
    assert re.search(r"'loss': .*'nll': .*'mean_token_probability': ", runs["4x1"].log), "not printed to the user"


@pytest.mark.runs("evaluation", "4x1")
def test_evaluation_logs_token_means(runs: Runs) -> None:
    """On the training rows, one row a batch, before step n + 1: what that step logs over the same tokens."""
    evaluation = runs["evaluation"]
    assert evaluation.values("loss") == pytest.approx(runs["4x1"].values("loss"), rel=1e-6), "it disturbed training"
    assert len(evaluation.evaluations) >= len(evaluation.steps)
    before = {entry["step"]: entry for entry in evaluation.evaluations}
    for step in evaluation.steps:
        expected = before[step["step"] - 1]
        assert expected["eval_loss"] == pytest.approx(step["loss"], rel=1e-5)
        assert expected["eval_nll"] == pytest.approx(step["nll"], abs=1e-5)
        assert expected["eval_mean_token_probability"] == pytest.approx(step["mean_token_probability"], abs=1e-5)
        assert expected["eval_ppl"] == pytest.approx(math.exp(expected["eval_nll"]), rel=1e-4)


@pytest.mark.runs("three rows, evaluation", "2 processes, three rows, evaluation")
def test_evaluation_on_two_processes_gives_the_same(runs: Runs) -> None:
    """Three rows in batches of one: the second process evaluates one of them again, to have as many batches."""
    one, two = (runs[f"{name}three rows, evaluation"].evaluations[0] for name in ("", "2 processes, "))
    assert (one["step"], two["step"]) == (0, 0)
    for name in ("eval_loss", "eval_nll", "eval_mean_token_probability", "eval_ppl"):
        assert two[name] == pytest.approx(one[name], rel=1e-5), name


@pytest.mark.runs("2 processes, table of predictions", "4x1")
def test_callbacks_that_predict_on_one_process_hang_nothing(runs: Runs) -> None:
    run = runs["2 processes, table of predictions"]
    assert run.exit_code == 0, run.log[-3000:]
    assert run.values("loss") == pytest.approx(runs["4x1"].values("loss"), rel=1e-5)


@pytest.mark.runs("bfloat16", "4x1")
def test_bfloat16_keeps_the_chunked_head(runs: Runs) -> None:
    """Axolotl leaves norms and head in float32, so that the model runs under autocast only. Eight bits of precision."""
    run = runs["bfloat16"]
    assert run.dft_lines == [CHUNKED]
    assert run.values("nll") == pytest.approx(runs["4x1"].values("nll"), rel=0.01)
    assert run.values("loss") == pytest.approx(runs["4x1"].values("loss"), rel=0.05)


@pytest.mark.runs("evaluation")
def test_the_best_checkpoint_can_be_that_of_the_lowest_nll(runs: Runs) -> None:
    state = runs["evaluation"].state
    saved = {entry["step"]: entry["eval_nll"] for entry in runs["evaluation"].evaluations if entry["step"] > 0}
    assert state["best_metric"] == min(saved.values()) < max(saved.values())
    assert saved[state["best_global_step"]] == state["best_metric"]


# --- refusals -------------------------------------------------------------------------------------------------------

REFUSALS = {
    "EAFT": "'use_eaft: true' does not go with dft: EAFT is another weight on the same tokens; remove use_eaft",
    "Liger's token scaling": "'liger_use_token_scaling: true' does not go with dft: that is DFT inside Liger",
    "label smoothing": "'label_smoothing_factor: 0.1' does not go with dft: ",
    "unknown key": "'enabeld' under 'dft:' is not an option; did you mean 'enabled'?",
    "another loss function": "the trainer has another compute_loss_func already (loss_of_another_plugin)",
    "label smoothing by a plugin": "label_smoothing_factor 0.2 does not go with dft: ",
    "a trainer with its own loss": "OwnLossTrainer computes its own loss and never asked for dft's; ",
}


def message(run: AxolotlRun) -> list[str]:
    return [line for line in run.log.splitlines() if line.startswith("axolotl_dft_plugin: ")]


@pytest.mark.runs(*REFUSALS)
@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_go_with_dft_ends_in_one_sentence(runs: Runs, name: str) -> None:
    run = runs[name]
    (line,) = message(run)
    assert line.startswith(f"axolotl_dft_plugin: {REFUSALS[name]}")
    assert run.exit_code == 1
    assert "Traceback" not in run.log
    assert "'loss': " not in run.log
    assert list(run.output.glob("*model*.safetensors")) == []


# --- memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.runs("no plugin, large vocabulary", "dense, large vocabulary", "chunked, large vocabulary")
def test_peak_memory_at_a_vocabulary_of_150000(runs: Runs) -> None:
    """Four rows of 512 tokens: what training adds to the loaded model, under a quarter of the dense loss's."""
    added = {}
    for name in ("no plugin", "dense", "chunked"):
        run = runs[f"{name}, large vocabulary"]
        assert run.exit_code == 0, run.log[-3000:]
        values = json.loads((run.output / "peak.json").read_text(encoding="utf-8"))
        added[name] = values["peak"] - values["before"]
    print("MiB above the loaded model:", added)
    assert runs["chunked, large vocabulary"].values("loss") == pytest.approx(
        runs["dense, large vocabulary"].values("loss"), rel=1e-4
    )
    assert added["chunked"] < 0.25 * added["dense"]
