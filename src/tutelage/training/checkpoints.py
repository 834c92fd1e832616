"""Which checkpoints of a run are complete. Not here: what is in them (`run_trainer.py`, `transformers`)."""

import json
import re
import shutil
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from tutelage.errors import ResumeError

MARKER = "complete"
"""Written last: a checkpoint without it was cut off by a kill or a full disk."""


def mark_complete(folder: Path) -> None:
    """Declare that everything of this checkpoint is on disk."""
    (folder / MARKER).touch()


def latest_checkpoint(run: Path) -> Path:
    """The newest complete checkpoint of a run. Raises ResumeError if there is none."""
    if not (run / "run.json").is_file():
        raise ResumeError(f"{run}: not a run (no run.json); pass the run's own folder to --resume")
    complete = _complete(run)
    if not complete:
        raise ResumeError(
            f"{run}: no complete checkpoint to continue from; start it anew in another output_dir, "
            "with a smaller save_steps"
        )
    return complete[-1]


def is_last(checkpoint: Path) -> bool:
    """Whether every step of the run was done when this checkpoint was written."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    return state["global_step"] >= state["max_steps"]


def discard_incomplete(run: Path) -> None:
    """Remove what a kill left of a checkpoint, so that no file of it gets into the one that takes its place."""
    for folder in run.glob("checkpoint-*"):
        if not (folder / MARKER).exists():
            shutil.rmtree(folder, ignore_errors=True)


def discard_old(run: Path, keep: int) -> None:
    """Remove all complete checkpoints but the newest `keep`."""
    for folder in _complete(run)[:-keep]:
        (folder / MARKER).unlink(missing_ok=True)  # first: a half removed checkpoint must not look complete
        shutil.rmtree(folder, ignore_errors=True)


def _complete(run: Path) -> list[Path]:
    """Complete checkpoints, the newest last."""
    return sorted((folder for folder in run.glob("checkpoint-*") if (folder / MARKER).exists()), key=_step)


def _step(folder: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else -1
