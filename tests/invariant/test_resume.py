"""A run that was stopped and continued is the run that was not: weights, teacher, optimizer, order, rollouts."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tests.small_runs import assert_same_bits, run_small, small_config, trained_weights
from tutelage import Run, train
from tutelage.errors import ResumeError
from tutelage.events import Tag

OPTIONS: dict[str, Any] = {
    "optim": "adamw_torch",
    "learning_rate": 5e-3,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.01,
    "lora_dropout": 0.1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 5,  # two steps an epoch: the resumed run starts inside an epoch
    "save_steps": 3,
    "sdft_ema_alpha": 0.3,
}


def continued_at(run: Run, step: int) -> Run:
    """The run as a kill after `step` would have left it, continued to its end."""
    shutil.rmtree(run.model_path)
    for checkpoint in run.path.glob("checkpoint-*"):
        if int(checkpoint.name.partition("-")[2]) > step:
            shutil.rmtree(checkpoint)
    return train(run.config, resume=run.path, console=Console(quiet=True))


@pytest.mark.parametrize("is_peft", [True, False])
@pytest.mark.parametrize("loss", ["sft", "dft", "sdft"])
def test_resumed_equals_uninterrupted(tmp_path: Path, loss: str, is_peft: bool) -> None:
    options = OPTIONS | {"loss": loss, "is_peft": is_peft}
    whole = run_small(tmp_path, "whole", **options)
    final = trained_weights(whole)
    last = whole.path / "checkpoint-5"
    state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    teacher = load_file(last / "teacher.safetensors") if loss == "sdft" else {}
    losses = [event.values["loss"] for event in whole.events(Tag.TRAIN)]
    rollouts = _rollouts(whole)

    resumed = continued_at(whole, 3)

    assert_same_bits(trained_weights(resumed), final)
    resumed_state = torch.load(last / "optimizer.pt", weights_only=True)["state"]
    for index, moments in state.items():
        assert_same_bits(_tensors(resumed_state[index]), _tensors(moments))
    if loss == "sdft":
        assert teacher
        assert_same_bits(load_file(last / "teacher.safetensors"), teacher)
        assert _rollouts(resumed)[-8:] == rollouts[-8:]
    # The abandoned steps 4 and 5 are left out of what is read, not out of the file.
    assert [event.values["loss"] for event in resumed.events(Tag.TRAIN)] == losses
    raw = [json.loads(line) for line in (resumed.path / "events.jsonl").read_text().splitlines()]
    assert [row["step"] for row in raw if row["tag"] == "train"] == [1, 2, 3, 4, 5, 4, 5]


def _rollouts(run: Run) -> list[tuple[int, str, str]]:
    path = run.path / "samples.jsonl"
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["step"], row["question"], row["response"]) for row in rows if row["tag"] == "rollout"]


def _tensors(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def test_a_checkpoint_cut_off_while_writing_is_not_used(tmp_path: Path) -> None:
    run = run_small(tmp_path, "run", **(OPTIONS | {"save_steps": 2}))
    final = trained_weights(run)
    shutil.rmtree(run.path / "checkpoint-5")
    (run.path / "checkpoint-4" / "complete").unlink()
    (run.path / "checkpoint-4" / "optimizer.pt").write_bytes(b"torn")
    resumed = train(run.config, resume=run.path, console=Console(quiet=True))
    assert resumed.events(Tag.START)[-1].values["from_step"] == 2
    assert_same_bits(trained_weights(resumed), final)


def test_resume_needs_a_run_a_checkpoint_and_the_same_data(tmp_path: Path) -> None:
    config = small_config(tmp_path, "run")
    with pytest.raises(ResumeError, match=r"nowhere: not a run"):
        train(config, resume=tmp_path / "nowhere", console=Console(quiet=True))
    run = run_small(tmp_path, "run")
    (tmp_path / "rows.jsonl").write_text((tmp_path / "rows.jsonl").read_text() * 2)
    with pytest.raises(ResumeError, match=r"rows\.jsonl: changed since"):
        train(config, resume=run.path, console=Console(quiet=True))
    shutil.rmtree(run.path / "checkpoint-2")
    with pytest.raises(ResumeError, match="no complete checkpoint"):
        train(config, resume=run.path, console=Console(quiet=True))
