"""Who gets in through the page: each of its routes with the token of another organisation, and with too small ones.

What people see then is tested in a browser. The endpoints of the document are in `test_server_access.py`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.served import ALL_SCOPES, Api, Running, Served, conversation, jsonl
from tutelage.jobs.records import Scope
from tutelage.server.app import create_app
from tutelage.server.services import Services
from tutelage.server.settings import ServerSettings


@dataclass(frozen=True)
class Call:
    """A valid request. scope: None where nobody has to be known. theirs: the status for a stranger's ids."""

    scope: Scope | None
    theirs: int
    data: dict[str, Any] = field(default_factory=dict[str, Any])
    query: dict[str, Any] = field(default_factory=dict[str, Any])


READ, SUBMIT, ADMIN = Scope.READ, Scope.SUBMIT, Scope.ADMIN
CUSTOM_FORM = {"kind": "custom", "params": "{}", "prefix": "customjob", "entrypoint": "true", "cloud_type": "SECURE"}
CALLS: dict[str, Call] = {
    "GET /": Call(None, 303),
    "GET /jobs": Call(READ, 200),
    "GET /jobs/new": Call(SUBMIT, 200),
    "POST /jobs": Call(SUBMIT, 400, CUSTOM_FORM | {"mounted_files": "data={file_id}"}),
    "GET /jobs/{job_id}": Call(READ, 404),
    "GET /jobs/{job_id}/clone": Call(SUBMIT, 404),
    "POST /jobs/{job_id}/cancel": Call(SUBMIT, 404),
    "POST /jobs/{job_id}/restart": Call(SUBMIT, 404),
    "GET /runs/{run_id}": Call(READ, 404),
    "GET /runs/{run_id}/plots": Call(READ, 404),
    "GET /runs/{run_id}/metrics.csv": Call(READ, 404),
    "GET /runs/{run_id}/log.txt": Call(READ, 404),
    "GET /files/{file_id}": Call(READ, 404),
    "GET /compare": Call(READ, 200, query={"run": "{run_id}", "job": "{job_id}"}),
    "GET /workers": Call(READ, 200),
    "GET /costs": Call(READ, 200),
    "GET /tokens": Call(ADMIN, 200),
    "POST /tokens": Call(ADMIN, 200, {"name": "stranger", "scopes": "read"}),
    "POST /tokens/{token_id}/revoke": Call(ADMIN, 404),
    "GET /secrets": Call(ADMIN, 200),
    "POST /secrets": Call(ADMIN, 303, {"name": "{name}", "value": "a stranger's value"}),
    "POST /secrets/delete": Call(ADMIN, 404, {"name": "{name}"}),
    "GET /sign-in": Call(None, 200),
    "POST /sign-in": Call(None, 401, {"token": "wrong"}),
    "POST /sign-out": Call(None, 303),
}
EVERY = pytest.mark.parametrize("operation", CALLS)
WITH_A_TOKEN = pytest.mark.parametrize("operation", [name for name, what in CALLS.items() if what.scope is not None])
TEXTS = ("only of the victim", "VICTIMS_KEY", "victims-token", "victims-worker")
"""What no page may show a stranger, besides ids."""


def routes() -> set[str]:
    """Of the application, all that are not in the document of the API; FastAPI keeps those of a router together."""
    services = cast("Services", SimpleNamespace(settings=ServerSettings(home=Path("nowhere"))))
    found: set[str] = set()
    for route in create_app(services).routes:
        for one in getattr(getattr(route, "original_router", None), "routes", [route]):
            if not getattr(one, "include_in_schema", True):
                found |= {f"{method} {one.path}" for method in getattr(one, "methods", None) or ()}
    return found - {"GET /openapi.json", "HEAD /openapi.json"}  # about no organisation


