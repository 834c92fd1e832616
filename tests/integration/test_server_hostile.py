"""Requests that are meant to do harm, or do it by accident: sizes and speeds."""

import gzip
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.served import (
    CUSTOM,
    PATIENCE,
    Served,
    conversation,
    everything,
    form_body,
    jsonl,
    problem_of,
    served,
    until,
)

MEGABYTE = 1024**2
SMALL_LIMIT = 2 * MEGABYTE
JSON = {"Content-Type": "application/json"}
pytestmark = pytest.mark.usefixtures("no_error_of_its_own")


@pytest.fixture(scope="module")
def small_server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    """Takes files of up to 2 MiB, and gives a body up that is silent for half a second."""

    def hurry(app: Any) -> None:
        for middleware in app.user_middleware:
            if "max_file_bytes" in middleware.kwargs:
                middleware.kwargs["silence_seconds"] = 0.5

    home = tmp_path_factory.mktemp("small")
    with served(home, migrated=migrated_sqlite, change=hurry, max_file_bytes=SMALL_LIMIT) as running:
        yield running


def incoming(server: Served) -> list[Path]:
    """What waits to become a file."""
    return list(server.services.settings.uploads.iterdir())


# Sizes


def chunked(content: bytes, size: int = 65536) -> Iterator[bytes]:
    """Without a length that is said before."""
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("extra", [1, 500_000, 4 * MEGABYTE])
def test_uploads_that_are_too_large(small_server: Served, declared: bool, extra: int) -> None:
    """413, whether the size was said before or not; nothing is left, and the largest that is allowed is taken."""
    api = small_server.api()
    largest, kind = form_body(b"a" * SMALL_LIMIT)
    assert api.ok("POST", "/v1/files", content=largest, headers={"Content-Type": kind})["bytes"] == SMALL_LIMIT
    content, kind = form_body(b"a" * (SMALL_LIMIT + extra))
    body = content if declared else chunked(content)
    message = api.refused(413, "POST", "/v1/files", content=body, headers={"Content-Type": kind})["message"]
    assert str(SMALL_LIMIT) in message or str(SMALL_LIMIT + MEGABYTE) in message
    until(lambda: not incoming(small_server), "the upload's end")


