"""`tutelage serve` as a command with its worker: what that is given, how it is stopped, killed and lost."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.served import Api, Process, until
from tutelage.errors import ConfigError
from tutelage.jobs.access import OF_SERVER
from tutelage.jobs.records import Scope
from tutelage.server.services import open_services
from tutelage.server.settings import ServerSettings

Start = Callable[..., Process]
WAITS = "trap '' TERM; echo $TUTELAGE_RUN_ID $$ >> {notes}; while [ ! -e {go} ]; do sleep 0.05; done; echo done"
"""A job that hears no SIGTERM and ends when it is told to by a file."""


@pytest.fixture(autouse=True)
def workers(tmp_path: Path) -> Iterator[None]:
    """None outlives its test, whatever became of its server."""
    yield
    for process in _workers(tmp_path):
        process.kill()
        process.wait(10)


def _workers(folder: Path) -> list[psutil.Process]:
    """Those that work in a folder."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "worker" in command and any(part.startswith(str(folder)) for part in command):
            found.append(process)
    return found


class Waiting:
    """A job that waits for a file, and notes each of its runs with its process."""

    def __init__(self, folder: Path, api: Api) -> None:
        self.notes, self.go = folder / "notes.txt", folder / "go"
        self.id = api.submit(entrypoint=WAITS.format(notes=self.notes, go=self.go))["id"]

    def runs(self) -> list[list[str]]:
        text = self.notes.read_text() if self.notes.exists() else ""
        return [line.split() for line in text.splitlines()]

    def has_begun(self, times: int = 1) -> None:
        until(lambda: len(self.runs()) == times, "the job's begin")

    def is_gone(self) -> bool:
        return not any(psutil.pid_exists(int(process)) for _, process in self.runs())


def job_of(api: Api, job_id: str, status: str) -> dict[str, Any]:
    """The job, when it has this status."""
    until(lambda: api.ok("GET", f"/api/jobs/{job_id}")["status"] == status, f"{job_id} {status}")
    return api.ok("GET", f"/api/jobs/{job_id}")


def with_token(home: Path, **settings: Any) -> str:
    services = open_services(ServerSettings(home=home))
    token = services.access.create_token(services.organization, "admin", [Scope.ADMIN]).secret
    services.close()
    return token


def test_a_job_gets_nothing_of_what_lets_into_records_and_files(processes: Start, tmp_path: Path) -> None:
    """Section 1: workers hold no credentials of database or store. The server listens on all addresses; its worker
    asks on the loopback one, where no proxy and no network is in between."""
    home = tmp_path / "home"
    token = with_token(home)
    private = {
        "TUTELAGE_DATABASE": f"sqlite:///{home / 'tutelage.db'}",
        "TUTELAGE_FILES": "memory://store",
        "TUTELAGE_SECRET_KEY": (home / "secret.key").read_text(),
        "AWS_SECRET_ACCESS_KEY": "of the store",
        "GOOGLE_APPLICATION_CREDENTIALS": "of the store too",
        "FSSPEC_S3_SECRET": "and of its options",
    }
    server = processes(home, ["--host", "0.0.0.0"], {**private, "OF_THE_MACHINE": "stays"})
    api = server.api(token)
    # Of the job, of its worker, whose environment its jobs could read, and of whatever is between them.
    script = "for p in $$ $PPID; do tr '\\0' '\\n' < /proc/$p/environ; done"
    job = api.submit(entrypoint=script)
    job_of(api, job["id"], "completed")
    run = api.ok("GET", "/api/runs", params={"job_id": job["id"]})["data"][0]
    lines = api("GET", f"/api/logs/{run['id']}").text.splitlines()
    assert "OF_THE_MACHINE=stays" in lines
    assert f"TUTELAGE_URL=http://127.0.0.1:{server.url.rpartition(':')[2]}" in lines
    worker = _workers(tmp_path)[0]
    shown = {line.partition("=")[0] for line in lines} | worker.environ().keys()
    assert shown & private.keys() == set()
    assert "TUTELAGE_URL" in worker.environ()
    # Its token is gone with it.
    assert server.terminate()[0] == 0
    services = open_services(ServerSettings(home=home))
    tokens = services.access.tokens(services.organization)
    services.close()
    assert {one.name.split(" http")[0].split(" of ")[0]: one.revoked_at is None for one in tokens} == {
        "admin": True,
        "worker": False,
    }


