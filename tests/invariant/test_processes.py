"""Two processes train what one does: the real command under `torchrun`, over gloo, against the same rows in one.

Ten rows in steps of eight: the second step has two rows, fewer than two processes with batches of four would take.
Plain SGD, so equal weights after both steps mean equal gradients; tolerance as in `test_batch_split.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.invariant.test_batch_split import assert_same_steps
from tests.small_runs import ROWS, assert_same_bits, run_small, small_config, trained_weights, write_rows
from tests.trl_runs import any_run
from tutelage import Run
from tutelage.config import TrainingConfig
from tutelage.events import Tag
from tutelage.training.checkpoints import latest_checkpoint

MORE_ROWS = [*ROWS, ("Is it late?", "No, it is early in the morning."), ("Why?", "So.")]
TEST_ROWS = [("What is one and one?", "two"), ("Name a fruit.", "An apple, or a pear."), ("Say no.", "no")]

LOCAL = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

TIMES = {"tokens_per_second", "rollout_tokens_per_second"}
"""The only metrics that may differ."""


def start_two_processes(*arguments: str) -> subprocess.Popen[str]:
    """`tutelage train ARGUMENTS` in two processes of this machine."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*torchrun, "-m", "tutelage", "train", *arguments],
        env=os.environ | LOCAL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train_in_two_processes(*arguments: str) -> None:
    """To the end; fails with what they printed."""
    with start_two_processes(*arguments) as processes:
        try:
            output, _ = processes.communicate(timeout=600)
        finally:
            processes.terminate()
    assert processes.returncode == 0, output


def write_config(folder: Path, config: TrainingConfig) -> str:
    file = folder / f"{config.loss}.yaml"
    file.write_text(yaml.safe_dump(config.flat()), encoding="utf-8")
    return str(file)


def run_in_two_processes(folder: Path, config: TrainingConfig) -> Run:
    train_in_two_processes(write_config(folder, config))
    assert config.output_dir is not None
    return Run.open(config.output_dir)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("loss", ["sft", "dft", "sdft"])
def test_two_processes_equal_one(tmp_path: Path, loss: str) -> None:
    options: dict[str, Any] = {
        "loss": loss,
        "training_file": write_rows(tmp_path / "ten.jsonl", MORE_ROWS),
        "test_file": write_rows(tmp_path / "test.jsonl", TEST_ROWS),
        "eval_batch_size": 1,
        "test_file_eval_strategy": "steps",
        "test_file_eval_steps": 2,
        "sdft_gold_gain_rows": 8,  # per process: with fewer, two processes measure on more rows
    }
    one = run_small(tmp_path, "one", **options)
    one_step_less = run_small(tmp_path, "one-step", **options, max_steps=1)
    two = run_in_two_processes(tmp_path, small_config(tmp_path, "two", **options, per_device_train_batch_size=4))

    assert_same_steps(trained_weights(one), trained_weights(two), trained_weights(one_step_less))
    for tag, steps in ((Tag.TRAIN, [1, 2]), (Tag.EVAL, [2])):
        measured, expected = two.events(tag), one.events(tag)
        assert [event.step for event in measured] == steps
        for event, reference in zip(measured, expected, strict=True):
            assert event.values.keys() == reference.values.keys()
            for name in event.values.keys() - TIMES:
                assert event.values[name] == pytest.approx(reference.values[name], rel=1e-4, abs=1e-6), name
    # One process writes: as many lines of every kind as a run in one process leaves.
    tags = [line["tag"] for line in lines(two.path / "events.jsonl")]
    assert tags == [line["tag"] for line in lines(one.path / "events.jsonl")]
    files = {path.relative_to(two.path).as_posix() for path in two.path.rglob("*")}
    assert {name for name in files if not name.startswith("checkpoint-")} == {
        name
        for path in one.path.rglob("*")
        if not (name := path.relative_to(one.path).as_posix()).startswith("checkpoint-")
    }
    assert "checkpoint-2/complete" in files


