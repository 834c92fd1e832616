"""Several API processes behind one address: what one of them does the others show, and none is missed for long."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.databases import KEY, PostgreSQL
from tests.object_stores import BROKEN, DENIED, ObjectStore
from tests.served import Api, Process, new_run_id, until
from tests.teams import Team, drop, new_team, stores_of_a_team
from tests.workers import ended, events, is_alive, log
from tutelage.jobs.access import Access
from tutelage.jobs.database import Database
from tutelage.jobs.records import Scope
from tutelage.jobs.tables import jobs, runs

__all__ = ["new_team"]


@pytest.fixture(scope="module")
def shared_team(new_team: Callable[..., Team]) -> Team:
    return new_team(processes=3)


@pytest.fixture
def team(shared_team: Team) -> Team:
    """Begun again where a test ended it."""
    return shared_team if shared_team.is_running else shared_team.begin()


def test_all_of_them_answer_on_one_address(team: Team) -> None:
    """A stream that one has shows what others take in, within about a second; a job goes through all of them."""
    api = team.api()
    running = api.running()
    seen: dict[str, float] = {}

    def follow() -> None:
        one = Api(team.url, team.token)
        with one.http.stream("GET", f"/api/logs/{running.run_id}", params={"follow": "true"}) as answer:
            for line in answer.iter_lines():
                for word in line.removeprefix("data: ").strip('"').replace("\\n", " ").split():
                    seen.setdefault(word, time.monotonic())
        one.close()

    threads = [threading.Thread(target=follow) for _ in range(6)]
    for thread in threads:
        thread.start()
    sent: dict[str, float] = {}
    at = 0
    for number in range(6):
        other = Api(team.url, team.token)  # a connection of its own, so mostly another process
        line = f"line{number}\n".encode()
        at = other.print(running.run_id, at, line)
        sent[f"line{number}"] = time.monotonic()
        other.close()
        until(lambda number=number: f"line{number}" in seen, "the line in a stream")
    api.finish(running.run_id)
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    late = max(seen[line] - sent[line] for line in sent)
    print(f"at most {late:.2f} s after it was taken in")
    assert late < 2.0
    worker, run_id, claims = api.worker(), new_run_id(), list[httpx.Response]()
    body = {"worker_id": worker, "run_id": run_id, "wait": 20}
    claiming = threading.Thread(target=lambda: claims.append(team.api()("POST", "/api/claims", body)))
    claiming.start()
    job = team.api().submit()
    claiming.join(5)
    assert claims[0].json()["job"]["id"] == job["id"]
    api.finish(run_id)


def test_one_that_is_lost_is_begun_again(team: Team) -> None:
    """The others go on meanwhile, and no worker's lease is made longer for it."""
    assert team.process is not None
    api = team.api()
    running = api.running()

    def lease() -> float:
        with team.database.reading() as connection:
            return float(connection.execute(runs.select().where(runs.c.id == running.run_id)).one().lease_until)

    before = lease()
    gone = team.kill_one()
    until(lambda: not is_alive(gone), "its end")
    for _ in range(20):
        fresh = Api(team.url, team.token)
        assert fresh.ok("GET", "/api/me")
        fresh.close()
    team.replaced(gone)
    assert "ended with exit code -9; another one begins" in team.process.output
    assert lease() == before
    api = team.api()
    api.finish(running.run_id)


def test_one_worker_is_beside_all_of_them(
    tmp_path: Path, postgresql: PostgreSQL, object_store: ObjectStore, processes: Callable[..., Process]
) -> None:
    """Of the command itself. The job sees nothing of records, files and what lets into them; SIGTERM gives it back."""
    team = stores_of_a_team(tmp_path / "home", postgresql, object_store)
    arguments = ["--database", team.options["database"], "--files", team.options["files"], "--processes", "2"]
    process = processes(team.home, arguments)
    api = process.api(team.token)
    file = api.upload(b"of the job\n")["id"]
    show = f"env | grep -i -e AWS_ -e of-the-store -e postgres -e {team.bucket}; cat a > uploads/b.txt; cat a"
    job = api.submit(entrypoint=show, mounted_files={"a": file})
    assert ended(api, job)["status"] == "completed"
    assert log(api, job) == "of the job\n"
    assert [event["file"].partition("file-")[2] for event in events(api, job)] == [file.partition("file-")[2]]
    assert len(api.ok("GET", "/api/workers")["data"]) == 1
    longer = api.submit(entrypoint="echo begun; sleep 600")
    until(lambda: log(api, longer) == "begun\n", "its first line")
    code, _ = process.terminate()
    assert code == 0, process.output
    assert "Traceback" not in process.output, process.output
    with team.database.reading() as connection:
        found = connection.execute(jobs.select().where(jobs.c.id == longer["id"])).one()
    assert (found.status, found.attempts, found.reason) == ("pending", 0, "its worker was stopped")
    drop(team, postgresql)


