"""Ctrl-C and kill: what is on disk afterwards, what the terminal says, and that continuing changes nothing."""

import json
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.command_line import COMMAND, ENVIRONMENT, Finished, Terminal, config_file, files_below
from tests.small_runs import assert_same_bits, trained_weights
from tutelage import Run
from tutelage.events import Tag
from tutelage.training.token_trainer import TokenTrainer

ADAM: dict[str, Any] = {
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "lora_dropout": 0.1,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
}


@contextmanager
def started(config: Path) -> Iterator[subprocess.Popen[str]]:
    """`tutelage train config` in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [*COMMAND, "train", str(config)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    """Read the process's messages until one holds `text`."""
    assert process.stderr is not None
    seen: list[str] = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"the process ended without saying {text!r}: {seen}")


def finish(process: subprocess.Popen[str]) -> Finished:
    out, err = process.communicate(timeout=300)
    return Finished(process.returncode, out, err)


def steps_logged(run: Run) -> list[int]:
    return [event.step for event in run.events(Tag.TRAIN)]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in run.glob("checkpoint-*"))


def test_ctrl_c_in_a_process_and_the_command_it_names(terminal: Terminal, tmp_path: Path) -> None:
    options = ADAM | {"max_steps": 120, "gradient_accumulation_steps": 1}
    config = config_file(tmp_path, "stopped run", **options)  # a path that has to be quoted
    path = tmp_path / "stopped run"
    with started(config) as process:
        wait_for(process, "step 2/120")
        process.send_signal(signal.SIGINT)
        done = finish(process)
    assert (done.code, done.out) == (130, "")
    assert "Traceback" not in done.err
    run = Run.open(path)
    step = run.events(Tag.END)[-1].step
    assert 2 <= step < 120
    assert "\nstopping after this step (once more to stop at once)\n" in done.err
    last_line = f"error: stopped after step {step} of 120; continue with: tutelage train --resume '{path}'\n"
    assert done.err.endswith(last_line)
    assert steps_logged(run) == list(range(1, step + 1))
    assert checkpoints(path) == [f"checkpoint-{step}"]
    assert (path / f"checkpoint-{step}" / "complete").exists()
    assert not run.model_path.exists()
    assert run.events(Tag.END)[-1].values == {"reason": "interrupted"}

    command = shlex.split(done.err.rpartition("continue with: ")[2])
    assert command[0] == "tutelage"
    assert terminal(*command[1:]).code == 0
    assert terminal("train", config_file(tmp_path, "whole", **options)).code == 0
    whole = Run.open(tmp_path / "whole")
    assert_same_bits(trained_weights(run), trained_weights(whole))
    assert steps_logged(run) == list(range(1, 121))
    assert [event.values["loss"] for event in run.events(Tag.TRAIN)] == [
        event.values["loss"] for event in whole.events(Tag.TRAIN)
    ]


def test_kill_and_resume(terminal: Terminal, tmp_path: Path) -> None:
    """SIGKILL leaves readable files, and what comes after the last complete checkpoint is done again."""
    options = ADAM | {"loss": "sdft", "max_steps": 24, "save_steps": 3, "sdft_ema_alpha": 0.3}
    config = config_file(tmp_path, "killed", **options)
    path = tmp_path / "killed"
    with started(config) as process:
        wait_for(process, "step 9/24")
        process.kill()
        done = finish(process)
    assert done.code == -signal.SIGKILL
    run = Run.open(path)
    logged = steps_logged(run)
    assert logged == list(range(1, len(logged) + 1))
    assert 8 <= len(logged) < 24  # step 9 is said, then logged
    assert run.metrics["loss"] > 0
    for line in (path / "samples.jsonl").read_text().splitlines()[:-1]:
        json.loads(line)
    complete = [int(folder.parent.name.partition("-")[2]) for folder in path.glob("checkpoint-*/complete")]
    assert max(complete) >= 6

    assert terminal("train", "--resume", path).code == 0
    assert run.events(Tag.START)[-1].step == max(complete)
    assert terminal("train", config_file(tmp_path, "whole", **options)).code == 0
    assert_same_bits(trained_weights(run), trained_weights(Run.open(tmp_path / "whole")))
    assert steps_logged(run) == list(range(1, 25))
    assert all((folder / "complete").exists() for folder in path.glob("checkpoint-*"))


# --- signals at a known place, in this process ------------------------------------------------------------------


