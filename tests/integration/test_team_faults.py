"""The faults of a queue where a team has it: on PostgreSQL, an S3 and several API processes.

Most tests are those of the other modules, on another server; which of them, and what can only fail here, is here.
"""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import PostgreSQL
from tests.fake_job_server import Cable
from tests.integration import test_worker_killed, test_worker_network
from tests.integration.test_worker_cancel import (
    at_work,
    test_one_that_ends_when_asked,
    test_restarted_while_it_is_being_stopped,
    test_while_its_files_are_fetched,
)
from tests.integration.test_worker_faults import (
    test_a_killed_worker_takes_its_job_along,
    test_a_late_worker_is_fenced_and_its_process_gone,
    test_a_server_that_is_killed_and_comes_back,
    test_a_stopped_worker_gives_its_job_back,
    test_an_idle_worker_stops_at_once,
)
from tests.integration.test_worker_network import (
    cable,
    test_a_network_that_falls_silent_for_a_moment_at_every_step,
)
from tests.object_stores import BROKEN, ObjectStore
from tests.served import Api, Process, until
from tests.teams import Team, TeamProcess, drop, new_team, stores_of_a_team
from tests.workers import FAST, ended, events, log, runs, worker_process, working

__all__ = [
    "at_work",
    "cable",
    "new_team",
    "test_a_killed_worker_takes_its_job_along",
    "test_a_late_worker_is_fenced_and_its_process_gone",
    "test_a_network_that_falls_silent_for_a_moment_at_every_step",
    "test_a_server_that_is_killed_and_comes_back",
    "test_a_stopped_worker_gives_its_job_back",
    "test_an_idle_worker_stops_at_once",
    "test_one_that_ends_when_asked",
    "test_restarted_while_it_is_being_stopped",
    "test_while_its_files_are_fetched",
    "worker_process",
]


@pytest.fixture(scope="module")
def server(new_team: Callable[..., Team]) -> Team:
    return new_team(**FAST)


@pytest.fixture
def api(server: Team, monkeypatch: pytest.MonkeyPatch) -> Api:
    """The token is in the environment too, for workers."""
    monkeypatch.setenv("TUTELAGE_API_KEY", server.token)
    return server.api()


@pytest.fixture
def processes(
    tmp_path: Path, postgresql: PostgreSQL, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Process]]:
    """Start the server of one team, again and again. It takes longer than one process, and so must a lease."""
    team = stores_of_a_team(tmp_path / "home", postgresql, object_store)
    monkeypatch.setenv("TUTELAGE_API_KEY", team.token)
    started: list[Process] = []

    def start(home: Path, **options: Any) -> Process:
        started.append(TeamProcess(home, {**team.options, **options, "lease_seconds": 120.0}, team.token))
        return started[-1].begun()

    yield start
    for process in started:
        process.close()
    drop(team, postgresql)


@pytest.mark.parametrize("step", ["a file is there, its event is not"])
def test_a_worker_that_is_killed(
    server: Any, api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """What has to be true is asserted there: the same for a team."""
    test_worker_killed.test_a_worker_that_is_killed(server, api, tmp_path, monkeypatch, step)


@pytest.mark.parametrize("step", ["claim", "upload"])
def test_a_request_that_is_cut_off_and_an_answer_that_is_lost(
    api: Api, cable: Cable, tmp_path: Path, step: str
) -> None:
    """What has to be true is asserted there: the same for a team."""
    test_worker_network.test_a_request_that_is_cut_off_and_an_answer_that_is_lost(api, cable, tmp_path, step)


def test_api_processes_are_killed_while_a_worker_streams(server: Team, api: Api, tmp_path: Path) -> None:
    """Lines, events and files, one process after the other killed meanwhile: all of it once, in one run; and somebody
    who follows the log has each line once."""
    lines = "for i in $(seq 300); do echo line $i; sleep 0.003; done"
    files = "for i in $(seq 10); do echo $i > uploads/$i.txt; done"
    job = api.submit(entrypoint=f"{lines}; touch {tmp_path}/half; {lines}; {files}")
    followed: list[str] = []
    with working(server.url, tmp_path / "worker"):
        until(lambda: runs(api, job), "its run")
        run_id = runs(api, job)[0]["id"]
        following = threading.Thread(target=lambda: followed.extend(followed_log(server, run_id)))
        following.start()
        for condition in (lambda: "line 50\n" in log(server.api(), job), (tmp_path / "half").exists):
            until(condition, "the next part of the log")
            gone = server.kill_one()
            server.replaced(gone)
        api = server.api()
        assert ended(api, job)["status"] == "completed"
    following.join(30)
    assert not following.is_alive()
    wanted = "".join(f"line {number}\n" for number in range(1, 301)) * 2
    assert log(api, job) == wanted
    assert "".join(followed) == wanted
    assert sorted(event["path"] for event in events(api, job)) == sorted(f"{number}.txt" for number in range(1, 11))
    assert len(runs(api, job)) == 1


def followed_log(server: Team, run_id: str) -> list[str]:
    """As the SDK follows it, with its own way to come back."""
    from tutelage.client.http import Transport

    with_token = Transport(server.url, server.token)
    found = with_token.follow(f"/api/logs/{run_id}", {"follow": "true"}, "start", 0)
    return [json.loads(event.data) for event in found if event.name == "log"]


def test_a_store_that_fails_while_a_job_leaves_its_files(
    server: Team, api: Api, tmp_path: Path, object_store: ObjectStore
) -> None:
    """It refuses, then answers slower than a lease is long: the worker keeps its job and all files arrive, once."""
    before = set(object_store.keys(server.bucket))
    object_store.always = {"PUT": BROKEN}
    job = api.submit(entrypoint="echo one left > uploads/a.txt; echo other left > uploads/b.txt")
    with working(server.url, tmp_path / "worker"):
        until(lambda: object_store.requests("PUT", server.bucket) >= 2, "a refusal")
        object_store.held.clear()
        object_store.always = {}
        object_store.waiting.clear()
        assert object_store.waiting.wait(30)
        slow = threading.Event()
        slow.wait(2 * FAST["lease_seconds"])  # nothing happens: that is what is looked for
        assert api.ok("GET", f"/api/jobs/{job['id']}")["status"] == "in_progress"
        object_store.held.set()
        assert ended(api, job)["status"] == "completed"
    assert len(runs(api, job)) == 1
    found = {event["path"]: event["file"] for event in events(api, job)}
    assert {path: api("GET", f"/v1/files/{file}/content").text for path, file in found.items()} == {
        "a.txt": "one left\n",
        "b.txt": "other left\n",
    }
    assert len(set(object_store.keys(server.bucket)) - before) == 2
