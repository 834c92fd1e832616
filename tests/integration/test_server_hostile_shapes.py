"""Bodies, queries and bytes that no client sends; and faults of the server itself, of which it says nothing."""

import json
import random
import shutil
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.served import (
    CUSTOM,
    PATIENCE,
    Served,
    everything,
    new_run_id,
    problem_of,
    served,
    until,
)

JSON = {"Content-Type": "application/json"}
pytestmark = pytest.mark.usefixtures("no_error_of_its_own")

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


def test_a_server_that_ends_waits_for_a_look_at_leases(
    migrated_sqlite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread uses what is closed next."""
    steps: list[str] = []
    begun, told = threading.Event(), threading.Event()

    def expire() -> list[str]:
        begun.set()
        told.wait(PATIENCE)
        steps.append("looked")
        return []

    with served(tmp_path / "home", migrated=migrated_sqlite) as server:
        monkeypatch.setattr(server.services.queue, "expire", expire, raising=False)
        engine = server.services.database.engine
        monkeypatch.setattr(server.services.database, "close", lambda: steps.append("closed"))
        assert begun.wait(PATIENCE)
        threading.Timer(0.5, told.set).start()
    engine.dispose()
    assert steps == ["looked", "closed"]


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


def test_what_is_no_number_is_not_taken_for_one(open_server: Served) -> None:
    """true is not 1, and "1" is not either: whoever sends them meant something else."""
    api = open_server.api()
    for wrong in (True, False, "1"):
        body = {"worker_id": "worker-x", "run_id": new_run_id(), "wait": wrong}
        assert api.refused(400, "POST", "/api/claims", body)["param"] == "wait"
        assert api.refused(400, "POST", "/api/jobs/find", {"params": {}, "limit": wrong})["param"] == "limit"