@pytest.mark.parametrize("loss", ["grpo", "dpo"])
def test_two_processes_equal_one_in_trl_s_trainers(tmp_path: Path, loss: str) -> None:
    """Steps that fill both processes; orpo averages its NLL over the tokens of each process, in TRL."""
    options: dict[str, Any] = {"learning_rate": 0.05}
    if loss == "grpo":
        reward = tmp_path / "picky.py"
        reward.write_text(
            "def picky(*, completions, **columns):\n"
            "    lengths = [len(turns[-1]['content']) for turns in completions]\n"
            "    return [length / 100 if length % 3 else None for length in lengths]\n",
            encoding="utf-8",
        )
        options |= {
            "grpo_reward_function": f"{reward}:picky",
            "test_file": write_rows(tmp_path / "test.jsonl", [*TEST_ROWS, *MORE_ROWS]),
            "test_file_eval_strategy": "steps",
            "test_file_eval_steps": 2,
        }
    one = any_run(tmp_path, "one", loss, **options)
    one_step_less = any_run(tmp_path, "one-step", loss, **options, max_steps=1)
    config = one.config.model_copy(update={"output_dir": tmp_path / "two", "per_device_train_batch_size": 4})
    two = run_in_two_processes(tmp_path, config)

    assert_same_steps(trained_weights(one), trained_weights(two), trained_weights(one_step_less))
    for event, reference in zip(two.events(Tag.TRAIN), one.events(Tag.TRAIN), strict=True):
        for name in ("loss", "reward", "reward_std", "unscored") if loss == "grpo" else ("loss", "rewards/margins"):
            assert event.values[name] == pytest.approx(reference.values[name], rel=1e-4, abs=1e-6), name
    if loss == "grpo":
        (measured,), (expected,) = two.events(Tag.EVAL), one.events(Tag.EVAL)
        assert expected.values["eval_unscored"] > 0
        for name in ("eval_reward", "eval_unscored", "eval_nll"):
            assert measured.values[name] == pytest.approx(expected.values[name], rel=1e-3), name


def test_two_processes_resume_where_they_were(tmp_path: Path) -> None:
    """Inside an epoch, with everything a checkpoint holds: adapter, optimizer, teacher, dropout's random states."""
    options: dict[str, Any] = {
        "training_file": write_rows(tmp_path / "ten.jsonl", MORE_ROWS),
        "per_device_train_batch_size": 4,
        "loss": "sdft",
        "optim": "adamw_torch",
        "learning_rate": 5e-3,
        "lora_dropout": 0.1,
        "sdft_ema_alpha": 0.3,
        "save_steps": 1,
    }
    run = run_in_two_processes(tmp_path, small_config(tmp_path, "run", **options))
    whole, teacher = trained_weights(run), load_file(run.path / "checkpoint-2" / "teacher.safetensors")
    metrics = run.events(Tag.TRAIN)[-1].values
    shutil.rmtree(run.model_path)
    shutil.rmtree(run.path / "checkpoint-2")

    train_in_two_processes("--resume", str(run.path))

    assert_same_bits(trained_weights(run), whole)
    assert_same_bits(load_file(run.path / "checkpoint-2" / "teacher.safetensors"), teacher)
    resumed = run.events(Tag.TRAIN)
    assert [event.step for event in resumed] == [1, 2]
    assert {name: resumed[-1].values[name] for name in metrics.keys() - TIMES} == {
        name: metrics[name] for name in metrics.keys() - TIMES
    }


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the second process in /proc")
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path) -> None:
    config = small_config(tmp_path, "run", per_device_train_batch_size=4, max_steps=100_000)
    run = tmp_path / "run"
    with start_two_processes(write_config(tmp_path, config)) as processes:
        try:
            wait_for(lambda: (run / "events.jsonl").exists() and any(line["step"] for line in events_of(run)))
            os.kill(process_of_rank(1, processes.pid), signal.SIGTERM)
            output, _ = processes.communicate(timeout=300)
        finally:
            processes.terminate()
    step = events_of(run)[-1]["step"]
    assert [line["tag"] for line in events_of(run)[-2:]] == ["checkpoint", "end"]
    assert latest_checkpoint(run).name == f"checkpoint-{step}"
    assert sorted(path.name for path in latest_checkpoint(run).glob("rng_state*")) == [
        "rng_state_0.pth",
        "rng_state_1.pth",
    ]
    assert f"stopped after step {step} of 100000" in output


def events_of(run: Path) -> list[dict[str, Any]]:
    return lines(run / "events.jsonl")


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def process_of_rank(rank: int, parent: int) -> int:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return next(
        int(child)
        for child in children
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    )
