"""The words for how a process ended."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tutelage.jobs.status import JobStatus
from tutelage.worker.endings import Ending, ending_of_process, reason_of
from tutelage.worker.masking import StreamMasker


def process(**changes: Any) -> Any:
    return cast("Any", SimpleNamespace(**{"refusal": None, "late": False, "exit_code": 0, **changes}))


def ended(folder: Path, *secrets: str, **changes: Any) -> Ending:
    return ending_of_process(process(**changes), folder, StreamMasker(secrets))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (3, "exit code 3"),
        (-9, "killed by signal 9 (SIGKILL; out of memory?)"),
        (-11, "killed by signal 11 (SIGSEGV)"),
        (137, "exit code 137: in a shell, killed by signal 9 (SIGKILL; out of memory?)"),
        (255, "exit code 255"),
    ],
)
def test_reasons(code: int, reason: str) -> None:
    """128 and more is what a shell says of a child that a signal ended."""
    assert reason_of(code) == reason


def test_it_went_well(tmp_path: Path) -> None:
    """A sentence that is there all the same is of something the program got over."""
    (tmp_path / "error.txt").write_text("a warning\n", encoding="utf-8")
    assert ended(tmp_path) == Ending(JobStatus.COMPLETED, None, 0)


def test_the_programs_own_sentence_is_the_reason(tmp_path: Path) -> None:
    """Without secrets, on one line."""
    (tmp_path / "error.txt").write_text("rows.jsonl:17: bad\nkey sk-123456\n", encoding="utf-8")
    assert ended(tmp_path, "sk-123456", exit_code=2) == Ending(JobStatus.FAILED, "rows.jsonl:17: bad key ***", 2)


def test_a_secret_of_several_lines(tmp_path: Path) -> None:
    """Its line ends would be gone from the sentence, and with them what it is known by."""
    (tmp_path / "error.txt").write_text("bad key: -----BEGIN\nabc\n  def\n-----END\n; get another", encoding="utf-8")
    secret = "-----BEGIN\nabc\n  def\n-----END"
    assert ended(tmp_path, secret, exit_code=2).reason == "bad key: *** ; get another"


@pytest.mark.parametrize("before", [1995, 7995])
def test_a_secret_across_a_cut(tmp_path: Path, before: int) -> None:
    """The sentence ends at 2000 characters, and of the file 8000 bytes are read: here the secret lies across both."""
    spaces = " " * (before - 1995)
    (tmp_path / "error.txt").write_text("x" * 1990 + spaces + "_" * 5 + "sk-0123456789" + "y" * 9000, encoding="utf-8")
    reason = ended(tmp_path, "sk-0123456789", exit_code=2).reason or ""
    assert "sk-" not in reason
    assert reason.split("_")[0].strip() == "x" * 1990


def test_a_sentence_that_is_a_link_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "error.txt").symlink_to("/etc/passwd")
    assert ended(tmp_path, exit_code=2).reason == "exit code 2"


def test_a_process_that_could_not_be_started(tmp_path: Path) -> None:
    ending = ended(tmp_path, refusal="No such file or directory", exit_code=None)
    assert (ending.status, ending.worker_failed) == (JobStatus.FAILED, True)
    assert "No such file or directory" in (ending.reason or "")


def test_a_process_whose_lease_ran_out_goes_back(tmp_path: Path) -> None:
    assert ended(tmp_path, late=True, exit_code=-9).status is JobStatus.PENDING
