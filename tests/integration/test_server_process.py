"""`serve` as a process: killed between a request and its answer, stopped while much is open, away for a while."""

import contextlib
import json
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import CUSTOM, Api, Process, everything, new_run_id, until


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


Start = Callable[..., Process]


def test_what_was_acknowledged_is_there_after_kill_minus_nine(processes: Start, tmp_path: Path) -> None:
    """Events, log bytes, jobs and files are written by four threads while the server is killed, three times. What was
    answered is there; what was not is sent again, and is there once."""
    home = tmp_path / "home"
    server = processes(home)
    api = server.api()
    running = api.running()
    state = State(running.run_id)
    for round_number in range(3):
        writers = [Writer(server.url, state, number) for number in range(4)]
        for writer in writers:
            writer.start()
        goal = state.acknowledged + 40
        until(lambda goal=goal: state.acknowledged >= goal, "forty acknowledged writes")
        server.kill()
        for writer in writers:
            writer.join(30)
            assert not writer.is_alive()
        server = processes(home)
        api = server.api()
        assert api.ok("GET", f"/api/runs/{running.run_id}")["status"] == "in_progress", round_number
        for again in state.unanswered():
            again(api)
            again(api)  # a repeat is harmless
    events = api.ok("GET", "/api/events", params={"run_id": running.run_id})["data"]
    assert sorted(event["data"]["number"] for event in events) == sorted(state.events)
    assert api("GET", f"/api/logs/{running.run_id}").content == b"".join(state.log)
    jobs = {job["id"]: job["params"]["number"] for job in api.ok("GET", "/api/jobs", params={"limit": 1000})["data"]}
    assert sorted(value for value in jobs.values() if value in state.jobs) == sorted(state.jobs)
    for identity, content in state.files.items():
        assert api("GET", f"/v1/files/{identity}/content").content == content
    assert len(api.ok("GET", "/v1/files")["data"]) == len(state.files)
    assert api.finish(running.run_id)["status"] == "completed"


class State:
    """What was sent. A thread puts what it is about to send into `open`, and takes it out when it was answered."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.acknowledged = 0
        self.events: set[str] = set()
        self.jobs: set[str] = set()
        self.log: list[bytes] = []
        self.files: dict[str, bytes] = {}
        self.open: dict[int, Callable[[Any], None]] = {}
        self.lock = threading.Lock()

    def unanswered(self) -> list[Callable[[Any], None]]:
        found, self.open = list(self.open.values()), {}
        return found


class Writer(threading.Thread):
    """Sends one thing after the other until the server is gone."""

    def __init__(self, url: str, state: State, number: int) -> None:
        super().__init__(daemon=True)
        self.url, self.state, self.number = url, state, number

    def run(self) -> None:
        api = Api(self.url)
        kinds = [self.event, self.print, self.job, self.file]
        try:
            while True:
                send = kinds[self.number]()
                self.state.open[self.number] = send
                send(api)
                del self.state.open[self.number]
                with self.state.lock:
                    self.state.acknowledged += 1
        except httpx.TransportError:
            pass
        finally:
            api.close()

    def event(self) -> Callable[[Any], None]:
        name = secrets.token_hex(6)
        body = {"run_id": self.state.run_id, "events": [{"id": name, "data": {"number": name}}]}

        def send(api: Any) -> None:
            api.ok("POST", "/api/events", body)
            self.state.events.add(name)

        return send

    def print(self) -> Callable[[Any], None]:
        line = f"{secrets.token_hex(20)}\n".encode()
        start = sum(len(part) for part in self.state.log)

        def send(api: Any) -> None:
            answer = api.ok("POST", f"/api/logs/{self.state.run_id}", params={"start": start}, content=line)
            assert answer == {"end": start + len(line)}
            if not self.state.log or self.state.log[-1] != line:
                self.state.log.append(line)

        return send

    def job(self) -> Callable[[Any], None]:
        name = secrets.token_hex(6)

        def send(api: Any) -> None:
            api.submit(name)
            self.state.jobs.add(name)

        return send

    def file(self) -> Callable[[Any], None]:
        content = secrets.token_bytes(3000)

        def send(api: Any) -> None:
            self.state.files[api.upload(content, "batch")["id"]] = content

        return send


def test_a_claim_whose_answer_was_lost_is_asked_for_again(processes: Start, tmp_path: Path) -> None:
    """With the same run id after the restart: the same job, the same attempt, a token that works, the secrets."""
    server = processes(tmp_path / "home")
    api = server.api()
    api.ok("PUT", "/api/secrets/JUDGE_KEY", {"value": "a judge's key"})
    job, worker, run_id = api.submit(), api.worker(), new_run_id()
    first = api.claim(worker, run_id).json()
    server.kill()
    api = processes(tmp_path / "home").api()
    again = api.claim(worker, run_id).json()
    assert (again["job"]["id"], again["run_id"], again["attempt"]) == (job["id"], run_id, 1)
    assert again["environment"] == first["environment"] == {"JUDGE_KEY": "a judge's key"}
    assert api.claim(worker).status_code == 204
    # Both tokens are of this run, and both end with it.
    assert api.finish(run_id)["status"] == "completed"
    assert api.finish(run_id)["status"] == "completed"


def test_a_restart_extends_the_leases_of_workers_that_could_not_be_heard(processes: Start, tmp_path: Path) -> None:
    """The server is away for longer than a lease; the worker's first heartbeat after that is in time."""
    server = processes(tmp_path / "home", lease_seconds=2.0)
    running = server.api().running()
    silent_since = time.monotonic()
    server.kill()
    until(lambda: time.monotonic() - silent_since > 2.2, "a lease's end")
    server = processes(tmp_path / "home", lease_seconds=2.0)
    api = server.api()
    assert api.ok("POST", f"/api/runs/{running.run_id}/heartbeat") == {"cancel": False, "lease_seconds": 2.0}
    # And of a worker that stays silent the job is given to the next one, in its second attempt.
    job = until(
        lambda: next(
            (job for job in api.ok("GET", "/api/jobs")["data"] if job["status"] == "pending" and job["reason"]), None
        ),
        "the lease's end",
    )
    assert job is not None
    assert "not heard from for 2 s" in job["reason"]
    api.refused(409, "POST", f"/api/runs/{running.run_id}/heartbeat")
    late = api.refused(409, "POST", "/api/events", {"run_id": running.run_id, "events": [{"id": "x", "data": {}}]})
    assert late["code"] == "fenced"
    assert api.claim(api.worker()).json()["attempt"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_goes_down_in_seconds_whatever_is_open(
    processes: Start, tmp_path: Path, number: int, stack: contextlib.ExitStack
) -> None:
    """Streams of log and events, a claim that waits, an upload and a body that hang, idle connections: under five
    seconds, exit code 0, and it says what it waits for. What was acknowledged is there afterwards."""
    server = processes(tmp_path / "home")
    api = server.api()
    running = api.running()
    api.print(running.run_id, 0, b"kept")
    waiting = json.dumps({"worker_id": api.worker(), "run_id": new_run_id(), "wait": 25}).encode()
    upload = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 300_000
    requests = [
        f"GET /api/logs/{running.run_id}?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        f"GET /api/events/stream?run_id={running.run_id} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
        head("/api/claims", len(waiting)) + waiting,
        head("/v1/files", 10_000_000, "multipart/form-data; boundary=b") + upload,
        head("/api/jobs", 100) + b'{"kind',
        head(f"/api/logs/{running.run_id}?start=4", 1000, "application/octet-stream") + b"half",
        b"GET /api/me HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /api/me HT",
        b"",
    ]
    port = int(server.url.rpartition(":")[2])
    connections = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)) for _ in requests]
    for connection, request in zip(connections, requests, strict=True):
        connection.sendall(request)
    assert connections[0].recv(10) == b"HTTP/1.1 2"
    assert connections[1].recv(10) == b"HTTP/1.1 2"
    until(lambda: list((tmp_path / "home" / "incoming").iterdir()), "the upload's begin")
    code, seconds = server.terminate(number)
    assert code == 0, server.output
    assert seconds < 5
    print(f"down in {seconds:.2f} s")
    assert "stopping" in server.output
    assert "waiting for" in server.output
    assert server.output.rstrip().endswith("stopped")
    assert "Traceback" not in server.output
    claim = everything(connections[2])
    assert claim.startswith(b"HTTP/1.1 204 ")  # the worker asks again, elsewhere or later
    api = processes(tmp_path / "home").api()
    assert api("GET", f"/api/logs/{running.run_id}").content == b"kept"
    assert api.ok("GET", f"/api/jobs/{running.job_id}")["status"] == "in_progress"
    assert api.ok("GET", "/v1/files")["data"] == []


