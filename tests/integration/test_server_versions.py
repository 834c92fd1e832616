"""Clients and keys of another time: what a newer or older client is told, and secrets whose key was replaced."""

from pathlib import Path

import pytest
from cryptography.fernet import Fernet

import tutelage
from tests.served import CUSTOM, Served, served

OTHER = f"not known to this server, tutelage {tutelage.__version__}; a client of another version? update the older"


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/api/schedules"), ("POST", "/v1/responses"), ("PUT", "/api/x/y")]
)
def test_what_only_another_version_knows(open_server: Served, method: str, path: str) -> None:
    """A sentence with the version and what to do, in place of Not Found."""
    problem = open_server.api().refused(404, method, path)
    assert problem == {"message": f"{method} {path}: {OTHER}", "type": "not_found_error", "code": None, "param": None}


def test_a_method_that_only_another_version_knows(open_server: Served) -> None:
    """RFC 9110: `Allow` names all methods of the path, of whichever route."""
    answer = open_server.api()("PUT", "/api/jobs")
    assert answer.status_code == 405
    assert answer.json()["error"]["message"] == f"PUT /api/jobs: {OTHER}"
    assert answer.headers["Allow"] == "GET, POST"
    assert open_server.api()("POST", "/api/secrets/NAME").headers["Allow"] == "DELETE, PUT"
    assert open_server.api()("DELETE", "/api/jobs/x").headers["Allow"] == "GET, PATCH"


def test_a_field_that_only_another_version_knows(open_server: Served) -> None:
    problem = open_server.api().refused(400, "POST", "/api/jobs", CUSTOM | {"priority": 3})
    assert (problem["message"], problem["param"]) == (f"priority: {OTHER}", "priority")


def test_ids_that_are_not_there_are_still_named(open_server: Served) -> None:
    problem = open_server.api().refused(404, "GET", "/api/jobs/customjob-000000000000")
    assert problem["message"].startswith("customjob-000000000000: ")


def test_where_secrets_cannot_be_read_no_job_is_handed_out(tmp_path: Path, migrated_sqlite: Path) -> None:
    """The key was replaced: 503, the job stays pending for the time when the key is back, with no attempt counted."""
    home = tmp_path / "home"
    with served(home, migrated=migrated_sqlite) as server:
        server.api().ok("PUT", "/api/secrets/HF_TOKEN", {"value": "a secret value"})
    key = (home / "secret.key").read_bytes()
    (home / "secret.key").write_bytes(Fernet.generate_key())
    with served(home) as server:
        api = server.api()
        job, worker = api.submit(), api.worker()
        for _ in range(2):
            assert api.claim(worker).status_code == 503
        assert "secrets were encrypted with another key" in server.logged()
        found = api.ok("GET", f"/api/jobs/{job['id']}")
        assert (found["status"], found["attempts"]) == ("pending", 0)
    (home / "secret.key").write_bytes(key)
    with served(home) as server:
        api = server.api()
        claimed = api.running(job, worker)
        assert claimed.answer["attempt"] == 1
        assert claimed.answer["environment"] == {"HF_TOKEN": "a secret value"}