@dataclass
class Victim:
    """An organisation with one of everything that the page shows."""

    api: Api
    run: Running
    ids: dict[str, str]

    def state(self) -> list[Any]:
        """All that a page could have changed."""
        found: list[Any] = [self.api.ok("GET", path) for path in ("/api/jobs", "/api/runs", "/api/secrets")]
        tokens = self.api.ok("GET", "/api/tokens")["data"]
        return [*found, [token for token in tokens if token["name"] == "victims-token"]]


@pytest.fixture(scope="module")
def victim(closed_server: Served) -> Victim:
    api = closed_server.of_another_organization()
    training = api.upload(jsonl([conversation()]), "fine-tune")["id"]
    job = api.ok("POST", "/v1/fine_tuning/jobs", {"model": "smollm2", "training_file": training})
    run = api.running(job, api.worker("victims-worker"))
    api.report(run.run_id, {"tag": "train", "step": 1, "loss": 2.5, "note": "only of the victim"})
    api.print(run.run_id, 0, b"only of the victim")
    api.ok("PUT", "/api/secrets/VICTIMS_KEY", {"value": "victims-value"})
    token = api.ok("POST", "/api/tokens", {"name": "victims-token", "scopes": ["read"]})["token"]
    ids = {
        "job_id": job["id"],
        "run_id": run.run_id,
        "worker_id": run.worker_id,
        "token_id": token["id"],
        "file_id": api.upload(b"only of the victim", "result")["id"],
        "name": "VICTIMS_KEY",
    }
    return Victim(api, run, ids)


@pytest.fixture(scope="module")
def intruder(closed_server: Served) -> Api:
    """An administrator of another organisation."""
    return closed_server.of_another_organization()


def call(api: Api, operation: str, ids: dict[str, str]) -> Any:
    method, path = operation.split(" ")
    what = CALLS[operation]
    filled = {
        name: value.format(**ids) if "{" in value and value != "{}" else value for name, value in what.data.items()
    }
    query = {name: value.format(**ids) for name, value in what.query.items()}
    options = {"data": filled} if filled else {}
    return api(method, path.format(**ids), params=query, headers={"Accept": "text/html"}, **options)


def test_every_route_of_the_page_is_in_the_table_of_these_tests() -> None:
    """A new page has to say here which scope it needs, and is then tried like the others."""
    assert routes() == CALLS.keys()


@EVERY
def test_what_another_organization_has_is_not_there(intruder: Api, victim: Victim, operation: str) -> None:
    """404 for ids, and no list, form or comparison shows what is in it; a repeat changes nothing of the victim's."""
    before = victim.state()
    answer = call(intruder, operation, victim.ids)
    assert answer.status_code == CALLS[operation].theirs, answer.text[:2000]
    assert victim.state() == before
    named = {*CALLS[operation].data.values(), *CALLS[operation].query.values()}
    for text in TEXTS:
        # A stranger may have a secret of the same name.
        if text != "VICTIMS_KEY" or "{name}" not in named:
            assert text not in answer.text
    if answer.status_code == 200 and not CALLS[operation].query:
        for name, identity in victim.ids.items():
            assert name == "name" or identity not in answer.text, name
    intruder("DELETE", "/api/secrets/VICTIMS_KEY")


@WITH_A_TOKEN
def test_a_token_with_all_other_scopes_is_not_enough(closed_server: Served, victim: Victim, operation: str) -> None:
    """403 for who is known, 401 for who is not; and nothing was done."""
    scope = CALLS[operation].scope
    organization = victim.api.ok("GET", "/api/me")["organization"]["id"]
    others = [other for other in ALL_SCOPES if other not in (scope, ADMIN)]
    before = victim.state()
    answer = call(closed_server.api(closed_server.token(*others, organization=organization)), operation, victim.ids)
    assert answer.status_code == 403, answer.text[:2000]
    nobody = call(closed_server.api(), operation, victim.ids)
    assert nobody.status_code == 401
    for text in TEXTS:
        assert text not in answer.text
        assert text not in nobody.text
    assert victim.state() == before
