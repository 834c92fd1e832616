"""How programs begin and end, and the outbox, against a server that fails when it is told to.

`ReportLog`, `job_folder` and `rows_of` serve the other tests of programs.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tutelage.errors import ConfigError, FencedError, JobError, TutelageError
from tutelage.worker.programs.outbox import BATCH, Outbox, ReportedEvent, Undelivered, Unreachable
from tutelage.worker.programs.program import JobFolder, exit_code_of

JOB, RUN = "ftjob-0123456789ab", "run-1"


class ReportLog:
    """A server in memory: events once each by their id, files by what is in them.

    trouble: called before each call with its number; what it raises is what the caller meets. after: the same, once
    the call has taken effect, as when an answer is lost.
    """

    def __init__(
        self,
        trouble: Callable[[int], None] = lambda number: None,
        after: Callable[[int], None] = lambda number: None,
    ) -> None:
        self.events: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.names: dict[str, str] = {}
        self.received = 0
        self.calls = 0
        self.served: list[tuple[int, dict[str, str]]] = []
        self.is_local = True
        self._trouble = trouble
        self._after = after

    def _call(self) -> None:
        self.calls += 1
        self._trouble(self.calls)

    def upload(self, path: Path, purpose: str) -> str:
        self._call()
        content = path.read_bytes()
        file_id = f"{purpose}:file-{hash(content) & 0xFFFFFFFFFFFF:012x}"
        self.files[file_id] = content
        self.names[file_id] = path.name
        self._after(self.calls)
        return file_id

    def send(self, events: Sequence[ReportedEvent]) -> None:
        self._call()
        self.received += len(events)
        for event in events:
            assert "\0" not in json.dumps(dict(event.data))
            self.events.setdefault(event.id, dict(event.data))
        self._after(self.calls)

    def serve(self, port: int, models: Mapping[str, str]) -> None:
        self._call()
        self.served.append((port, dict(models)))

    @property
    def data(self) -> list[dict[str, Any]]:
        return list(self.events.values())

    def rows(self, file_id: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.files[file_id].decode().splitlines()]


def job_folder(path: Path, params: Mapping[str, Any], asked: Mapping[str, Any] | None = None) -> JobFolder:
    """A run's folder as a worker would make it."""
    path.mkdir(exist_ok=True)
    (path / "params.json").write_text(json.dumps(params), encoding="utf-8")
    job = {"id": JOB, "params": dict(asked or params)}
    (path / "job.json").write_text(json.dumps(job), encoding="utf-8")
    return JobFolder(path, JOB, RUN, params, asked or params)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def away(*numbers: int) -> Callable[[int], None]:
    """A server that does not answer the calls with these numbers, counted from 1."""

    def trouble(number: int) -> None:
        if number in numbers:
            raise Unreachable("connection refused")

    return trouble


