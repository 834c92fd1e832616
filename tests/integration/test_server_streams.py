"""What is told as it happens: claims that wait, logs and events by server-sent events, and how soon they come."""

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.served import PATIENCE, Api, Served, new_run_id, sent_events, until
from tutelage.server.notices import Listener
from tutelage.server.own import workers

SOON_SECONDS = 0.1
TOLD_SECONDS = PATIENCE / 2
"""Medians are held to SOON_SECONDS. A busy machine may hold up a single one, of which is looked at whether it was told:
see `untold_is_late`."""


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture
def untold_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is not told of what happens looks again so late that it fails the test."""
    monkeypatch.setattr(Listener.wait, "__defaults__", (PATIENCE,))
    monkeypatch.setattr(workers, "ALONE_LOOK_AGAIN_SECONDS", PATIENCE)


def waiting(server: Served, topic: str) -> int:
    """How many wait for it in the server."""
    return len(server.services.notices._listeners.get(topic, ()))


def timed(function: Callable[[], Any]) -> tuple[Any, float]:
    found = function()
    return found, time.monotonic()


@pytest.mark.usefixtures("untold_is_late")
def test_a_waiting_claim_gets_a_job_at_once(own_server: Served, pool: ThreadPoolExecutor) -> None:
    """Contract: a claim that waits wakes within 100 ms of a submission."""
    api = own_server.api()
    worker = api.worker()
    delays: list[float] = []
    for _ in range(9):
        claim: Future[tuple[httpx.Response, float]] = pool.submit(timed, lambda: api.claim(worker, wait=20))
        until(lambda: waiting(own_server, "pending"), "the claim's waiting")
        job = api.submit()
        submitted = time.monotonic()
        answer, when = claim.result(PATIENCE)
        assert answer.json()["job"]["id"] == job["id"]
        delays.append(when - submitted)
        api.finish(answer.json()["run_id"])
    print(f"claim after submission: median {statistics.median(delays) * 1e3:.0f} ms, worst {max(delays) * 1e3:.0f} ms")
    assert statistics.median(delays) < SOON_SECONDS
    assert max(delays) < TOLD_SECONDS


def test_a_small_answer_is_not_held_back(open_server: Served) -> None:
    """Nagle's algorithm and delayed acknowledgements together would add 40 ms to every answer."""
    api = open_server.api()
    seconds: list[float] = []
    for _ in range(21):
        began = time.monotonic()
        api.ok("GET", "/api/me")
        seconds.append(time.monotonic() - began)
    assert statistics.median(seconds) < 0.03


@pytest.mark.usefixtures("untold_is_late")
def test_restarting_and_giving_back_wake_claims_too(own_server: Served, pool: ThreadPoolExecutor) -> None:
    api = own_server.api()
    worker, other = api.worker("first"), api.worker("second")
    running = api.running(worker_id=worker)
    claim = pool.submit(timed, lambda: api.claim(other, wait=20))
    until(lambda: waiting(own_server, "pending"), "the claim's waiting")
    began = time.monotonic()
    api.finish(running.run_id, "pending", reason="the worker is stopping")
    answer, when = claim.result(PATIENCE)
    assert answer.json()["attempt"] == 1  # given back as it was: stopping a worker uses up no attempt
    assert when - began < TOLD_SECONDS
    api.finish(answer.json()["run_id"], "failed")
    claim = pool.submit(timed, lambda: api.claim(other, wait=20))
    until(lambda: waiting(own_server, "pending"), "the claim's waiting")
    began = time.monotonic()
    api.ok("POST", f"/api/jobs/{running.job_id}/restart")
    answer, when = claim.result(PATIENCE)
    assert answer.json()["job"]["id"] == running.job_id
    assert when - began < TOLD_SECONDS


