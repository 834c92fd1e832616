"""Requests that are meant to do harm, or do it by accident: sizes, speeds, names, characters, shapes."""

import gzip
import json
import logging
import random
import shutil
import socket
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
    jsonl,
    new_run_id,
    problem_of,
    served,
    until,
)

MEGABYTE = 1024**2
SMALL_LIMIT = 2 * MEGABYTE
JSON = {"Content-Type": "application/json"}


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


@pytest.fixture(autouse=True)
def no_error_of_its_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever was sent, no endpoint met an exception that it did not know."""
    servers = [request.getfixturevalue(name) for name in request.fixturenames if name.endswith("_server")]
    before = [len(server.log) for server in servers]
    yield
    for server, seen in zip(servers, before, strict=True):
        broken = [
            record for record in server.log[seen:] if record.exc_info or "Exception in ASGI" in record.getMessage()
        ]
        assert not broken, [logging.Formatter().format(record)[-2000:] for record in broken]


def incoming(server: Served) -> list[Path]:
    """What waits to become a file."""
    return list(server.services.settings.uploads.iterdir())


# Sizes


def form(content: bytes, purpose: str = "batch", name: str = "x.bin") -> tuple[bytes, str]:
    request = httpx.Request("POST", "http://x", data={"purpose": purpose}, files={"file": (name, content)})
    return request.read(), request.headers["content-type"]


def chunked(content: bytes, size: int = 65536) -> Iterator[bytes]:
    """Without a length that is said before."""
    for at in range(0, len(content), size):
        yield content[at : at + size]


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("extra", [1, 500_000, 4 * MEGABYTE])
def test_uploads_that_are_too_large(small_server: Served, declared: bool, extra: int) -> None:
    """413, whether the size was said before or not; nothing is left, and the largest that is allowed is taken."""
    api = small_server.api()
    largest, kind = form(b"a" * SMALL_LIMIT)
    assert api.ok("POST", "/v1/files", content=largest, headers={"Content-Type": kind})["bytes"] == SMALL_LIMIT
    content, kind = form(b"a" * (SMALL_LIMIT + extra))
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
    store = own_server.services.files._store
    put, stored, go_on = store.put_file, threading.Event(), threading.Event()

    def slow(*arguments: Any, **options: Any) -> Any:
        stored.set()
        go_on.wait(PATIENCE)
        return put(*arguments, **options)

    monkeypatch.setattr(store, "put_file", slow, raising=False)
    moved = type(store).mv

    uploading = threading.Thread(target=own_server.api().upload, args=(b"a large file", "batch"))
    uploading.start()
    try:
        until(lambda: stored.is_set() or not uploading.is_alive(), "storing")
        assert moved
        other = own_server.api()
        answer = other("POST", f"/api/runs/{running.run_id}/heartbeat", timeout=5)
        assert answer.json()["cancel"] is False
    finally:
        go_on.set()
        uploading.join(PATIENCE)
    assert [file["bytes"] for file in api.ok("GET", "/v1/files")["data"]] == [12]


# Names

TRAVERSALS = [
    "../../etc/passwd",
    "..%2F..%2Fetc%2Fpasswd",
    "/etc/passwd",
    "%2Fetc%2Fpasswd",
    "..%5C..%5Cwindows",
    "....//....//etc/passwd",
    "%2e%2e/%2e%2e/etc/passwd",
    "x%00.jsonl",
    "%00",
    "file:%2F%2F%2Fetc%2Fpasswd",
    "~root",
    "%0d%0aSet-Cookie:%20a=b",
    "%ff%fe",
    "a" * 5000,
    "conversations:file-0123456789ab%0a",
    "%F0%9F%92%A9",
    "{job_id}",
    "%7B%7B7*7%7D%7D",
    "'%20OR%20'1'='1",
]
PATHS = [
    "/v1/files/{}",
    "/v1/files/{}/content",
    "/v1/models/{}",
    "/v1/fine_tuning/jobs/{}",
    "/v1/fine_tuning/jobs/{}/events",
    "/api/jobs/{}",
    "/api/jobs/{}/explain",
    "/api/runs/{}",
    "/api/runs/{}/series",
    "/api/logs/{}",
    "/api/events?run_id={}",
    "/api/events/latest?job_id={}",
    "/api/events/stream?run_id={}",
    "/static/{}",
    "/{}",
]


@pytest.mark.parametrize("path", PATHS)
def test_ids_are_never_paths(open_server: Served, path: str) -> None:
    """Sent as they are, without a client that would tidy them up: 404 or 400, and nothing of the machine."""
    for name in TRAVERSALS:
        request = f"GET {path.replace('{}', name)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = everything(open_server.raw(request.encode("latin-1")))
        status = int(answer.split(b" ", 2)[1])
        assert status in (400, 404, 405, 307, 308), (name, answer[:300])
        assert b"root:x:" not in answer
        head = answer.split(b"\r\n\r\n", 1)[0].lower()
        assert b"set-cookie" not in head
        assert b"text/html" not in head


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "..\\..\\x",
        "a\0b",
        "",
        ".",
        "..",
        "a" * 3000,
        "<img src=x>",
        "CON",
        "é\u202e.exe",
    ],
)
def test_the_name_of_a_file_is_a_text_and_nothing_else(open_server: Served, name: str) -> None:
    """It is kept to be shown; what is written lies under the hash of its content."""
    home = open_server.services.settings.home
    before = {path for path in home.parent.rglob("*") if path.is_file()}
    content = f"content of {name!r}".encode()
    body, kind = form(content)
    body = body.replace(b'filename="x.bin"', b'filename="' + name.encode() + b'"')
    file = open_server.api().ok("POST", "/v1/files", content=body, headers={"Content-Type": kind})
    assert len(file["filename"]) <= 255
    answer = open_server.api()("GET", f"/v1/files/{file['id']}/content")
    assert answer.content == content
    disposition = answer.headers["content-disposition"]
    assert disposition == f'attachment; filename="{file["id"].replace(":", "-")}"'
    new = {path for path in home.parent.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(home) for path in new)
    assert [path.parts[len(home.parts)] for path in new if path.read_bytes() == content] == ["files"]


@pytest.mark.parametrize(
    "target",
    ["../x", "a/../../x", "/etc/passwd", "", ".", "..", "a\0b", "a\nb", "a\\..\\b", "C:x", "~/x", "a" * 1025, "./.."],
)
def test_mounts_cannot_lead_out(open_server: Served, target: str) -> None:
    api = open_server.api()
    file = api.upload(b"mounted", "custom_job_file")["id"]
    assert (
        "mount target" in api.refused(400, "POST", "/api/jobs", CUSTOM | {"mounted_files": {target: file}})["message"]
    )


def test_a_newline_behind_a_name(open_server: Served) -> None:
    """`$` in a regular expression lets one through; in a header or a log line it begins something new."""
    api = open_server.api()
    file = api.upload(b"a file", "batch")["id"]
    api.refused(400, "POST", "/v1/files", data={"purpose": "batch\n"}, files={"file": ("x", b"a file")})
    for body in [
        CUSTOM | {"prefix": "mine\n"},
        CUSTOM | {"params": {"job_id_suffix": "mine\n"}},
        CUSTOM | {"mounted_files": {"x": file + "\n"}},
        {"kind": "inference", "params": {"model": "m", "input_file_id": "conversations:file-0123456789ab\n"}},
        {"kind": "custom\n", "entrypoint": "true"},
    ]:
        api.refused(400, "POST", "/api/jobs", body)
    api.refused(400, "PUT", "/api/secrets/NAME%0A", {"value": "123456"})
    worker = api.worker()
    problem = api.refused(400, "POST", "/api/claims", {"worker_id": worker, "run_id": new_run_id() + "\n"})
    assert problem["param"] == "run_id"


SCRIPT = "<script>alert(1)</script>"


def test_scripts_in_names_come_back_as_data(own_server: Served) -> None:
    """JSON or plain text that a browser may not take for a page; what was uploaded is to be saved, not shown."""
    api = own_server.api()
    worker = api.worker(SCRIPT)
    page = f"<html><body>{SCRIPT}</body></html>".encode()
    file = api.upload(page, "batch", f"{SCRIPT}.html")
    job = api.submit(params={SCRIPT: SCRIPT, "meta": {SCRIPT: SCRIPT}}, entrypoint=SCRIPT)
    running = api.running(job, worker)
    api.report(running.run_id, {SCRIPT: SCRIPT, "tag": SCRIPT})
    api.print(running.run_id, 0, page)
    api.ok("PUT", f"/api/runs/{running.run_id}/serving", {"port": 9, "models": {SCRIPT: SCRIPT}})
    api.ok("POST", "/api/tokens", {"name": SCRIPT, "scopes": ["read"]})
    api.ok("POST", f"/api/workers/{worker}/stop", {"reason": SCRIPT})
    for path in [
        "/api/jobs",
        f"/api/jobs/{job['id']}",
        f"/api/jobs/{SCRIPT}",
        f"/api/jobs?search={SCRIPT}",
        f"/api/jobs?after={SCRIPT}",
        f"/api/jobs?status={SCRIPT}",
        "/api/runs",
        "/api/workers",
        "/api/tokens",
        f"/api/events?run_id={running.run_id}",
        f"/api/events/latest?run_id={running.run_id}",
        f"/api/logs/{running.run_id}",
        f"/api/logs/{running.run_id}?start=-5",
        "/v1/files",
        f"/v1/files/{file['id']}",
        f"/v1/files/{file['id']}/content",
        "/v1/models",
        f"/v1/models/{SCRIPT}",
        f"/v1/files?after={SCRIPT}",
        f"/{SCRIPT}",
        "/openapi.json",
    ]:
        answer = api("GET", path)
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in ("application/json", "text/plain", "application/octet-stream"), (path, kind)
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
    content = api("GET", f"/v1/files/{file['id']}/content")
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["content-disposition"].startswith("attachment")


# Characters and shapes

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "half": b'{"kind": ',
    "a text": b'"kind"',
    "a number": b"7",
    "a list": b"[]",
    "null": b"null",
    "not utf-8": b'{"kind": "\xff\xfe"}',
    "utf-16": '{"kind": "custom"}'.encode("utf-16"),
    "two": b"{}{}",
    "NaN": b'{"kind": NaN}',
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "closed deep list": b'{"kind":' + b"[" * 2000 + b"]" * 2000 + b"}",
    "half a pair": b'{"kind": "\\ud800"}',
    "half a pair as a name": b'{"\\ud800": 1}',
    "a huge number": b'{"kind": ' + b"9" * 5000 + b"}",
    "wrong types": b'{"kind": {}, "params": [], "events": {}, "scopes": 1, "messages": "x", "model": 1, "name": 1}',
    "NUL": b'{"kind": "a\\u0000b", "params": {"\\u0000": "\\u0000"}}',
    "a form": b"kind=custom&entrypoint=true",
    "the same name twice": b'{"kind": "custom", "kind": "nothing"}',
    "__proto__": b'{"__proto__": {"admin": true}, "constructor": {}}',
}
POSTS = [
    "/api/jobs",
    "/api/jobs/find",
    "/api/runs",
    "/api/events",
    "/api/workers",
    "/api/claims",
    "/api/tokens",
    "/v1/fine_tuning/jobs",
    "/v1/chat/completions",
    "/v1/files",
]


@pytest.mark.parametrize("path", POSTS)
def test_bodies_that_are_no_requests(open_server: Served, path: str) -> None:
    """400 with a sentence, whatever it is. A script's run may be begun with an empty body's defaults."""
    api = open_server.api()
    for name, body in BODIES.items():
        answer = api("POST", path, content=body, headers=JSON)
        assert answer.status_code in (400, 404, 413), (name, answer.status_code, answer.text[:300])
        problem_of(answer)


def test_half_surrogate_pairs(open_server: Served) -> None:
    """In values they become U+FFFD, which every record can hold; names and errors survive them too."""
    api = open_server.api()
    content = b'{"kind": "custom", "entrypoint": "true", "params": {"\\ud800": ["\\udfff", {"a\\ud800b": "x"}]}}'
    job = api.ok("POST", "/api/jobs", content=content, headers=JSON)
    assert job["params"].items() >= {"�": ["�", {"a�b": "x"}]}.items() or "?" in job["params"]
    assert api.ok("GET", f"/api/jobs/{job['id']}")["params"] == job["params"]
    run_id = api.ok("POST", "/api/runs", {"script": "surrogates"})["id"]
    body = b'{"run_id": "%s", "events": [{"id": "e", "data": {"\\ud83d": "\\ude00"}}]}' % run_id.encode()
    assert api.ok("POST", "/api/events", content=body, headers=JSON) == {"added": 1}
    assert len(api.ok("GET", "/api/events", params={"run_id": run_id})["data"]) == 1
    for body in (b'{"\\ud800": 1}', b'{"kind": "\\ud800"}', b'{"run_id": "\\ud800", "events": []}'):
        for path in POSTS[:-1]:
            answer = api("POST", path, content=body, headers=JSON)
            assert 400 <= answer.status_code < 500, (path, answer.text)


def test_numbers_that_no_record_holds(open_server: Served) -> None:
    """NaN and infinities are null, integers beyond 64 bits are floats: JSON as every client reads it."""
    api = open_server.api()
    run_id = api.ok("POST", "/api/runs", {"script": "numbers"})["id"]
    data = b'{"nan": NaN, "inf": Infinity, "minus": -Infinity, "large": 1e999, "big": %s, "fits": %s}'
    data %= (b"9" * 30, str(2**63 - 1).encode())
    body = b'{"run_id": "%s", "events": [{"id": "e", "data": %s}]}' % (run_id.encode(), data)
    assert api.ok("POST", "/api/events", content=body, headers=JSON) == {"added": 1}
    kept = api.ok("GET", "/api/events", params={"run_id": run_id})["data"][0]["data"]
    nothing = dict.fromkeys(["nan", "inf", "minus", "large"])
    assert kept == nothing | {"big": 1e30, "fits": 2**63 - 1}
    assert api.ok("GET", "/api/events/latest", params={"run_id": run_id}) == {"big": 1e30, "fits": 2**63 - 1}
    series = {one["field"]: one["values"] for one in api.ok("GET", f"/api/runs/{run_id}/series")["data"]}
    assert series == {"big": [1e30], "fits": [float(2**63 - 1)]}
    for change in (b'"requires_vram_gb": NaN', b'"requires_vram_gb": 1e999', b'"requires_vram_gb": -1'):
        content = b'{"kind": "custom", "entrypoint": "true", %s}' % change
        api.refused(400, "POST", "/api/jobs", content=content, headers=JSON)
    for query in ({"limit": "9" * 30}, {"limit": "1e1"}, {"limit": "NaN"}, {"limit": "0"}, {"limit": "-1"}):
        api.refused(400, "GET", "/api/jobs", params=query)
    for start in ("9" * 30, "NaN", "1.5", "-1"):
        api.refused(400, "POST", f"/api/logs/{run_id}", params={"start": start}, content=b"x")


def test_nesting(open_server: Served) -> None:
    """64 levels are kept; deeper is refused, at any depth, with secrets to be masked or without."""
    api = open_server.api()
    api.ok("PUT", "/api/secrets/NESTED", {"value": "a secret value"})
    run_id = api.ok("POST", "/api/runs", {"script": "nesting"})["id"]
    for depth, status in ((60, 200), (66, 400), (300, 400), (700, 400), (990, 400), (5000, 400)):
        for opening, closing in ((b'{"a":', b"}"), (b"[", b"]")):
            value = opening * depth + b"1" + closing * depth
            body = b'{"run_id": "%s", "events": [{"id": "%d%s", "data": {"v": %s}}]}'
            body %= (run_id.encode(), depth, opening[:1], value)
            answer = api("POST", "/api/events", content=body, headers=JSON)
            assert answer.status_code == status, (depth, answer.text[:200])
            if depth > 60:
                for path, shape in [
                    ("/api/jobs", b'{"kind": "custom", "entrypoint": "true", "params": {"v": %s}}'),
                    ("/api/jobs", b'{"kind": "fine_tuning", "params": {"meta": %s}}'),
                    ("/api/jobs", b'{"kind": "inference", "params": {"v": %s}}'),
                    ("/v1/fine_tuning/jobs", b'{"model": "m", "training_file": "x", "meta": %s}'),
                    ("/v1/fine_tuning/jobs", b'{"model": "m", "training_file": "x", "method": {"type": %s}}'),
                    ("/v1/chat/completions", b'{"model": "m", "messages": [{"role": %s}]}'),
                ]:
                    answer = api("POST", path, content=shape % value, headers=JSON)
                    assert 400 <= answer.status_code < 500, (path, depth, answer.text[:200])
            answer = api("POST", "/api/jobs/find", content=b'{"params": {"v": %s}}' % value, headers=JSON)
            assert answer.status_code in (200, 400)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2030-01-02T03:04:05Z", "2030-01-02T03:04:05Z"),
        ("2030-01-02T03:04:05+02:00", "2030-01-02T01:04:05Z"),
        ("2030-01-02T03:04:05", "2030-01-02T03:04:05Z"),
        ("9999-12-31T23:59:59-12:00", None),
        ("0001-01-01T00:00:00+14:00", None),
        ("0001-01-01T00:00:00", None),
        ("1000000000000000", None),
        ("tomorrow", None),
        ("2030-02-30T00:00:00Z", None),
        ("", None),
        (10**30, None),
        (-(10**30), None),
        (1e308, None),
        (True, None),
    ],
)
def test_times(open_server: Served, text: Any, expected: str | None) -> None:
    """Contract: ISO 8601 in UTC. One without a zone is UTC too, wherever the server stands."""
    api = open_server.api()
    job = api.submit()
    for method, path, body in [
        ("PATCH", f"/api/jobs/{job['id']}", {"timeout": text}),
        ("POST", "/api/jobs", CUSTOM | {"params": {"at": str(text)}, "timeout": text}),
    ]:
        if expected is None:
            api.refused(400, method, path, body)
        else:
            assert api.ok(method, path, body)["timeout"] == expected
    body = {"name": "x", "scopes": ["read"], "expires_at": text}
    if expected is None:
        api.refused(400, "POST", "/api/tokens", body)
    else:
        assert api.ok("POST", "/api/tokens", body)["token"]["expires_at"] == expected
    assert api.ok("GET", "/api/tokens")
    assert api.ok("GET", "/api/jobs")


def test_queries_with_any_characters(open_server: Served) -> None:
    api = open_server.api()
    job = api.submit(params={"text": "100% _sure_ \\ 'quoted' \"too\" ü"})
    for search, found in [
        ("100%", True),
        ("_sure_", True),
        ("%", True),
        ("10_%", False),
        ("'quoted'", True),
        ("' OR 1=1 --", False),
        ("\\", True),
        ("\n", False),
        ("🙂", False),
        (job["id"][3:9], True),
    ]:
        page = api.ok("GET", "/api/jobs", params={"search": search, "limit": 1000})
        assert (job["id"] in [one["id"] for one in page["data"]]) == found, search
    nothing = api("GET", "/api/jobs", params={"search": "\0"})
    assert nothing.status_code == 400 or nothing.json()["data"] == []
    assert api.ok("POST", "/api/jobs/find", {"params": {"text": "100% _sure_ \\ 'quoted' \"too\" ü"}})["data"] == [job]


# When the machine fails


def test_where_nothing_can_be_stored_it_is_said_without_paths(own_server: Served) -> None:
    """503, which clients try again, and no word of where files and records lie."""
    api = own_server.api()
    file = api.upload(b"will be lost", "batch")
    shutil.rmtree(own_server.services.settings.home / "files")
    api.refused(410, "GET", f"/v1/files/{file['id']}/content")  # asking again brings nothing back
    shutil.rmtree(own_server.services.settings.uploads)
    answer = api("POST", "/v1/files", data={"purpose": "batch"}, files={"file": ("x", b"y")})
    assert answer.status_code in (200, 503)
    if answer.status_code == 503:
        problem_of(answer)
    with own_server.services.database.writing() as connection:
        for table in ("events", "log_chunks", "tokens"):
            connection.exec_driver_sql(f"DROP TABLE {table}")
    running = api.ok("POST", "/api/runs", {"script": "x"})["id"]
    home = str(own_server.services.settings.home)
    for method, path, options in [
        ("GET", f"/api/events?run_id={running}", {}),
        ("POST", f"/api/logs/{running}?start=0", {"content": b"x"}),
        ("POST", "/api/events", {"json": {"run_id": running, "events": [{"id": "x", "data": {}}]}}),
        ("GET", "/api/tokens", {}),
    ]:
        problem = api.refused(503, method, path, **options)
        assert home not in json.dumps(problem)
        assert problem["type"] == "server_error"


def test_an_unknown_fault_says_nothing_of_itself(own_server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 in OpenAI's shape with the same headers as every answer; the traceback is in the log alone."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail of /home/somebody")

    monkeypatch.setattr(own_server.services.listing, "jobs", broken, raising=False)
    answer = own_server.api()("GET", "/api/jobs")
    assert answer.status_code == 500
    assert "secret detail" not in problem_of(answer)["message"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "secret detail" in own_server.logged()
    own_server.log.clear()
    assert own_server.api().ok("GET", "/api/me")


def test_leases_are_looked_at_again_after_an_unknown_fault(own_server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad moment must not end the loop that gives silent workers' jobs to others."""
    calls: list[int] = []

    def expire() -> list[str]:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a bad moment")
        return []

    monkeypatch.setattr(own_server.services.queue, "expire", expire, raising=False)
    until(lambda: len(calls) >= 2, "another look", patience=4)
    assert own_server.logged().count("RuntimeError: a bad moment") == 1
    own_server.log.clear()


def test_random_bytes_on_a_connection(open_server: Served) -> None:
    """Not HTTP at all: the connection ends, the server goes on. Seeded, so that a failure comes again."""
    source = random.Random(7)
    for _ in range(50):
        connection = open_server.raw(source.randbytes(source.randint(1, 3000)) + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        everything(connection)
        connection.close()
    assert open_server.api().ok("GET", "/api/me")


def test_headers_without_end(open_server: Served) -> None:
    for header in (b"X-A: " + b"a" * 200_000, b"\r\n".join(b"X-%d: a" % number for number in range(20_000))):
        connection = open_server.raw()
        try:
            connection.sendall(b"GET /api/me HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
            answer = everything(connection)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
        assert not answer.startswith(b"HTTP/1.1 2")
    assert open_server.api().ok("GET", "/api/me")