def head(path: str, length: int, kind: str = "application/json") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def test_an_idle_server_goes_down_at_once(processes: Start, tmp_path: Path) -> None:
    server = processes(tmp_path / "home")
    code, seconds = server.terminate()
    assert (code, seconds < 2) == (0, True)


def test_what_an_upload_left_is_removed_at_the_next_start(processes: Start, tmp_path: Path) -> None:
    """Twenty gigabytes that were half there when the machine went down."""
    server = processes(tmp_path / "home")
    begun = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 300_000
    port = int(server.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head("/v1/files", 10_000_000, "multipart/form-data; boundary=b") + begun)
        incoming = tmp_path / "home" / "incoming"
        until(lambda: list(incoming.iterdir()), "the upload's begin")
        server.kill()
    assert list(incoming.iterdir())
    processes(tmp_path / "home")
    assert list(incoming.iterdir()) == []


def test_two_servers_do_not_share_a_folder(processes: Start, tmp_path: Path) -> None:
    """The second one says so and ends; the first goes on."""
    first = processes(tmp_path / "home")
    second = Process(tmp_path / "home", {"port": 0})
    assert second.process.wait(30) != 0
    assert "another process works in this folder" in second.output
    assert first.api().ok("GET", "/api/me")
    # A port that is taken is said with what to do.
    third = Process(tmp_path / "other", {"port": int(first.url.rpartition(":")[2])})
    assert third.process.wait(30) != 0
    assert re.search(r"127\.0\.0\.1:\d+: cannot listen there .* choose another --port", third.output)


def test_tokens_and_secrets_are_in_no_output(processes: Start, tmp_path: Path) -> None:
    """What the process prints, with requests that fail in every way while carrying a token."""
    server = processes(tmp_path / "home")
    api = server.api()
    token = api.ok("POST", "/api/tokens", {"name": "x", "scopes": ["admin"]})["secret"]
    api.ok("PUT", "/api/secrets/KEY", {"value": "a very secret value"})
    bearer = server.api(token)
    running = bearer.running()
    for path in ("/api/me", f"/api/jobs/{token}", f"/{token}", "/api/events?after=-1", "/v1/files/x/content"):
        bearer("GET", path)
    bearer("POST", "/api/jobs", CUSTOM | {"params": {"key": "a very secret value"}, "prefix": "!"})
    bearer("POST", "/api/jobs", content=b"{", headers={"Content-Type": "application/json"})
    bearer(
        "POST", "/v1/chat/completions", {"model": "x", "messages": []}, headers={"Cookie": f"tutelage_token={token}"}
    )
    server.terminate()
    for secret in (token, running.token, "a very secret value"):
        assert secret not in server.output
    assert "GET" not in server.output  # no log of accesses, which would hold what is in paths