def test_an_upload_without_end_is_cut(small_server: Served) -> None:
    """It is read no further than the limit, and neither memory nor disk keep it."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n'
        while True:
            sent += 65536
            yield b"x" * 65536

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        answer = small_server.api()("POST", "/v1/files", content=endless(), headers=headers)
    except httpx.TransportError:
        pass  # cut while sending
    else:
        assert answer.status_code == 413
    assert sent < 64 * MEGABYTE
    until(lambda: not incoming(small_server), "the upload's end")


@pytest.mark.parametrize(
    ("start", "repeated"),
    [
        (b"--b\r\n", b"X-Header: " + b"a" * 1000 + b"\r\n"),
        (b"--b\r\nX-Header: ", b"a" * 1000),
        (b"--b\r\n", b"a" * 1000),
        (b"", b"preamble " * 100),
        (b"", b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\ny\r\n'),
        (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n', b"y" * 1000),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="', b"y" * 1000),
        (b"--b--\r\n", b"epilogue " * 100),
    ],
)
def test_forms_without_end_are_refused(small_server: Served, start: bytes, repeated: bytes) -> None:
    """Headers, fields, names, what is around the parts: none is kept however long it is."""
    server, sent = small_server, 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield start
        part = repeated * (65536 // len(repeated))
        while sent < 2 * MEGABYTE:
            sent += len(part)
            yield part

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    try:
        answer = server.api()("POST", "/v1/files", content=endless(), headers=headers)
    except httpx.TransportError:
        return  # cut while sending
    assert answer.status_code in (400, 413), answer.text
    problem_of(answer)


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("path", ["/api/jobs", "/api/events", "/v1/fine_tuning/jobs", "/v1/chat/completions"])
def test_json_that_is_too_large(open_server: Served, path: str, declared: bool) -> None:
    content = b'{"x": "' + b"a" * (16 * MEGABYTE) + b'"}'
    body = content if declared else chunked(content)
    api = open_server.api()
    try:
        answer = api("POST", path, content=body, headers=JSON)
    except httpx.TransportError:
        pytest.fail("the connection was cut before the answer could be read")
    assert answer.status_code == 413
    assert "16777216" in problem_of(answer)["message"]


def test_a_part_of_a_log_that_is_too_large(open_server: Served) -> None:
    api = open_server.api()
    running = api.ok("POST", "/api/runs", {"script": "large log"})
    path = f"/api/logs/{running['id']}"
    largest = b"x" * (4 * MEGABYTE)
    assert api.ok("POST", path, params={"start": 0}, content=largest) == {"end": 4 * MEGABYTE}
    for body in (b"y" * (4 * MEGABYTE + 1), chunked(b"y" * (5 * MEGABYTE))):
        api.refused(413, "POST", path, params={"start": 4 * MEGABYTE}, content=body)
    assert api.ok("GET", f"/api/runs/{running['id']}")["log_bytes"] == 4 * MEGABYTE


def test_a_gzip_bomb_is_not_unpacked_without_end(small_server: Served) -> None:
    """A hundred kilobytes that would be thirty megabytes, as rows or as one line of blanks; files may have two."""
    rows = jsonl([conversation()] * (30 * MEGABYTE // len(jsonl([conversation()]))))
    for content in (rows, b" " * (30 * MEGABYTE)):
        packed = gzip.compress(content, 6, mtime=0)
        assert len(packed) < MEGABYTE
        refused = small_server.api()(
            "POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("bomb.jsonl.gz", packed)}
        )
        assert refused.status_code in (400, 413), refused.text[:200]
        assert "bomb.jsonl.gz" in problem_of(refused)["message"]
        assert str(SMALL_LIMIT) in problem_of(refused)["message"]


def test_errors_do_not_send_back_everything(small_server: Served) -> None:
    """However long the value is that an error repeats."""
    api = small_server.api()
    long = "a" * MEGABYTE
    tuning = {"model": "m", "training_file": "x"}
    row = "a" * 300_000
    rows = [{"messages": [{"role": row, "content": "x"}]}, {row: 1}, {"messages": [{"role": "user", row: 1}]}]
    answer = api("POST", "/v1/files", data={"purpose": "fine-tune"}, files={"file": ("x.jsonl", jsonl(rows))})
    assert answer.status_code == 400
    assert len(answer.content) < 20_000
    for method, path, body in [
        ("POST", "/api/jobs", {long: 1}),
        ("POST", "/api/jobs", {"kind": long}),
        ("POST", "/api/jobs", CUSTOM | {"params": {"a": 1}, "prefix": long}),
        ("POST", "/api/jobs", {"kind": "inference", "params": {long: 1}}),
        ("POST", "/api/jobs", {"kind": "inference", "params": {"model": "m", "input_file_id": long}}),
        ("POST", "/api/jobs", {"kind": "fine_tuning", "params": {long: 1}}),
        ("POST", "/api/jobs", CUSTOM | {"mounted_files": {long: "x"}}),
        ("POST", "/api/jobs", CUSTOM | {"mounted_files": {"x": long}}),
        ("POST", "/api/events", {"run_id": long, "events": []}),
        ("POST", "/v1/fine_tuning/jobs", {"model": long, "training_file": long}),
        ("POST", "/v1/fine_tuning/jobs", tuning | {"method": {"type": long}}),
        ("POST", "/v1/fine_tuning/jobs", tuning | {"method": {"type": "dft", "dft": {long: 1}}}),
        ("POST", "/v1/fine_tuning/jobs", tuning | {"hyperparameters": {long: 1}}),
        ("POST", "/v1/chat/completions", {"model": long, "messages": []}),
        ("POST", "/api/workers", {"name": "x", "version": "1", "cloud_type": "a" * 200}),
        ("POST", "/api/workers", {"name": "x", "version": "1", "hardware": "0 " + "a" * 198}),
    ]:
        answer = api(method, path, body)
        assert 400 <= answer.status_code < 500, (path, answer.text[:200])
        assert len(answer.content) < 20_000, (path, list(body), len(answer.content))


# Speeds


def test_a_body_that_does_not_come(small_server: Served) -> None:
    """408 after the time of silence, on JSON, logs and uploads; nothing of an upload is left."""
    api = small_server.api()
    run_id = api.ok("POST", "/api/runs", {"script": "slow"})["id"]
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nabc'
    for path, kind, begun in [
        ("/api/jobs", "application/json", b'{"kind"'),
        (f"/api/logs/{run_id}?start=0", "application/octet-stream", b"abc"),
        ("/v1/files", "multipart/form-data; boundary=b", start),
    ]:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n"
        answer = everything(small_server.raw(head.encode() + begun))
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert b'"type":"invalid_request_error"' in answer
    assert api.ok("GET", f"/api/runs/{run_id}")["log_bytes"] == 0
    until(lambda: not incoming(small_server), "the upload's end")


def test_a_cut_upload_leaves_nothing(small_server: Served) -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\n' + b"x" * 300_000
    head = b"POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    connection = small_server.raw(head + b"Content-Length: 1000000\r\n\r\n" + start)
    until(lambda: incoming(small_server), "the upload's begin")
    connection.close()
    until(lambda: not incoming(small_server), "the upload's end")
    assert small_server.api()("GET", "/v1/files", params={"purpose": "x"}).json()["data"] == []


def test_two_hundred_silent_connections_stop_nobody(open_server: Served) -> None:
    """Some say nothing, some half a header, some half a body, some are done: others are answered as before."""
    api = open_server.api()
    body = json.dumps(CUSTOM).encode()
    head = (
        f"POST /api/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    begun = [b"", b"GET /api/me HTTP/1.1\r\nHost: local", head.encode() + b"\r\n\r\n{", b"GET /api/me HTTP/1.1\r\nX: "]
    connections = [open_server.raw(begun[number % 4]) for number in range(200)]
    began = time.monotonic()
    for _ in range(20):
        assert api.ok("GET", "/api/me")
    file = api.upload(b"while they are silent", "batch")
    assert api("GET", f"/v1/files/{file['id']}/content").content == b"while they are silent"
    assert time.monotonic() - began < 5
    for connection in connections:
        connection.close()


def test_storing_a_large_file_holds_up_no_heartbeat(own_server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may take minutes for twenty gigabytes; leases run for thirty seconds meanwhile."""
    api = own_server.api()
    running = api.running()
    store = own_server.services.files.contents._store
    put, stored, go_on = store.put_file, threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        stored.set()
        go_on.wait(PATIENCE)
        return put(*arguments, **options)

    monkeypatch.setattr(store, "put_file", slow, raising=False)
    uploading = threading.Thread(target=own_server.api().upload, args=(b"a large file", "batch"))
    uploading.start()
    try:
        until(lambda: stored.is_set() or not uploading.is_alive(), "storing")
        other = own_server.api()
        answer = other("POST", f"/api/runs/{running.run_id}/heartbeat", timeout=5)
        assert answer.json()["cancel"] is False
    finally:
        go_on.set()
        uploading.join(PATIENCE)
    assert [file["bytes"] for file in api.ok("GET", "/v1/files")["data"]] == [12]


