"""Which checkpoints of a run are complete. Not here: what is in them (`base_trainer.py`, `transformers`)."""

import re
from pathlib import Path

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
    complete = [folder for folder in run.glob("checkpoint-*") if (folder / MARKER).exists()]
    if not complete:
        raise ResumeError(f"{run}: no complete checkpoint to continue from; start it anew, with a smaller save_steps")
    return max(complete, key=_step)


def _step(folder: Path) -> int:
    match = re.fullmatch(r"checkpoint-(\d+)", folder.name)
    return int(match.group(1)) if match else -1
