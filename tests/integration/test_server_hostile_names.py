"""Names that are meant to do harm: as paths, as headers, as mounts, as HTML."""

import pytest

from tests.served import (
    CUSTOM,
    Served,
    everything,
    form_body,
    new_run_id,
)

pytestmark = pytest.mark.usefixtures("no_error_of_its_own")

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
    body, kind = form_body(content)
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
