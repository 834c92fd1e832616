"""Runs of a client: reporting that outlives a restart, events, downloads that stay in their folder."""

import io
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fake_job_server import JobServer, PretendWorker, job_server
from tests.served import PATIENCE, until
from tutelage.client import OpenWeights
from tutelage.client.errors import ConnectionFailed
from tutelage.client.results import NewEvent
from tutelage.errors import FencedError, JobError, NotFoundError
from tutelage.jobs.status import JobStatus

EVENTS = "POST /api/events"


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


@pytest.fixture
def worker(server: JobServer) -> PretendWorker:
    return server.worker()


@pytest.fixture
def run_id(server: JobServer, worker: PretendWorker) -> str:
    server.client.exec("true")
    return worker.claim().run_id


def inside(server: JobServer, run_id: str, token: str, monkeypatch: pytest.MonkeyPatch) -> OpenWeights:
    """The client that a process of this run makes for itself."""
    monkeypatch.setenv("TUTELAGE_RUN_ID", run_id)
    monkeypatch.setenv("TUTELAGE_URL", server.url)
    monkeypatch.setenv("TUTELAGE_API_KEY", token)
    return OpenWeights()


def test_a_process_of_a_job_reports_as_its_run(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the token of its own, which is good for its run alone."""
    worker = server.worker()
    for command in ("echo 1", "echo 2"):
        server.client.exec(command)
    first, other = worker.claim(), server.worker().claim()
    client = inside(server, first.run_id, first.token, monkeypatch)
    assert client.me.run_id == client.run.id == first.run_id
    client.run.log({"loss": 1.5, "step": 1})
    client.run.log({"text": "bye"}, file=io.BytesIO(b"abc"))
    events = client.run.events
    assert [event["data"] for event in events] == [{"loss": 1.5, "step": 1}, {"text": "bye"}]
    assert client.files.content(events[1]["file"]) == b"abc"
    assert str(events[1].file).startswith("event:file-")
    with pytest.raises(Exception, match="the token is of another run"):
        client.runs.retrieve(other.run_id).log({"loss": 0})
    assert client.run.refresh().latest == {"loss": 1.5, "step": 1, "text": "bye"}


def test_the_variable_of_openweights_names_the_run_too(
    server: JobServer, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUTELAGE_RUN_ID", raising=False)
    monkeypatch.setenv("OPENWEIGHTS_RUN_ID", run_id)
    assert server.client.run.id == run_id


def test_a_script_outside_any_job_has_a_run_of_its_own(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUTELAGE_RUN_ID", "OPENWEIGHTS_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["track.py", "--name", "two words"])
    run = server.client.run
    run.log({"loss": 2})
    assert server.client.run is run
    job = server.client.jobs.retrieve(run.job_id)
    assert (job.type, job.status, job.script) == ("script", "in_progress", "track.py --name 'two words'")
    assert job.id.startswith("sjob-")
    assert server.client.events.latest("loss", job_id=job.id) == {"loss": 2}


def test_reports_outlive_a_restart_of_the_server(server: JobServer, run_id: str) -> None:
    """And a lost answer reports nothing twice."""
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 4:
            server.cable.plug_in()

    server.client.http._sleep = pause
    run = server.client.runs.retrieve(run_id)
    server.cable.pull_out()
    run.log({"step": 1})
    assert len(pauses) == 4
    server.cable.lose_answers = 2
    run.log({"step": 2})
    server.faults.answers[EVENTS] = [500, 503]
    run.log({"step": 3}, file=io.BytesIO(b"x"))
    assert [event.data for event in run.events] == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_reporting_gives_up_after_its_time(server: JobServer, run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage.client import runs

    run = server.client.runs.retrieve(run_id)
    monkeypatch.setattr(runs, "LOG_PATIENCE_SECONDS", 0.0)
    server.cable.pull_out()
    with pytest.raises(ConnectionFailed, match="tutelage serve"):
        run.log({"step": 1})


def test_a_run_that_was_given_up_may_not_report(server: JobServer, worker: PretendWorker, run_id: str) -> None:
    run = server.client.runs.retrieve(run_id)
    worker.complete(run_id)
    with pytest.raises(FencedError, match=run_id):
        run.log({"step": 1})
    assert server.faults.seen[EVENTS] == 1


def test_what_is_no_json_is_not_reported(server: JobServer, run_id: str) -> None:
    run = server.client.runs.retrieve(run_id)
    with pytest.raises(JobError, match="object has no form in JSON"):
        run.log({"loss": object()})
    with pytest.raises(JobError, match="more than 262144 are not taken; log a file"):
        run.log({"text": "x" * 300_000})
    assert run.events == []


def test_events_come_in_pages_and_all_of_them(server: JobServer, worker: PretendWorker, run_id: str) -> None:
    worker.api.append_events(run_id, [NewEvent(f"n{n}", {"n": n, "tag": "train", "step": n}) for n in range(2500)])
    assert server.faults.seen[EVENTS] == 3
    run = server.client.runs.retrieve(run_id)
    assert [event.data["n"] for event in run.events] == list(range(2500))
    assert [event.data["n"] for event in server.client.events.list(job_id=run.job_id)] == list(range(2500))
    series = {one.field: one for one in run.series(points=100)}
    assert (series["n"].tag, series["n"].steps[-1], series["n"].values[-1]) == ("train", 2499.0, 2499.0)
    assert 100 <= len(series["n"].values) <= 200


def test_the_newest_value_of_each_field(server: JobServer, worker: PretendWorker, run_id: str) -> None:
    worker.report(run_id, {"loss": 2, "file": "a"}, {"loss": 1, "file": None}, {"other": 3})
    events, job_id = server.client.events, server.client.runs.retrieve(run_id).job_id
    assert events.latest("*", run_id=run_id) == {"loss": 1, "file": "a", "other": 3}
    assert events.latest(["loss", "never"], job_id=job_id) == {"loss": 1}
    assert events.latest("other", run_id=run_id) == {"other": 3}
    for call in (events.list, events.latest):
        with pytest.raises(JobError, match="whose events"):
            call()


def test_runs_are_listed_newest_last(server: JobServer, worker: PretendWorker) -> None:
    runs = []
    job = server.client.exec("true")
    for _ in range(3):
        runs.append(worker.claim().run_id)
        worker.complete(runs[-1])
        job.restart()
    server.client.exec("echo other")
    assert [run.id for run in server.client.runs.list(job_id=job.id)] == runs
    assert [run.id for run in server.client.runs.list(job_id=job.id, limit=2)] == runs[1:]
    assert [run["id"] for run in server.client.runs.list(worker_id=worker.worker.id, status="completed")] == runs
    assert server.client.runs.list(status="failed") == []
    first = server.client.runs.retrieve(runs[0])
    assert (first["status"], f"{first.status}", first.log_file, first.exit_code) == ("completed", "completed", None, 0)
    with pytest.raises(KeyError):
        first["magic"]
    with pytest.raises(NotFoundError):
        server.client.runs.retrieve("run-1")


def test_a_download_has_the_log_and_every_file_at_its_path(
    server: JobServer, worker: PretendWorker, run_id: str, tmp_path: Path
) -> None:
    """Of two files with one path the newer one; a file without a path under its id; deleted files are left out."""
    worker.api.append_log(run_id, 0, b"printed\n")
    worker.leave(run_id, tmp_path, "model/weights.bin", b"old")
    worker.leave(run_id, tmp_path, "model/weights.bin", b"new")
    gone = worker.leave(run_id, tmp_path, "gone.bin", b"gone")
    run = server.client.runs.retrieve(run_id)
    run.log({"note": 1}, file=io.BytesIO(b"attached"))
    worker.report(run_id, {"file": "no id of a file"})
    attached = next(event.file for event in run.events if event.file is not None)
    server.client.files.delete(gone)
    written = run.download(tmp_path / "to")
    expected = {f"{run_id}.log": b"printed\n", "model/weights.bin": b"new", attached: b"attached"}
    assert {path.relative_to(tmp_path / "to").as_posix(): path.read_bytes() for path in written} == expected
    found = {path for path in (tmp_path / "to").rglob("*") if path.is_file()}
    assert found == set(written)


@pytest.mark.parametrize("path", ["../out.bin", "/tmp/out.bin", "a/../../out.bin", "~/out.bin", "C:\\out.bin"])
def test_a_download_stays_in_its_folder(
    server: JobServer, worker: PretendWorker, run_id: str, tmp_path: Path, path: str
) -> None:
    worker.leave(run_id, tmp_path, "fine.bin", b"fine")
    file_id = worker.leave(run_id, tmp_path, "x.bin", b"evil")
    worker.report(run_id, {"file": file_id, "path": path})
    with pytest.raises(JobError, match="mount target"):
        server.client.runs.retrieve(run_id).download(tmp_path / "deep" / "to")
    assert not (tmp_path / "deep").exists()


def test_links_lead_no_download_out_of_its_folder(
    server: JobServer, worker: PretendWorker, run_id: str, tmp_path: Path
) -> None:
    worker.leave(run_id, tmp_path, "linked/x.bin", b"evil")
    (tmp_path / "outside").mkdir()
    (tmp_path / "to").mkdir()
    (tmp_path / "to" / "linked").symlink_to(tmp_path / "outside")
    with pytest.raises(JobError, match="a link leads out"):
        server.client.runs.retrieve(run_id).download(tmp_path / "to")
    assert list((tmp_path / "outside").iterdir()) == []


def test_logs_are_texts_whatever_was_printed(server: JobServer, worker: PretendWorker, run_id: str) -> None:
    """More than one part of the server's (a megabyte), a character across two parts, bytes that are no UTF-8."""
    content = "é".encode() * 1_200_000 + b"\xff" + b"end"
    assert worker.api.append_log(run_id, 0, content) == len(content)
    text = server.client.runs.retrieve(run_id).logs()
    assert text == "é" * 1_200_000 + "\ufffdend"
    assert server.client.files.content(f"log:{run_id}") == content


def test_a_log_is_followed_while_it_is_printed(server: JobServer, worker: PretendWorker, run_id: str) -> None:
    run = server.client.runs.retrieve(run_id)
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(run.logs(follow=True)))
    listener.start()
    for number in range(3):
        worker.api.append_log(run_id, 2 * number, f"{number}\n".encode())
        until(lambda wanted=number + 1: "".join(heard).count("\n") == wanted, "the line")
    worker.api.finish(run_id, JobStatus.COMPLETED)
    listener.join(PATIENCE)
    assert not listener.is_alive()
    assert "".join(heard) == "0\n1\n2\n"
