"""How a run ended, and in which words. Not here: what leads there (`job_run.py`)."""

import signal
from dataclasses import dataclass
from pathlib import Path

from tutelage.jobs.status import JobStatus
from tutelage.worker.guarded import GuardedProcess
from tutelage.worker.masking import StreamMasker

ERROR_FILE = "error.txt"
"""In the job's folder: why it failed, in one sentence. Programs of ours write it, others may."""
MAX_REASON = 2000


@dataclass(frozen=True)
class Ending:
    """status: pending gives the job back; None where the server gave the run up, and nothing counts any more.

    worker_failed: it is the worker that could not do it.
    """

    status: JobStatus | None
    reason: str | None = None
    exit_code: int | None = None
    worker_failed: bool = False


GONE = Ending(None, "the server gave the run up")


def given_back(reason: str, *, worker_failed: bool = False) -> Ending:
    """The job is to be done by somebody else."""
    return Ending(JobStatus.PENDING, reason, worker_failed=worker_failed)


def canceled(exit_code: int | None) -> Ending:
    """A user wanted it stopped."""
    return Ending(JobStatus.CANCELED, "canceled by a user", exit_code)


def worker_failure(reason: str) -> Ending:
    """The worker could not do it."""
    return Ending(JobStatus.FAILED, reason[:MAX_REASON], worker_failed=True)


def ending_of_process(process: GuardedProcess, folder: Path, masker: StreamMasker) -> Ending:
    """Of one that is gone and was not asked to go."""
    if process.refusal is not None:
        return worker_failure(f"its process cannot be started ({process.refusal}); see the worker's machine")
    if process.late:
        return given_back("its worker could not reach the server for the time of a lease, and stopped it")
    code = process.exit_code
    if code == 0:
        return Ending(JobStatus.COMPLETED, exit_code=0)
    return Ending(JobStatus.FAILED, _last_words(folder / ERROR_FILE, masker) or reason_of(code or 0), code)


def reason_of(exit_code: int) -> str:
    """`exit code 3`, or `killed by signal 9 (SIGKILL; out of memory?)`."""
    if exit_code < 0:
        return f"killed by signal {_named(-exit_code)}"
    if exit_code - 128 in signal.valid_signals():
        return f"exit code {exit_code}: in a shell, killed by signal {_named(exit_code - 128)}"
    return f"exit code {exit_code}"


def _named(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        return str(number)
    return f"{number} ({name}; out of memory?)" if number == signal.SIGKILL else f"{number} ({name})"


def _last_words(path: Path, masker: StreamMasker) -> str:
    """The first lines of the file on one; nothing where there is none, or it is no regular file."""
    try:
        if path.is_symlink() or not path.is_file():
            return ""
        with path.open("rb") as file:
            content = file.read(4 * MAX_REASON)
            is_all = not file.read(1)
    except OSError:
        return ""
    # Masked before lines are joined and the end is cut: a secret may have line ends, and lie across the cut.
    masked = masker.feed(content) + (masker.end() if is_all else b"")
    return " ".join(masked.decode(errors="replace").split())[:MAX_REASON]
