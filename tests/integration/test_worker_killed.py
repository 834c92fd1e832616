"""A worker that is killed between any two steps of a job: the next one does what is left to do, once.

The worker is a process that sends itself SIGKILL, at a step that it is told; its lease is ended by hand, so that no
test waits for it. Killed while the process of a job runs: `test_worker_faults.py`.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.served import PATIENCE, Api, Served, served, until
from tests.workers import events, is_alive, log, runs, status, working
from tutelage.jobs.tables import runs as runs_table
from tutelage.worker import job_folder

KILLING_ITSELF = """
import importlib, itertools, os, pathlib, signal, sys
from tutelage.worker.settings import WorkerSettings
from tutelage.worker.worker import Worker

place, when, call = sys.argv[3], sys.argv[4], int(sys.argv[5])
module, *owners, name = place.split(":")
owner = importlib.import_module(module)
for one in owners:
    owner = getattr(owner, one)
original, calls = getattr(owner, name), itertools.count(1)

def deadly(*given, **named):
    mine = next(calls)
    if when == "before" and mine == call:
        os.kill(os.getpid(), 9)
    result = original(*given, **named)
    if when == "after" and mine == call:
        os.kill(os.getpid(), 9)
    return result

setattr(owner, name, deadly)
settings = WorkerSettings(name="deadly", folder=pathlib.Path(sys.argv[2]), ignore_vram=True)
Worker(settings, base_url=sys.argv[1]).run()
"""
API = "tutelage.client.worker_api:WorkerApi"
STEPS = {
    "its folder is made and not locked yet": ("fcntl:flock", "before", 1),
    "the job is handed out": (f"{API}:claim", "after", 1),
    "one of two files is fetched": (f"{API}:download", "after", 1),
    "the files are there, no process yet": ("tutelage.worker.job_run:fill", "after", 1),
    "the process is over": ("tutelage.worker.job_run:upload_left", "before", 1),
    "a file is there, its event is not": (f"{API}:upload", "after", 1),
    "one of two files is there": (f"{API}:append_events", "after", 1),
    "both files are there": (f"{API}:append_events", "after", 2),
    "the end is about to be told": (f"{API}:finish", "before", 1),
    "the end is told": (f"{API}:finish", "after", 1),
}
"""What is there when the worker dies: the function, on which side of it, at which call."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("server"), migrated=migrated_sqlite, heartbeat_seconds=0.1) as running:
        yield running


@pytest.fixture
def api(server: Served) -> Api:
    return server.api()


def end_lease(server: Served, job: dict[str, Any]) -> None:
    """As if the worker had been silent for that long."""
    with server.services.database.writing() as connection:
        lease = update(runs_table).where(runs_table.c.job_id == job["id"], runs_table.c.lease_until.is_not(None))
        connection.execute(lease.values(lease_until=-1e12))
    server.services.queue.expire()


def processes_with(text: str) -> list[str]:
    """Ids of processes whose command line or environment names it, but this one's."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if text.encode() in said and is_alive(folder.name) and folder.name != str(os.getpid()):
                found.append(folder.name)
    return found


@pytest.mark.parametrize("step", STEPS)
def test_a_worker_that_is_killed(
    server: Served, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The job is completed by one run, which has its log and each file once; nothing is left of the other."""
    place, when, call = STEPS[step]
    entrypoint = (
        f"echo $TUTELAGE_RUN_ID >> {tmp_path}/began; cat a b; mkdir uploads/model; "
        "echo first > uploads/a.txt; echo weights > uploads/model/w.bin"
    )
    mounted = {name: api.upload(f"{name}\n".encode(), name=name)["id"] for name in ("a", "b")}
    job = api.submit(entrypoint=entrypoint, mounted_files=mounted)
    folder = tmp_path / "worker"
    deadly = subprocess.run(
        [sys.executable, "-c", KILLING_ITSELF, server.url, str(folder), place, when, str(call)],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )
    assert deadly.returncode == -signal.SIGKILL, deadly.stderr.decode()
    lost = runs(api, job)[0]["id"]
    until(lambda: not processes_with(lost), "the end of what the worker had started", patience=2.0)
    # What a worker made in the moment of its death has no lock; it is removed when it is old.
    monkeypatch.setattr(job_folder, "WITHOUT_LOCK_SECONDS", -1.0)
    is_done = step == "the end is told"
    assert status(api, job) == ("completed" if is_done else "in_progress")
    end_lease(server, job)
    other = None if is_done else api.submit(entrypoint="true")
    with working(server.url, folder) as running:
        until(lambda: running.worker.id, "its registration")
        until(lambda: status(api, job) == "completed", "the end of the job")
        if other is not None:
            until(lambda: status(api, other) == "completed", "the end of the next job")
    found = runs(api, job)
    assert [run["status"] for run in found] == (["completed"] if is_done else ["failed", "completed"])
    assert api.ok("GET", f"/api/jobs/{job['id']}")["attempts"] == len(found)
    done = found[-1]["id"]
    began = (tmp_path / "began").read_text().split()
    assert began[-1] == done
    assert set(began[:-1]) <= {lost}
    assert log(api, job) == "a\nb\n"
    reported = api.ok("GET", "/api/events", params={"run_id": done})["data"]
    assert [event["data"]["path"] for event in reported] == ["a.txt", "model/w.bin"]
    # The same bytes are the same file, whichever run left them.
    assert {event["path"]: event["file"] for event in events(api, job)} == {
        event["data"]["path"]: event["data"]["file"] for event in reported
    }
    assert api("GET", f"/v1/files/{reported[1]['data']['file']}/content").text == "weights\n"
    assert list((folder / "runs").iterdir()) == []