def test_several_need_postgresql(tmp_path: Path) -> None:
    process = Process(tmp_path / "home", {"port": 0, "processes": 3})
    assert process.process.wait(30) != 0
    assert "--processes 3: SQLite is for one process; give --database postgresql://…, or leave" in process.output


@pytest.mark.parametrize(("files", "refusal"), [("s3://no-such-bucket/x", {}), ("s3://{bucket}/x", {"PUT": DENIED})])
def test_a_store_that_refuses_at_the_start(
    postgresql_url: str,
    tmp_path: Path,
    object_store: ObjectStore,
    files: str,
    refusal: dict[str, tuple[str, str, str]],
) -> None:
    """One sentence, exit code 2, nothing listens; without its secrets."""
    database = Database(postgresql_url)
    access = Access(database, KEY)
    access.create_token(access.organization(), "test", [Scope.ADMIN])
    database.close()
    object_store.always = refusal
    files = files.format(bucket=object_store.bucket())
    arguments = ["--database", postgresql_url, "--files", files, "--processes", "2", "--no-worker"]
    process = Process(tmp_path / "home", {}, arguments, {"TUTELAGE_SECRET_KEY": KEY.decode()})
    assert process.process.wait(60) == 2, process.output
    *logged, sentence = process.output.splitlines()
    assert sentence.startswith(f"error: files: {files}: cannot be written ("), process.output
    assert not [line for line in logged if "INFO" not in line], process.output
    assert "of-the-store" not in process.output


def test_a_store_that_is_away_loses_nothing(team: Team, object_store: ObjectStore) -> None:
    """503 for what needs it, with when to come back; everything else goes on, a process that begins anew too."""
    api = team.api()
    kept = api.upload(b"before")
    object_store.always = dict.fromkeys(("PUT", "GET", "HEAD", "DELETE"), BROKEN)
    form = {"data": {"purpose": "batch"}, "files": {"file": ("x", b"meanwhile")}}
    refused = api("POST", "/v1/files", **form)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "the server cannot read or write what it stores" in refused.text
    assert api("GET", f"/v1/files/{kept['id']}/content").status_code == 503
    gone = team.kill_one()
    team.replaced(gone)
    api = team.api()
    assert api.ok("GET", f"/v1/files/{kept['id']}")["bytes"] == 6
    api.ok("POST", f"/api/jobs/{api.submit()['id']}/cancel")
    object_store.well()
    assert api("GET", f"/v1/files/{kept['id']}/content").content == b"before"
    again = api.ok("POST", "/v1/files", **form)
    assert api("GET", f"/v1/files/{again['id']}/content").content == b"meanwhile"
    assert len(object_store.keys(team.bucket)) == 2
    assert not list((team.home / "incoming").iterdir())


def test_they_go_down_with_what_is_open_and_leave_nothing(team: Team) -> None:
    """SIGTERM to the first: streams end, every process is gone, the address is free. The SIGINT that a terminal sends
    to all of them ends none of the others."""
    running = team.api().running()
    process, children, api = team.process, team.listening(), team.api()
    assert process is not None
    with api.http.stream("GET", f"/api/logs/{running.run_id}", params={"follow": "true"}) as answer:
        assert answer.status_code == 200
        for child in children:
            os.kill(child, signal.SIGINT)
        assert team.listening() == children
        code, seconds = process.terminate()
    assert (code, seconds < 10) == (0, True), process.output
    assert process.output.rstrip().endswith("stopped"), process.output
    assert "Traceback" not in process.output, process.output
    assert not any(map(is_alive, children))
    socket.create_server(("127.0.0.1", team.port)).close()
