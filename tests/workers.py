"""Workers for tests: in a thread of the test, or in a process that can be killed. Not here: what is tested."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.served import PATIENCE, Api, Served, served, until
from tutelage.worker.settings import WorkerSettings
from tutelage.worker.worker import Worker

FAST = {"lease_seconds": 4.0, "heartbeat_seconds": 0.1}
"""Of a server whose workers are missed soon."""


class Working:
    """A worker in a thread. said: what it told people. code: what it ended with."""

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self.said: list[str] = []
        self.code: int | None = None
        self.error: Exception | None = None
        given = WorkerSettings(**{"name": "thread", "folder": folder, "grace": 1.0, "ignore_vram": True, **settings})
        self.worker = Worker(given, base_url=url, say=self.said.append)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.code = self.worker.run()
        except Exception as error:  # the test looks at it
            self.error = error

    def ended(self) -> int | None:
        """Wait for its end; the code."""
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), self.said
        if self.error is not None:
            raise self.error
        return self.code


@contextlib.contextmanager
def working(url: str, folder: Path, **settings: Any) -> Iterator[Working]:
    """A worker in a thread for as long as this lasts."""
    running = Working(url, folder, **settings)
    try:
        yield running
    finally:
        running.worker.stop("the test is over")
        running.ended()


_PROGRAM = """
import json, pathlib, sys
from tutelage.worker.settings import WorkerSettings
from tutelage.worker.worker import Worker
options = json.loads(sys.argv[3])
settings = WorkerSettings(**{"folder": pathlib.Path(sys.argv[2]), "grace": 1.0, "ignore_vram": True, **options})
sys.exit(Worker(settings, base_url=sys.argv[1]).run())
"""


class WorkerProcess:
    """A worker in a process. `output` is what it has said."""

    def __init__(self, url: str, folder: Path, options: dict[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"output-{secrets.token_hex(4)}.txt"
        with self.path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", _PROGRAM, url, str(folder), json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    @property
    def output(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace")

    def begun(self) -> "WorkerProcess":
        """When it has registered."""
        until(lambda: "takes jobs of" in self.output or self.process.poll() is not None, "the worker's start")
        assert self.process.poll() is None, self.output
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close_input(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self) -> tuple[int, float]:
        """Its exit code after SIGTERM, and the seconds that it took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        return self.process.wait(PATIENCE), time.monotonic() - began


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    """Shared by the tests of a module: each sees the jobs it submitted."""
    with served(tmp_path_factory.mktemp("server"), migrated=migrated_sqlite, **FAST) as running:
        yield running


@pytest.fixture
def api(server: Served) -> Api:
    """Of that server."""
    return server.api()


@pytest.fixture
def worker_process() -> Iterator[Callable[..., WorkerProcess]]:
    """Start a worker on a server's address and a folder; all are gone after the test."""
    started: list[WorkerProcess] = []

    def start(url: str, folder: Path, **options: Any) -> WorkerProcess:
        started.append(WorkerProcess(url, folder, {"name": f"process-{len(started)}", **options}))
        return started[-1].begun()

    yield start
    for one in started:
        if one.process.poll() is None:
            one.signal(signal.SIGCONT)
            one.kill()
        one.close_input()


def status(api: Api, job: dict[str, Any]) -> str:
    return api.ok("GET", f"/api/jobs/{job['id']}")["status"]


def ended(api: Api, job: dict[str, Any], *statuses: str, patience: float = PATIENCE) -> dict[str, Any]:
    """The job once it has one of these statuses and nobody runs it any more."""
    wanted = statuses or ("completed", "failed", "canceled")

    def look() -> dict[str, Any] | None:
        found = api.ok("GET", f"/api/jobs/{job['id']}")
        return found if found["status"] in wanted and found["run_id"] is None else None

    return until(look, f"the end of {job['id']} as {wanted}", patience)


def runs(api: Api, job: dict[str, Any]) -> list[dict[str, Any]]:
    return api.ok("GET", "/api/runs", params={"job_id": job["id"]})["data"]


def events(api: Api, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The data of all events of a job."""
    return [event["data"] for event in api.ok("GET", "/api/events", params={"job_id": job["id"]})["data"]]


def log(api: Api, job: dict[str, Any], attempt: int = -1) -> str:
    """The log of the job's last run, or of the one at this place; nothing before there is a run."""
    found = runs(api, job)
    return api("GET", f"/api/logs/{found[attempt]['id']}").text if found else ""


def word(api: Api, job: dict[str, Any], name: str, attempt: int = -1, patience: float = PATIENCE) -> str:
    """What the job printed behind `NAME=`, once it is there."""

    def look() -> str:
        lines = log(api, job, attempt).splitlines(keepends=True)
        return next((line[len(name) + 1 : -1] for line in lines if line.startswith(f"{name}=") and "\n" in line), "")

    return until(look, f"{name}= in the log of {job['id']}", patience)


def is_alive(pid: int | str) -> bool:
    """Whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")