@pytest.mark.parametrize("does", ["look at a run", "submit a form"])
def test_a_store_that_is_slow_for_many_on_the_page_holds_up_no_heartbeat(
    own_server: Served, monkeypatch: pytest.MonkeyPatch, does: str
) -> None:
    """More of them than the server has threads for everything else."""
    api = own_server.api()
    running = api.running()
    api.report(running.run_id, {"path": "samples.jsonl"}, file=api.upload(b"{}\n", "samples")["id"])
    store: Any = own_server.services.files.contents._store
    waiting, go_on = threading.Semaphore(0), threading.Event()

    def slow(call: Any) -> Any:
        def wait_and_call(*arguments: Any, **options: Any) -> Any:
            waiting.release()
            go_on.wait(PATIENCE)
            return call(*arguments, **options)

        return wait_and_call

    name = "open" if does == "look at a run" else "put_file"
    monkeypatch.setattr(store, name, slow(getattr(store, name)), raising=False)
    answers: list[int] = []

    def act(number: int) -> None:
        client = own_server.api()
        if does == "look at a run":
            answers.append(client("GET", f"/runs/{running.run_id}").status_code)
        else:
            form = {"kind": "custom", "entrypoint": "true", "params": json.dumps({"number": number})}
            files = {"file": ("a.txt", f"file {number}".encode())}
            answers.append(client("POST", "/jobs", data=form, files=files).status_code)

    threads = [threading.Thread(target=act, args=(number,)) for number in range(45)]
    for thread in threads:
        thread.start()
    try:
        assert waiting.acquire(timeout=PATIENCE)
        other = own_server.api()
        for _ in range(20):
            answer = other("POST", f"/api/runs/{running.run_id}/heartbeat", timeout=5)
            assert answer.json()["cancel"] is False
            time.sleep(0.05)
    finally:
        go_on.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert answers == [200 if does == "look at a run" else 303] * 45