@pytest.fixture
def when_loss(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something in the n-th forward pass of training."""

    def when(call: int, action: Callable[[], None]) -> None:
        calls = 0
        original = TokenTrainer.loss_sum

        def loss_sum(self: TokenTrainer, model: Any, inputs: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            if calls == call:
                action()
            return original(self, model, inputs)

        monkeypatch.setattr(TokenTrainer, "loss_sum", loss_sum)

    return when


When = Callable[[int, Callable[[], None]], None]


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_step_is_finished(terminal: Terminal, tmp_path: Path, when_loss: When, number: signal.Signals) -> None:
    """The signal comes in the first of two micro-batches of step 2; both are in the checkpoint."""
    options = ADAM | {"max_steps": 5, "lr_scheduler_type": "constant"}
    when_loss(3, lambda: signal.raise_signal(number))
    before = signal.getsignal(number)
    done = terminal("train", config_file(tmp_path, "stopped", **options))
    assert signal.getsignal(number) is before
    assert done.code == 130
    assert "stopped after step 2 of 5" in done.err
    assert checkpoints(tmp_path / "stopped") == ["checkpoint-2"]
    assert terminal("train", config_file(tmp_path, "two", **(options | {"max_steps": 2}))).code == 0
    two = Run.open(tmp_path / "two")
    assert_same_bits(trained_weights(Run.open(tmp_path / "stopped"), checkpoint=2), trained_weights(two))


@pytest.mark.parametrize("max_steps", [2, 3])  # at the end of an epoch, and within one
def test_in_the_last_step(terminal: Terminal, tmp_path: Path, when_loss: When, max_steps: int) -> None:
    """All steps are done, the model is not written: continuing writes it and trains no further."""
    when_loss(2 * max_steps, ctrl_c)
    done = terminal("train", config_file(tmp_path, **(ADAM | {"max_steps": max_steps})))
    assert done.code == 130
    assert f"stopped after step {max_steps} of {max_steps}; continue with" in done.err
    run = Run.open(tmp_path / "run")
    for _ in range(2):  # a finished run may be continued, too
        done = terminal("train", "--resume", run.path)
        assert (done.code, done.out) == (0, f"model: {run.path / 'adapter'}\n")
        assert_same_bits(trained_weights(run), trained_weights(run, max_steps))
        assert steps_logged(run) == list(range(1, max_steps + 1))
        assert run.events(Tag.END)[-1].step == max_steps


def test_stopping_within_an_epoch_evaluates_nothing(terminal: Terminal, tmp_path: Path, when_loss: When) -> None:
    """`transformers` takes the stop for the end of the epoch, and evaluating a test file can take long."""
    options = ADAM | {"max_steps": 4, "test_file": str(tmp_path / "rows.jsonl"), "test_file_eval_strategy": "epoch"}
    when_loss(5, ctrl_c)  # in the first of two steps of the second epoch
    assert terminal("train", config_file(tmp_path, **options)).code == 130
    run = Run.open(tmp_path / "run")
    assert [event.step for event in run.events(Tag.EVAL)] == [2]
    assert terminal("train", "--resume", run.path).code == 0
    assert [event.step for event in run.events(Tag.EVAL)] == [2, 4]


def twice() -> None:
    ctrl_c()
    ctrl_c()


def test_twice_stops_at_once(terminal: Terminal, tmp_path: Path, when_loss: When) -> None:
    when_loss(5, twice)  # in step 3
    done = terminal("train", config_file(tmp_path, **(ADAM | {"max_steps": 5, "save_steps": 2})))
    assert done.code == 130
    assert done.err.endswith(
        f"error: stopped in step 3; continue from checkpoint-2 with: tutelage train --resume {tmp_path / 'run'}\n"
    )
    assert "Traceback" not in done.err
    assert checkpoints(tmp_path / "run") == ["checkpoint-2"]
    assert terminal("train", "--resume", tmp_path / "run").code == 0


def test_twice_before_a_checkpoint(terminal: Terminal, tmp_path: Path, when_loss: When) -> None:
    when_loss(3, twice)
    done = terminal("train", config_file(tmp_path, **(ADAM | {"max_steps": 5})))
    assert done.code == 130
    assert "error: stopped in step 2, before the first checkpoint; start anew, in another output_dir\n" in done.err


@pytest.mark.parametrize("place", ["tutelage.training.run.load_model", "tutelage.training.run.build_trainer"])
def test_before_the_first_step_nothing_is_kept(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        ctrl_c()

    config = config_file(tmp_path)
    before = files_below(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(place, interrupted)
        done = terminal("train", config)
    assert done.code == 130
    assert "Traceback" not in done.err
    assert files_below(tmp_path) == before


def test_only_the_newest_checkpoints_are_kept(terminal: Terminal, tmp_path: Path) -> None:
    options = ADAM | {"max_steps": 7, "save_steps": 2, "save_total_limit": 2}
    assert terminal("train", config_file(tmp_path, **options)).code == 0
    assert checkpoints(tmp_path / "run") == ["checkpoint-6", "checkpoint-7"]


def test_an_old_checkpoint_goes_only_when_the_new_one_is_complete(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill while the second checkpoint is written must leave the first, also with `save_total_limit: 1`."""

    def killed(self: TokenTrainer, folder: Path) -> None:
        if folder.name == "checkpoint-4":
            raise KeyboardInterrupt

    options = ADAM | {"max_steps": 6, "save_steps": 2, "save_total_limit": 1}
    config = config_file(tmp_path, **options)
    with monkeypatch.context() as patched:
        patched.setattr(TokenTrainer, "save_extra_state", killed)
        done = terminal("train", config)
    assert done.code == 130
    assert "continue from checkpoint-2 with" in done.err
    assert terminal("train", "--resume", tmp_path / "run").code == 0
    assert Run.open(tmp_path / "run").events(Tag.START)[-1].step == 2
    assert checkpoints(tmp_path / "run") == ["checkpoint-6"]
