"""A real worker, and its job, behind a network that loses answers, cuts requests off and falls silent.

Whatever it does at whatever step: the job is done once, its log, its events and its files are there once. The network
is `tests.fake_job_server.Cable`; here nothing of the worker is replaced.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fake_job_server import Accident, Cable
from tests.served import Api, Served, new_run_id, until
from tests.workers import FAST, api, ended, runs, server, status, working

__all__ = ["api", "server"]

STEPS = {
    "register": ("POST /api/workers ", 0),
    "claim": ("POST /api/claims ", 0),
    "name of a file": ("GET /v1/files/[^/ ]* ", 0),
    "content of a file": ("GET /v1/files/[^ ]*/content ", 0),
    "heartbeat": ("POST /api/runs/[^/]*/heartbeat ", 1),
    "log": ("POST /api/logs/", 0),
    "event of the job": ("POST /api/events ", 0),
    "upload": ("POST /v1/files ", 0),
    "event of an upload": ("POST /api/events ", 2),
    "finish": ("POST /api/runs/[^/]*/finish ", 0),
}
"""The beginnings of the requests in a job's life, and how many of these come before the one that is meant."""
SCRIPT = """
import json, pathlib
from tutelage import OpenWeights

client = OpenWeights()
print("begins", flush=True)
client.run.log({"loss": 1.5})
params = json.loads(pathlib.Path("params.json").read_text())
print(pathlib.Path(params["rows"]).read_text(), end="", flush=True)
client.run.log({"loss": 0.5})
pathlib.Path("uploads/model").mkdir()
pathlib.Path("uploads/a.txt").write_text("first")
pathlib.Path("uploads/model/w.bin").write_text("weights")
print("ends", flush=True)
"""
PRINTED = "begins\none row\nends\n"


@pytest.fixture
def cable(server: Served) -> Iterator[Cable]:
    cable = Cable(server.port)
    yield cable
    cable.close()


def submitted(api: Api) -> dict[str, Any]:
    script = api.upload(SCRIPT.encode(), name="main.py")["id"]
    rows = api.upload(b"one row\n", name="rows.txt")["id"]
    return api.submit(
        entrypoint="python main.py", mounted_files={"main.py": script}, params={"rows": rows, "number": new_run_id()}
    )


def assert_done_once(api: Api, job: dict[str, Any], run: dict[str, Any], seen: Path) -> None:
    """The run has all that the script says, each once and in order; no folder is left."""
    assert api("GET", f"/api/logs/{run['id']}").text == PRINTED
    found = [event["data"] for event in api.ok("GET", "/api/events", params={"run_id": run["id"]})["data"]]
    assert [event for event in found if "file" not in event] == [{"loss": 1.5}, {"loss": 0.5}]
    files = {event["path"]: event["file"] for event in found if "file" in event}
    assert len(found) == 4
    contents = {path: api("GET", f"/v1/files/{file_id}/content").text for path, file_id in files.items()}
    assert contents == {"a.txt": "first", "model/w.bin": "weights"}
    assert (run["status"], run["exit_code"], status(api, job)) == ("completed", 0, "completed")
    assert list((seen / "runs").iterdir()) == []


@pytest.mark.parametrize("step", STEPS)
def test_a_request_that_is_cut_off_and_an_answer_that_is_lost(
    api: Api, cable: Cable, tmp_path: Path, step: str
) -> None:
    """The first try does not arrive, the second one does and its answer does not: one run all the same."""
    request, after = STEPS[step]
    cable.accidents = [Accident(request, "cut", after), Accident(request, "lose")]
    job = submitted(api)
    with working(cable.url, tmp_path / "worker", once=True) as running:
        assert running.ended() == 0
    assert [accident.happened for accident in cable.accidents] == [True, True]
    found = runs(api, job)
    assert [run["attempt"] for run in found] == [1]
    assert_done_once(api, job, found[0], tmp_path / "worker")


def test_a_network_that_falls_silent_for_a_moment_at_every_step(api: Api, cable: Cable, tmp_path: Path) -> None:
    """Ten times for a fifth of a lease: what was under way gets through afterwards, in one run."""
    cable.accidents = [Accident(request, "silence", after, seconds=0.2) for request, after in STEPS.values()]
    job = submitted(api)
    with working(cable.url, tmp_path / "worker", once=True) as running:
        assert running.ended() == 0
    assert all(accident.happened for accident in cable.accidents), cable.accidents
    found = runs(api, job)
    assert [run["attempt"] for run in found] == [1]
    assert_done_once(api, job, found[0], tmp_path / "worker")


@pytest.mark.parametrize("step", ["event of the job", "finish"])
def test_a_network_that_is_silent_for_longer_than_the_lease(api: Api, cable: Cable, tmp_path: Path, step: str) -> None:
    """The server gives the run up and says why; nothing the worker still says of it counts, and it does the job again,
    as a run that has all of it once. A worker to whom a job came when its lease was over gives it back: canceled,
    and no attempt."""
    request, after = STEPS[step]
    cable.accidents = [Accident(request, "silence", after, seconds=2 * FAST["lease_seconds"])]
    job = submitted(api)
    with working(cable.url, tmp_path / "worker"):
        ended(api, job)
    *before, done = runs(api, job)
    lost = [run for run in before if run["status"] == "failed"]
    assert before
    assert {run["status"] for run in before} <= {"failed", "canceled"}
    silent = f"was not heard from for {FAST['lease_seconds']:g} s"
    assert all(silent in run["reason"] for run in lost)
    assert done["attempt"] == len(lost) + 1
    until(lambda: not list((tmp_path / "worker/runs").iterdir()), "the end of both folders")
    assert_done_once(api, job, done, tmp_path / "worker")
