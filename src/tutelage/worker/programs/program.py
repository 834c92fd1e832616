"""How every program begins and ends: its folder, its options, SIGTERM, one sentence and an exit code for an error.

Not here: what a program does.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tutelage.errors import JobError, OutputError, TutelageError

ERROR_FILE = "error.txt"
"""Why the program ended as it did, in one sentence; the first process of a run that fails writes it."""
STOPPED = 128 + signal.SIGTERM
UNEXPECTED = 1


@dataclass(frozen=True)
class JobFolder:
    """The folder of a run. params: as the worker left them, with local paths. asked: the job's own, as submitted."""

    path: Path
    job_id: str
    run_id: str
    params: Mapping[str, Any]
    asked: Mapping[str, Any]

    @classmethod
    def here(cls) -> "JobFolder":
        """The one this process was started in. Raises JobError where it is none."""
        path = Path.cwd()
        params = _json_object(path / "params.json")
        job = _json_object(path / "job.json") if (path / "job.json").exists() else {}
        return cls(
            path=path,
            job_id=os.environ.get("TUTELAGE_JOB_ID") or str(job.get("id") or "job"),
            run_id=os.environ.get("TUTELAGE_RUN_ID", ""),
            params=params,
            asked=job.get("params") or params,
        )

    @property
    def uploads(self) -> Path:
        """Everything in here becomes a file of the run. Raises OutputError."""
        return made(self.path / "uploads")


Program = Callable[[JobFolder], None]


def run_program(program: Program) -> None:
    """Run it in the present folder and end this process. SIGTERM raises KeyboardInterrupt in it."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(exit_code_of(program))


def exit_code_of(program: Program) -> int:
    """0, or the code of the error whose sentence is in `error.txt` and was printed."""
    try:
        program(JobFolder.here())
    except TutelageError as error:
        return _failed(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _failed("the job was stopped by a signal", STOPPED)
    except Exception as error:  # a bug, or a GPU out of memory: the log has all of it, the job's page one line
        traceback.print_exc()
        what = next(iter(str(error).strip().splitlines()), "no message")[:500]
        return _failed(f"{type(error).__name__}: {what}; the end of the run's log says where", UNEXPECTED)
    return 0


def made(folder: Path) -> Path:
    """The folder, made if it is not there. Raises OutputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); free space on the worker") from error
    return folder


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _failed(sentence: str, code: int) -> int:
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    try:
        with Path(ERROR_FILE).open("x", encoding="utf-8", errors="backslashreplace") as file:
            file.write(sentence + "\n")
    except OSError:  # there is one already, or the disk is full: the log has the sentence
        pass
    return code


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError(f"{path}: cannot be read ({error}); programs are started by a worker, in a run's folder") from (
            error
        )
    if not isinstance(value, dict):
        raise JobError(f"{path}: holds no JSON object; programs are started by a worker, in a run's folder")
    return value
