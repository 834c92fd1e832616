"""`accelerate launch` with the configs that are shipped trains what one process does, as far as a CPU goes.

DDP as it is; FSDP with `tests/fsdp_on_cpu.py`, and the parameters must be found sharded. Rows and tolerance as in
`test_processes.py`.
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

from tests.fsdp_on_cpu import SHARDS_FILE
from tests.invariant.test_batch_split import Weights, assert_same_steps
from tests.invariant.test_processes import LOCAL, MORE_ROWS, TEST_ROWS, TIMES
from tests.small_runs import run_small, small_config, trained_weights, write_rows
from tutelage import Run
from tutelage.events import Tag

LAUNCHES = Path(__file__).resolve().parents[2] / "examples" / "accelerate"


def launch(kind: str, program: str, *arguments: str) -> None:
    """`accelerate launch` of two processes, to the end; fails with what they printed."""
    accelerate = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    result = subprocess.run(
        [*accelerate, "--config_file", str(LAUNCHES / f"{kind}.yaml"), "-m", program, "train", *arguments],
        env=os.environ | LOCAL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def launched(folder: Path, kind: str, program: str, **options: Any) -> Run:
    config = small_config(folder, kind, **options, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    file = folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(config.flat()), encoding="utf-8")
    launch(kind, program, str(file))
    return Run.open(folder / kind)


def assert_same_events(one: Run, two: Run) -> None:
    for event, reference in zip(two.events(Tag.TRAIN, Tag.EVAL), one.events(Tag.TRAIN, Tag.EVAL), strict=True):
        assert event.values.keys() == reference.values.keys()
        for name in event.values.keys() - TIMES - {"epoch"}:  # counted in batches, of which the last is not full
            assert event.values[name] == pytest.approx(reference.values[name], rel=1e-4, abs=1e-6), name


def assert_sharded(run: Run) -> None:
    """Two processes hold each parameter between them, and neither holds all of one that can be halved."""
    first, second = (json.loads((run.path / SHARDS_FILE.format(rank=rank)).read_text()) for rank in (0, 1))
    assert first
    for name in first:
        assert first[name]["sharded"], name
        assert first[name]["here"] + second[name]["here"] == first[name]["all"], name
        assert second[name]["here"] == first[name]["all"] // 2, name


def options_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "training_file": write_rows(folder / "ten.jsonl", MORE_ROWS),
        "test_file": write_rows(folder / "test.jsonl", TEST_ROWS),
        "eval_batch_size": 1,
        "test_file_eval_strategy": "steps",
        "test_file_eval_steps": 2,
        "max_grad_norm": 1.0,  # below the norm of either step: what is clipped is the norm over all processes
        **more,
    }


def in_one(folder: Path, **options: Any) -> tuple[Run, Weights]:
    """A run in one process, and its weights a step earlier."""
    earlier = run_small(folder, "one-step", **options, max_steps=1)
    return run_small(folder, "one", **options), trained_weights(earlier)


def test_ddp_equals_one_process(tmp_path: Path) -> None:
    options = options_of(tmp_path)
    one, earlier = in_one(tmp_path, **options)
    two = launched(tmp_path, "ddp", "tutelage", **options)
    assert_same_steps(trained_weights(one), trained_weights(two), earlier)
    assert_same_events(one, two)


def test_fsdp_equals_one_process(tmp_path: Path) -> None:
    """All weights, of which the embeddings are the head too."""
    options = options_of(tmp_path, is_peft=False, gradient_checkpointing=True)
    one, earlier = in_one(tmp_path, **options)
    two = launched(tmp_path, "fsdp", "tests.fsdp_on_cpu", **options)
    assert_sharded(two)
    assert_same_steps(trained_weights(one), trained_weights(two), earlier)
    assert_same_events(one, two)


def test_fsdp_resumes_an_adapter_and_merges_it(tmp_path: Path) -> None:
    """From a checkpoint inside the epoch, with the states of AdamW."""
    options = options_of(
        tmp_path, loss="dft", optim="adamw_torch", learning_rate=5e-3, save_steps=1, merge_before_push=True
    )
    one, earlier = in_one(tmp_path, **options)
    two = launched(tmp_path, "fsdp", "tests.fsdp_on_cpu", **options)
    assert_sharded(two)
    assert_same_steps(trained_weights(one), trained_weights(two), earlier)

    for folder in (two.model_path, two.path / "checkpoint-2"):
        shutil.rmtree(folder)
    launch("fsdp", "tests.fsdp_on_cpu", "--resume", str(two.path))
    assert_same_steps(trained_weights(one), trained_weights(two), earlier)
    assert_same_events(one, two)

    shutil.rmtree(two.model_path)  # every step is done: only the model is to be written
    launch("fsdp", "tests.fsdp_on_cpu", "--resume", str(two.path))
    assert_same_steps(trained_weights(one), trained_weights(two), earlier)