@pytest.mark.usefixtures("untold_is_late")
def test_a_job_that_comes_while_a_claim_looks_is_not_waited_for(
    own_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and waiting there is a moment; what is told in it must not be lost."""
    api = own_server.api()
    worker = api.worker()
    looked = own_server.services.queue.claim
    submitted = threading.Event()

    def claim(*arguments: Any) -> Any:
        found = looked(*arguments)
        if not submitted.is_set():
            submitted.set()
            api.submit()  # is told before this claim begins to wait
        return found

    monkeypatch.setattr(own_server.services.queue, "claim", claim, raising=False)
    began = time.monotonic()
    answer = own_server.api().claim(worker, wait=20)
    assert answer.status_code == 200
    assert time.monotonic() - began < TOLD_SECONDS


def test_a_claim_that_finds_nothing_says_so_when_its_time_is_over(own_server: Served) -> None:
    api = own_server.api()
    worker = api.worker()
    for wait, least in ((0.0, 0.0), (0.3, 0.3)):
        began = time.monotonic()
        answer = api.claim(worker, wait=wait)
        assert answer.status_code == 204
        assert answer.content == b""
        assert least <= time.monotonic() - began < least + 2
    api.refused(400, "POST", "/api/claims", {"worker_id": worker, "run_id": new_run_id(), "wait": 26})


def test_a_worker_that_went_away_while_waiting_gets_nothing(own_server: Served) -> None:
    """Its connection is gone: a job that comes now is for the others, at once and as their first attempt."""
    api = own_server.api()
    gone, there = api.worker("gone"), api.worker("there")
    body = json.dumps({"worker_id": gone, "run_id": new_run_id(), "wait": 25}).encode()
    head = (
        f"POST /api/claims HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    connection = own_server.raw(head.encode() + b"\r\n\r\n" + body)
    until(lambda: waiting(own_server, "pending"), "the claim's waiting")
    connection.shutdown(socket.SHUT_RDWR)
    connection.close()
    # The end of the connection is seen before anything is looked for again.
    until(lambda: not waiting(own_server, "pending"), "the claim's end", patience=3)
    job = api.submit()
    answer = api.claim(there, wait=10)
    assert answer.status_code == 200
    assert (answer.json()["job"]["id"], answer.json()["attempt"]) == (job["id"], 1)


def test_forty_waiting_claims_leave_room_for_others(own_server: Served) -> None:
    """Waiting takes no thread: with more claims waiting than there are threads, everything else is answered."""
    api = own_server.api()
    workers = [api.worker(f"w{number}") for number in range(60)]
    with ThreadPoolExecutor(60) as pool:
        claims = [pool.submit(api.claim, worker, None, 20) for worker in workers]
        until(lambda: waiting(own_server, "pending") == 60, "all waiting")
        other = own_server.api()
        began = time.monotonic()
        jobs = {other.submit(number)["id"] for number in range(3)}
        assert time.monotonic() - began < 5
        got = until(lambda: len([claim for claim in claims if claim.done()]) >= 3, "three jobs")
        assert got
        taken = [claim.result().json()["job"]["id"] for claim in claims if claim.done()]
        assert sorted(taken) == sorted(jobs)
        own_server.services.notices.close()  # as the server does when it stops
        answers = [claim.result(PATIENCE).status_code for claim in claims]
    assert sorted(answers) == [200] * 3 + [204] * 57


def follow(api: Api, path: str, **options: Any) -> Any:
    return api.http.stream("GET", path, timeout=PATIENCE, **options)


@pytest.mark.usefixtures("untold_is_late")
def test_a_log_is_there_as_it_is_printed(own_server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    """The way from the worker's request to the reader's line, thirty times."""
    api = own_server.api()
    running = api.running()
    delays: list[float] = []
    with follow(own_server.api(), f"/api/logs/{running.run_id}", params={"follow": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        events = sent_events(answer)
        end = 0
        for number in range(30):
            until(lambda: waiting(own_server, f"log {running.run_id}"), "the stream's waiting")
            line = f"step {number} ✓\n"
            began = time.monotonic()
            end = api.print(running.run_id, end, line.encode())
            name, identity, data = next(events)
            delays.append(time.monotonic() - began)
            assert (name, identity, json.loads(data)) == ("log", str(end), line)
        api.finish(running.run_id)
        assert next(events)[0] == "end"
        assert list(events) == []
    with capsys.disabled():
        print(f"\nlog latency, print to line: median {statistics.median(delays) * 1e3:.1f} ms, ", end="")
        print(f"worst {max(delays) * 1e3:.1f} ms")
    assert statistics.median(delays) < SOON_SECONDS
    assert max(delays) < TOLD_SECONDS


@pytest.mark.usefixtures("untold_is_late")
def test_what_is_printed_while_a_stream_looks_is_not_waited_for(
    own_server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = own_server.api()
    running = api.running()
    read = own_server.services.logs.read
    looks: list[float] = []

    def reading(*arguments: Any) -> Any:
        part = read(*arguments)
        if not looks:
            looks.append(time.monotonic())
            api.print(running.run_id, 0, b"between")
        return part

    monkeypatch.setattr(own_server.services.logs, "read", reading, raising=False)
    with follow(own_server.api(), f"/api/logs/{running.run_id}", params={"follow": True}) as answer:
        assert json.loads(next(sent_events(answer))[2]) == "between"
    assert time.monotonic() - looks[0] < TOLD_SECONDS


TEXT = "höhe 漢字 🙂 end\r\n\tü\u2028x\0\x1b[31m"


@pytest.mark.parametrize("cut", range(1, len(TEXT.encode()), 3))
def test_characters_across_parts(open_server: Served, scripted: str, cut: int) -> None:
    """However the bytes are cut, and whether one goes on with the same connection or with Last-Event-ID."""
    api = open_server.api()
    content = TEXT.encode()
    for resumes in (False, True):
        run_id = api.ok("POST", "/api/runs", {"script": scripted})["id"]
        path = f"/api/logs/{run_id}"
        api.print(run_id, 0, content[:cut])
        seen = ""
        with follow(api, path, params={"follow": True}) as answer:
            events = sent_events(answer)
            _, last, data = next(events)
            seen += json.loads(data)
            if not resumes:
                api.print(run_id, cut, content[cut:])
                api.finish(run_id)
                seen += "".join(json.loads(data) for name, _, data in events if name == "log")
        if resumes:
            api.print(run_id, cut, content[cut:])
            api.finish(run_id)
            with follow(api, path, params={"follow": True, "start": 999}, headers={"Last-Event-ID": last}) as answer:
                *logs, end = list(sent_events(answer))
                seen += "".join(json.loads(data) for _, _, data in logs)
                assert end[0] == "end"
                assert logs[-1][1] == str(len(content))
        assert seen == TEXT


def test_a_log_that_ends_within_a_character_or_is_no_text_loses_nothing_else(
    open_server: Served, scripted: str
) -> None:
    api = open_server.api()
    run_id = api.ok("POST", "/api/runs", {"script": scripted})["id"]
    content = b"before \xff\xfe middle " + "ü".encode()[:1]
    api.print(run_id, 0, content)
    api.finish(run_id)
    with follow(api, f"/api/logs/{run_id}", params={"follow": True}) as answer:
        text = "".join(json.loads(data) for name, _, data in sent_events(answer) if name == "log")
    assert text == "before �� middle �"
    assert api("GET", f"/api/logs/{run_id}").content == content


@pytest.fixture
def scripted(request: pytest.FixtureRequest) -> str:
    """A script's command like no other."""
    return request.node.name


def test_a_reader_sees_every_line_once_over_many_cuts(own_server: Served) -> None:
    """A connection that breaks after every few events, and resumes: the text is whole, nothing comes twice."""
    api = own_server.api()
    running = api.running()
    written = threading.Event()
    expected = "".join(f"line {number} äöü\n" for number in range(120))

    def write() -> None:
        content, end = expected.encode(), 0
        for at in range(0, len(content), 37):
            end = writer.print(running.run_id, end, content[at : at + 37])
        writer.finish(running.run_id)
        written.set()

    writer = own_server.api()
    thread = threading.Thread(target=write)
    thread.start()
    text, last, ended, connections = "", None, False, 0
    while not ended:
        headers = {"Last-Event-ID": last} if last is not None else {}
        connections += 1
        with follow(api, f"/api/logs/{running.run_id}", params={"follow": True}, headers=headers) as answer:
            for number, (name, identity, data) in enumerate(sent_events(answer)):
                ended = name == "end"
                if name == "log":
                    text, last = text + json.loads(data), identity
                if number == 3:
                    break
    thread.join()
    assert text == expected
    assert connections > 1


@pytest.mark.usefixtures("untold_is_late")
def test_events_as_they_come_and_on_with_last_event_id(own_server: Served) -> None:
    api = own_server.api()
    running = api.running()
    api.report(running.run_id, {"step": 1, "text": "a\nb\r\nc"}, {"step": 2})
    with follow(own_server.api(), "/api/events/stream", params={"run_id": running.run_id}) as answer:
        events = sent_events(answer)
        first, second = next(events), next(events)
        assert json.loads(first[2])["data"] == {"step": 1, "text": "a\nb\r\nc"}
        assert json.loads(first[2]).keys() == {"id", "run_id", "created_at", "data", "file"}
        until(lambda: waiting(own_server, f"events {running.run_id}"), "the stream's waiting")
        began = time.monotonic()
        api.report(running.run_id, {"step": 3})
        third = next(events)
        assert time.monotonic() - began < TOLD_SECONDS
        assert json.loads(third[2])["data"] == {"step": 3}
        assert [name for name, _, _ in (first, second, third)] == ["event"] * 3
        assert [json.loads(data)["id"] for _, _, data in (first, second, third)] == [
            int(identity) for _, identity, _ in (first, second, third)
        ]
    api.report(running.run_id, *({"step": step} for step in range(4, 900)))
    api.finish(running.run_id)
    for options in (
        {"headers": {"Last-Event-ID": second[1]}},
        {"params": {"after": second[1]}},
        {"headers": {"Last-Event-ID": second[1]}, "params": {"after": 0}},
    ):
        params = {"run_id": running.run_id} | options.get("params", {})
        with follow(api, "/api/events/stream", params=params, headers=options.get("headers", {})) as answer:
            *found, end = list(sent_events(answer))
        assert [json.loads(data)["data"]["step"] for _, _, data in found] == list(range(3, 900))
        assert end[0] == "end"


def test_streams_of_what_is_not_there(own_server: Served) -> None:
    api = own_server.api()
    missing = "run-" + "0" * 32
    api.refused(404, "GET", f"/api/logs/{missing}", params={"follow": True})
    api.refused(404, "GET", "/api/events/stream", params={"run_id": missing})
    api.refused(400, "GET", "/api/events/stream")
    running = api.running()
    for last in ("x", "-1", "1e3", "٣", "9" * 400, ""):
        with follow(
            api, "/api/events/stream", params={"run_id": running.run_id}, headers=[(b"Last-Event-ID", last.encode())]
        ) as answer:
            assert answer.status_code == 200


def test_readers_that_went_away_are_forgotten(own_server: Served) -> None:
    """Fifty readers cut their connections while nothing is printed: the server stops waiting for them."""
    api = own_server.api()
    running = api.running()
    topic = f"log {running.run_id}"
    request = f"GET /api/logs/{running.run_id}?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    connections = [own_server.raw(request) for _ in range(50)]
    until(lambda: waiting(own_server, topic) == 50, "fifty readers")
    for connection in connections:
        connection.close()
    # Within a few looks; each looks again every second.
    until(lambda: not waiting(own_server, topic), "no reader", patience=5)
    assert topic not in own_server.services.notices._listeners


def test_a_reader_that_does_not_read_stops_nobody(own_server: Served) -> None:
    """Its connection is full; the log goes on, and others see all of it."""
    api = own_server.api()
    running = api.running()
    request = f"GET /api/logs/{running.run_id}?follow=true HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    own_server.raw(request)
    part, end = b"x" * 99_999 + b"\n", 0
    for _ in range(80):
        end = api.print(running.run_id, end, part)
    api.finish(running.run_id)
    seen = 0
    with follow(own_server.api(), f"/api/logs/{running.run_id}", params={"follow": True}) as answer:
        for name, _, data in sent_events(answer):
            seen += len(json.loads(data)) if name == "log" else 0
    assert seen == end == 80 * 100_000
