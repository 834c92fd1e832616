"""Two processes train what one does: the real command under `torchrun`, over gloo, against the same rows in one.

Ten rows in steps of eight: the second step has two rows, fewer than two processes with batches of four would take.
Plain SGD, so equal weights after both steps mean equal gradients; tolerance as in `test_batch_split.py`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.invariant.test_batch_split import assert_same_steps
from tests.small_runs import ROWS, assert_same_bits, run_small, small_config, trained_weights, write_rows
from tutelage import Run
from tutelage.config import TrainingConfig
from tutelage.events import Tag

MORE_ROWS = [*ROWS, ("Is it late?", "No, it is early in the morning."), ("Why?", "So.")]
TEST_ROWS = [("What is one and one?", "two"), ("Name a fruit.", "An apple, or a pear."), ("Say no.", "no")]

LOCAL = {"ACCELERATE_USE_CPU": "true", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}

RANK_ONLY = {"tokens_per_second", "rollout_tokens_per_second"}
"""Metrics that are times, the only ones that may differ."""


def train_in_two_processes(*arguments: str) -> None:
    """`tutelage train ARGUMENTS` in two processes of this machine; fails with what they printed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    finished = subprocess.run(
        [*command, "-m", "tutelage", "train", *arguments],
        env=os.environ | LOCAL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def run_in_two_processes(folder: Path, config: TrainingConfig) -> Run:
    file = folder / f"{config.loss}.yaml"
    file.write_text(yaml.safe_dump(config.flat()), encoding="utf-8")
    train_in_two_processes(str(file))
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
            for name in event.values.keys() - RANK_ONLY:
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