def test_a_server_with_a_job_that_does_not_end_goes_down_in_seconds(processes: Start, tmp_path: Path) -> None:
    """The job hears no SIGTERM: it is killed after its grace time, and waits again with its attempt given back."""
    server = processes(tmp_path / "home", [])
    job = Waiting(tmp_path, server.api())
    job.has_begun()
    code, seconds = server.terminate()
    assert code == 0, server.output
    assert seconds < 20, server.output
    assert job.is_gone()
    said = [line for line in server.output.splitlines() if line.startswith("stop")]
    assert said == [
        "stopping: waiting for the worker to stop its job and give it back",
        "stopping: waiting for open connections",
        "stopped",
    ]
    again = processes(tmp_path / "home").api().ok("GET", f"/api/jobs/{job.id}")
    assert (again["status"], again["attempts"], again["run_id"]) == ("pending", 0, None)


def test_a_second_signal_ends_it_at_once(processes: Start, tmp_path: Path) -> None:
    """The worker is killed, and with it its job; the next server gives the job to somebody when its lease is over."""
    server = processes(tmp_path / "home", ["--lease", "2"])
    job = Waiting(tmp_path, server.api())
    job.has_begun()
    server.process.send_signal(signal.SIGINT)
    until(lambda: "stopping: waiting for the worker" in server.output, "the first signal's sentence")
    code, seconds = server.terminate(signal.SIGINT)
    assert code == 0, server.output
    assert seconds < 5
    assert "the worker does not end, it is killed; its job waits for another one" in server.output
    until(job.is_gone, "the job's end")
    api = processes(tmp_path / "home", lease_seconds=2.0).api()
    assert job_of(api, job.id, "pending")["attempts"] == 1


def test_after_kill_minus_nine_of_all_the_next_server_runs_the_job_once_more(processes: Start, tmp_path: Path) -> None:
    """Server and worker at once, as when the memory is full. No process of the first attempt is left when the second
    begins, and the token of the worker that is gone lets nobody in."""
    home = tmp_path / "home"
    server = processes(home, ["--lease", "2"])
    job = Waiting(tmp_path, server.api())
    job.has_begun()
    server.kill()
    for worker in _workers(tmp_path):
        worker.kill()
    with pytest.raises(ConfigError, match="tutelage token create"):
        open_services(ServerSettings(home=home, host="0.0.0.0"))
    server = processes(home, ["--lease", "5"])  # on a busy machine two seconds pass without a heartbeat
    api = server.api()
    job.has_begun(2)
    first, second = job.runs()
    assert not psutil.pid_exists(int(first[1]))
    assert first[0] != second[0]
    job.go.touch()
    done = job_of(api, job.id, "completed")
    assert done["attempts"] == 2
    runs = api.ok("GET", "/api/runs", params={"job_id": job.id})["data"]
    # A lease of two seconds counts from when the worker asked, and the job comes two seconds later: a worker for which
    # it is over by then gives the job back before anything began, which costs no attempt.
    kept = [(run["id"], run["status"]) for run in runs if run["status"] != "canceled"]
    assert kept == [(first[0], "failed"), (second[0], "completed")]
    assert len(job.runs()) == 2
    assert server.terminate()[0] == 0


def test_a_worker_that_is_lost_is_started_again(processes: Start, tmp_path: Path) -> None:
    server = processes(tmp_path / "home", ["--lease", "2"])
    api = server.api()
    first = until(lambda: api.ok("GET", "/api/workers")["data"], "the worker")[0]["id"]
    (worker,) = _workers(tmp_path)
    worker.kill()
    job = api.submit()
    assert job_of(api, job["id"], "completed")["worker_id"] != first
    assert "the worker ended with exit code -9; another one begins" in server.output
    names = [token["name"] for token in api.ok("GET", "/api/tokens")["data"] if token["revoked_at"] is None]
    assert len(names) == 1
    assert names[0].startswith(OF_SERVER)
    began = time.monotonic()
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.process.wait(20) == 0
    assert time.monotonic() - began < 10
