"""A disk that fills up at any moment: one sentence, nothing half-written, and the run continues when there is space.

The disk is a small tmpfs, which only root may mount.
"""

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.e2e.command_line import Finished, Terminal, config_file
from tests.small_runs import assert_same_bits, run_small, trained_weights
from tutelage import Run
from tutelage.events import Tag
from tutelage.training import run as run_module
from tutelage.training.base_trainer import BaseTrainer

PAGE = 4096  # what a tmpfs gives out


class Disk:
    """A file system of 16 MB, and a file that takes the space away and gives it back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def leave(self, free_bytes: int) -> None:
        """Take all space but this much, to the page."""
        state = os.statvfs(self.path)
        size = state.f_bavail * state.f_frsize - free_bytes
        if size > 0:
            with self._filler.open("ab") as file:
                os.posix_fallocate(file.fileno(), file.seek(0, 2), size)

    def fill(self) -> None:
        self.leave(0)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (self.path / "one more").write_bytes(bytes(PAGE))
        (self.path / "one more").unlink()

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"no small disk to fill: {error}")
    if mounted.returncode != 0:
        pytest.skip(f"no small disk to fill, mounting one needs root: {mounted.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


OPTIONS: dict[str, Any] = {
    "loss": "sdft",
    "sdft_ema_alpha": 0.3,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "per_device_train_batch_size": 2,
    "max_steps": 6,
    "save_steps": 2,
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What the weights are when the disk is large enough."""
    return trained_weights(run_small(tmp_path_factory.mktemp("large"), "run", **OPTIONS))


def before_checkpoint(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    """Do something when all of step `step` is done but its checkpoint."""
    original = BaseTrainer._save_checkpoint

    def save(self: BaseTrainer, model: Any, trial: Any) -> None:
        if self.state.global_step == step:
            action()
        original(self, model, trial)

    monkeypatch.setattr(BaseTrainer, "_save_checkpoint", save)


def assert_one_sentence(done: Finished, *fragments: str) -> None:
    assert done.code == 2, done
    assert done.out == ""
    for trace in ("Traceback", "Logging error", "Exception ignored"):
        assert trace not in done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert done.err.endswith(lines[0] + "\n")
    for fragment in fragments:
        assert fragment in lines[0]


def incomplete(run: Path) -> list[Path]:
    return [folder for folder in run.glob("checkpoint-*") if not (folder / "complete").exists()]


def size_on_disk(folder: Path) -> int:
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.26, 0.5, 0.95])
def test_full_while_a_checkpoint_is_written(
    terminal: Terminal,
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, Tensor],
    share: float,
) -> None:
    """Whatever part of the second checkpoint still fits, there is none of it afterwards."""
    run = disk.path / "run"
    options = OPTIONS | {"save_total_limit": 1}
    config = config_file(tmp_path, output_dir=str(run), **options)

    def leave_a_share() -> None:
        disk.leave(int(share * size_on_disk(run / "checkpoint-2")))

    with monkeypatch.context() as patched:
        before_checkpoint(patched, 4, leave_a_share)
        done = terminal("train", config)
    place = f"{run / 'checkpoint-4'}: the checkpoint could not be written"
    assert_one_sentence(done, place, "free space there, then continue the run with --resume")
    assert incomplete(run) == []
    assert sorted(folder.name for folder in run.glob("checkpoint-*")) == ["checkpoint-2"]
    assert [event.step for event in Run.open(run).events(Tag.TRAIN)] == [1, 2, 3, 4]
    assert not Run.open(run).model_path.exists()

    disk.free()
    assert terminal("train", "--resume", run).code == 0
    assert_same_bits(trained_weights(Run.open(run)), uninterrupted)
    assert Run.open(run).events(Tag.START)[-1].step == 2
    assert [event.step for event in Run.open(run).events(Tag.TRAIN)] == [1, 2, 3, 4, 5, 6]


def test_full_between_two_checkpoints(
    terminal: Terminal,
    tmp_path: Path,
    disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: dict[str, Tensor],
) -> None:
    """The first that cannot be written then is a line of metrics or of samples."""
    run = disk.path / "run"
    original = BaseTrainer.training_step

    def training_step(self: BaseTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2:
            disk.fill()
            for name in ("events.jsonl", "samples.jsonl", "log.txt"):  # and the page each has begun
                _fill_last_page(run / name)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(BaseTrainer, "training_step", training_step)
        done = terminal("train", config_file(tmp_path, output_dir=str(run), **OPTIONS))
    assert_one_sentence(done, ".jsonl: cannot append (No space left on device)", "--resume")
    assert incomplete(run) == []
    disk.free()
    assert terminal("train", "--resume", run).code == 0
    assert [event.step for event in Run.open(run).events(Tag.TRAIN)] == [1, 2, 3, 4, 5, 6]
    assert_same_bits(trained_weights(Run.open(run)), uninterrupted)


def _fill_last_page(path: Path) -> None:
    """Blank lines, which readers leave out."""
    with path.open("ab") as file:
        file.write(b"\n" * (-file.tell() % PAGE))


@pytest.mark.parametrize("pages", [0, 1, 2, 3, 4])
def test_full_from_the_start(terminal: Terminal, tmp_path: Path, disk: Disk, pages: int) -> None:
    """run.json is a page, log.txt, samples.jsonl and events.jsonl one each: some are written, some are not."""
    run = disk.path / "run"
    config = config_file(tmp_path, output_dir=str(run), **OPTIONS)
    disk.leave(pages * PAGE)
    done = terminal("train", config)
    assert_one_sentence(done, str(run))
    assert incomplete(run) == []
    if (run / "run.json").exists():  # a step was done before it was noticed
        assert [event.step for event in Run.open(run).events(Tag.TRAIN)]
        return
    assert not run.exists()
    disk.free()
    assert terminal("train", config).code == 0


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.6, 0.9])
def test_full_when_the_model_is_written(
    terminal: Terminal, tmp_path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch, merged: bool, share: float
) -> None:
    run = disk.path / "run"
    options = OPTIONS | {"loss": "sft", "max_steps": 2, "merge_before_push": merged}
    assert terminal("train", config_file(tmp_path, "whole", **options)).code == 0
    model = Run.open(tmp_path / "whole").model_path
    original = run_module.export_model

    def export(*arguments: Any) -> None:
        disk.leave(int(share * size_on_disk(model)))
        original(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(run_module, "export_model", export)
        done = terminal("train", config_file(tmp_path, output_dir=str(run), **options))
    assert_one_sentence(done, f"{run / model.name}: the model could not be written", f"--resume {run} writes it again")
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["checkpoint-2"]
    disk.free()
    assert terminal("train", "--resume", run).out == f"model: {run / model.name}\n"
    assert_same_bits(trained_weights(Run.open(run)), trained_weights(Run.open(tmp_path / "whole")))
