"""Canceling at every moment of a run: it ends in `canceled`, and nothing of the process is left."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import Api, Served, until
from tests.workers import Working, api, ended, events, is_alive, log, runs, server, word, working
from tutelage.worker import job_run

__all__ = ["api", "server"]

GRANDCHILD = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    os.write(1, f"grandchild={os.getpid()}\\n".encode())
    time.sleep(600)
os.write(1, f"child={os.getpid()}\\n".encode())
os.close(1)
os.close(2)
time.sleep(600)
"""
"""Closes its output while a process of another session holds the same pipe; both ignore SIGTERM."""


@pytest.fixture
def at_work(server: Served, tmp_path: Path) -> Iterator[Working]:
    with working(server.url, tmp_path / "worker", grace=0.5) as running:
        yield running


def cancel(api: Api, job: dict[str, Any]) -> dict[str, Any]:
    """Cancel it, and wait until its worker is done with it: within seconds."""
    began = time.monotonic()
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    found = ended(api, job, "canceled")
    assert time.monotonic() - began < 10
    return found


def is_well(api: Api) -> None:
    """The worker goes on with the next job."""
    assert ended(api, api.submit(entrypoint="true"))["status"] == "completed"


def test_before_it_was_claimed(api: Api, server: Served, tmp_path: Path) -> None:
    job = api.submit(entrypoint=f"touch {tmp_path}/began")
    cancel(api, job)
    with working(server.url, tmp_path / "worker"):
        is_well(api)
    assert runs(api, job) == []


def test_while_its_files_are_fetched(
    api: Api, at_work: Working, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that does not end: nobody waits for it, and no process is started."""
    fetching, over = threading.Event(), threading.Event()

    def fetch(*_: Any) -> None:
        fetching.set()
        over.wait(60)

    with monkeypatch.context() as patched:
        patched.setattr(job_run, "fill", fetch)
        job = api.submit(entrypoint=f"touch {tmp_path}/began")
        assert fetching.wait(30)
        cancel(api, job)
    is_well(api)
    over.set()
    assert runs(api, job)[0]["exit_code"] is None
    assert not (tmp_path / "began").exists()


def test_one_that_ends_when_asked(api: Api, at_work: Working) -> None:
    """What it leaves then is uploaded: a checkpoint, as it were."""
    job = api.submit(
        entrypoint="trap 'echo last > uploads/last.txt; exit 0' TERM; echo id=$$; while :; do sleep 0.01; done"
    )
    pid = word(api, job, "id")
    cancel(api, job)
    assert not is_alive(pid)
    assert (runs(api, job)[0]["status"], runs(api, job)[0]["exit_code"]) == ("canceled", 0)
    assert [event["path"] for event in events(api, job)] == ["last.txt"]


def test_one_that_ignores_being_asked(api: Api, at_work: Working) -> None:
    job = api.submit(entrypoint="trap '' TERM; echo id=$$; while :; do sleep 0.01; done")
    pid = word(api, job, "id")
    cancel(api, job)
    assert not is_alive(pid)
    assert runs(api, job)[0]["exit_code"] == -9
    is_well(api)


def test_while_its_output_closes(api: Api, at_work: Working) -> None:
    script = api.upload(GRANDCHILD.encode())["id"]
    job = api.submit(entrypoint="exec python main.py", mounted_files={"main.py": script})
    child, grandchild = word(api, job, "child"), word(api, job, "grandchild")
    assert cancel(api, job)["reason"] == "canceled by a user"
    assert not is_alive(child)
    assert not is_alive(grandchild)
    is_well(api)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.03, 0.1])
def test_at_the_very_end(api: Api, at_work: Working, seconds: float) -> None:
    """The process ends on its own about when it is canceled: one or the other, never an exception."""
    job = api.submit(entrypoint=f"echo id=$$; sleep {seconds}")
    word(api, job, "id")
    answer = api("POST", f"/api/jobs/{job['id']}/cancel")
    found = ended(api, job)
    assert (answer.status_code, found["status"]) in ((200, "canceled"), (400, "completed"))
    assert runs(api, job)[0]["status"] == found["status"]
    assert not [line for line in at_work.said if "error" in line]


def test_while_it_uploads(api: Api, at_work: Working, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is over; what it left is still taken in."""
    uploading, go_on = threading.Event(), threading.Event()
    upload = job_run.upload_left

    def wait_and_upload(*given: Any) -> None:
        uploading.set()
        assert go_on.wait(30)
        upload(*given)

    monkeypatch.setattr(job_run, "upload_left", wait_and_upload)
    job = api.submit(entrypoint="echo 1 > uploads/a.txt")
    assert uploading.wait(30)
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    go_on.set()
    assert ended(api, job)["status"] == "canceled"
    assert [event["path"] for event in events(api, job)] == ["a.txt"]


def test_after_the_end(api: Api, at_work: Working) -> None:
    job = api.submit(entrypoint="echo done")
    assert ended(api, job)["status"] == "completed"
    api.refused(400, "POST", f"/api/jobs/{job['id']}/cancel")
    assert (ended(api, job)["status"], log(api, job)) == ("completed", "done\n")


def test_restarted_while_it_is_being_stopped(api: Api, at_work: Working, tmp_path: Path) -> None:
    """The second run begins when nothing is left of the first: lines of the two do not mix."""
    entrypoint = (
        f"trap '' TERM; echo id=$$; while [ ! -e {tmp_path}/go ]; do echo $TUTELAGE_RUN_ID >> {tmp_path}/lines; done"
    )
    job = api.submit(entrypoint=entrypoint)
    word(api, job, "id")
    api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    api.ok("POST", f"/api/jobs/{job['id']}/restart")
    until(lambda: len(runs(api, job)) == 2, "the second run")
    word(api, job, "id")
    (tmp_path / "go").touch()
    assert ended(api, job)["status"] == "completed"
    first, second = (run["id"] for run in runs(api, job))
    lines = [line for line in (tmp_path / "lines").read_text().splitlines() if len(line) == len(first)]
    assert lines == sorted(lines, key=[first, second].index)
    assert runs(api, job)[0]["status"] == "canceled"


def test_a_job_whose_time_is_over(api: Api, at_work: Working) -> None:
    """The server cancels it; how it is said is the server's."""
    job = api.submit(entrypoint="echo id=$$; sleep 600")
    pid = word(api, job, "id")
    api.ok("PATCH", f"/api/jobs/{job['id']}", {"timeout": "2020-01-01T00:00:00Z"})
    assert "timeout" in ended(api, job, "canceled")["reason"]
    assert not is_alive(pid)