class Clock:
    """Time that passes only by waiting."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def outbox_for(report: ReportLog) -> Outbox:
    clock = Clock()
    return Outbox(report, clock=clock, sleep=clock.sleep)


# --- the outbox -----------------------------------------------------------------------------------------------------


def test_events_arrive_once_and_in_order_at_a_server_that_fails_and_loses_answers() -> None:
    """Every third call is refused, every fifth is done and its answer lost; 3 batches of 200 at most."""

    def lost(number: int) -> None:
        if number % 5 == 0:
            raise Unreachable("no answer")

    report = ReportLog(trouble=lambda number: away(number)(number) if number % 3 == 0 else None, after=lost)
    outbox = outbox_for(report)
    for number in range(2 * BATCH + 50):
        outbox.add(f"event-{number}", {"step": number})
    outbox.drain(60)
    assert [data["step"] for data in report.data] == list(range(2 * BATCH + 50))


def test_a_file_is_uploaded_once_though_its_event_has_to_be_sent_again(tmp_path: Path) -> None:
    report = ReportLog(trouble=away(2, 3))
    outbox = outbox_for(report)
    outbox.add("answers", {}, file=write_lines(tmp_path / "a.jsonl", [{"a": 1}]))
    outbox.drain(60)
    (file_id,) = report.files
    assert report.data == [{"file": file_id}]
    assert report.calls == 4  # one upload, two events that were lost, one that was not


def test_what_a_server_that_stays_away_did_not_get_is_counted() -> None:
    """Tries at 0, 2, 4, 6 seconds."""
    report = ReportLog(trouble=away(1, 2, 3, 4))
    outbox = outbox_for(report)
    outbox.add("a", {"x": 1})
    outbox.add("b", {"x": 2})
    with pytest.raises(Undelivered, match=r"2 events .* within 5 s \(connection refused\)"):
        outbox.drain(5)
    outbox.drain(5)
    assert [data["x"] for data in report.data] == [1, 2]


def test_an_event_that_is_refused_for_good_does_not_hold_up_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    class Refusing(ReportLog):
        def send(self, events: Sequence[ReportedEvent]) -> None:
            if any(event.id == "b" for event in events):
                raise JobError("data: larger than 256 KiB; store it as a file")
            super().send(events)

    report = Refusing()
    outbox = outbox_for(report)
    for name in "abc":
        outbox.add(name, {name: 1})
    outbox.drain(5)
    assert report.data == [{"a": 1}, {"c": 1}]
    assert "event b (data: larger than 256 KiB" in capsys.readouterr().err


def test_a_required_event_that_is_refused_is_an_error_and_so_is_a_run_that_was_given_up() -> None:
    def refuse(number: int) -> None:
        raise JobError("too large") if number == 1 else FencedError("run-1 was given up")

    outbox = outbox_for(ReportLog(trouble=refuse))
    outbox.add("result", {"loss": 1.0}, required=True)
    with pytest.raises(JobError, match="too large"):
        outbox.drain(5)
    with pytest.raises(FencedError):
        outbox.drain(5)


# --- beginning and end ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    job_folder(tmp_path, {"model": "m"})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUTELAGE_JOB_ID", JOB)
    monkeypatch.setenv("TUTELAGE_RUN_ID", RUN)
    return tmp_path


def failing(error: BaseException) -> Callable[[JobFolder], None]:
    def program(job: JobFolder) -> None:
        raise error

    return program


def test_a_program_gets_its_folder_and_ends_with_0(here: Path) -> None:
    seen: list[JobFolder] = []
    assert exit_code_of(seen.append) == 0
    assert seen == [JobFolder(here, JOB, RUN, {"model": "m"}, {"model": "m"})]
    assert not (here / "error.txt").exists()


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ConfigError("loss: 'sfd' is not an objective"), 2, "loss: 'sfd' is not an objective\n"),
        (Undelivered("3 events"), 1, "3 events\n"),
        (KeyboardInterrupt(), 143, "the job was stopped by a signal\n"),
        (MemoryError("no\nroom"), 1, "MemoryError: no; the end of the run's log says where\n"),
    ],
)
def test_an_error_is_one_sentence_in_a_file_and_a_code(
    here: Path, error: BaseException, code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code_of(failing(error)) == code
    assert (here / "error.txt").read_text(encoding="utf-8") == sentence
    assert capsys.readouterr().err.endswith(f"error: {sentence}")


def test_the_first_process_that_fails_says_why(here: Path) -> None:
    exit_code_of(failing(TutelageError("the first")))
    exit_code_of(failing(TutelageError("the second")))
    assert (here / "error.txt").read_text(encoding="utf-8") == "the first\n"


def test_outside_a_run_a_program_says_where_it_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code_of(failing(AssertionError())) == 2
    assert "programs are started by a worker, in a run's folder" in capsys.readouterr().err


def test_sigterm_ends_a_program_within_seconds(here: Path) -> None:
    code = (
        "from tutelage.worker.programs.program import run_program\n"
        "import threading\n"
        "def wait(job):\n"
        "    print('ready', flush=True)\n"
        "    threading.Event().wait()\n"
        "run_program(wait)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=here, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 143
        assert time.monotonic() - begun < 5
