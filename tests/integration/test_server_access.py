"""Who gets in and how far: every operation of the OpenAPI document, without a token, with wrong and with small ones."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.served import (
    ALL_SCOPES,
    CUSTOM,
    Api,
    Running,
    Served,
    conversation,
    everything,
    jsonl,
    new_run_id,
    problem_of,
    until,
)
from tutelage.jobs.records import Scope
from tutelage.server.app import create_app
from tutelage.server.services import Services
from tutelage.server.settings import ServerSettings

READ, SUBMIT, WORKER, ADMIN = (frozenset({scope}) for scope in Scope)
ANY: frozenset[Scope] = frozenset(ALL_SCOPES)


@dataclass(frozen=True)
class Call:
    """A valid request. `{job_id}` and the like stand for ids. scopes: each is enough. ids: it names something."""

    scopes: frozenset[Scope]
    json: Any = None
    query: dict[str, Any] = field(default_factory=dict[str, Any])
    ids: bool = False
    options: dict[str, Any] = field(default_factory=dict[str, Any])


FORM = {"data": {"purpose": "fine-tune"}, "files": {"file": ("rows.jsonl", jsonl([conversation()]))}}
FINE_TUNING = {"model": "smollm2", "training_file": "{training_file}"}
CHAT = {"model": "{model}", "messages": [{"role": "user", "content": "Hello?"}]}
WORKER_BODY = {"name": "w", "version": "1"}
# Writing for a run takes a worker's token, or the run's own.
CALLS: dict[str, Call] = {
    "GET /api/me": Call(ANY),
    "POST /api/jobs": Call(SUBMIT, {**CUSTOM, "mounted_files": {"a": "{file_id}"}}, ids=True),
    "GET /api/jobs": Call(READ),
    "POST /api/jobs/find": Call(READ, {"params": {}}),
    "GET /api/jobs/{job_id}": Call(READ, ids=True),
    "PATCH /api/jobs/{job_id}": Call(SUBMIT, {"timeout": None}, ids=True),
    "POST /api/jobs/{job_id}/cancel": Call(SUBMIT, ids=True),
    "POST /api/jobs/{job_id}/restart": Call(SUBMIT, ids=True),
    "GET /api/jobs/{job_id}/explain": Call(READ, ids=True),
    "GET /api/runs": Call(READ),
    "POST /api/runs": Call(SUBMIT, {"script": "python x.py"}),
    "GET /api/runs/{run_id}": Call(READ, ids=True),
    "GET /api/runs/{run_id}/series": Call(READ, ids=True),
    "POST /api/runs/{run_id}/heartbeat": Call(WORKER, ids=True),
    "POST /api/runs/{run_id}/finish": Call(WORKER, {"status": "failed"}, ids=True),
    "PUT /api/runs/{run_id}/serving": Call(WORKER, {"port": 9, "models": {"stolen": "m"}}, ids=True),
    "POST /api/events": Call(WORKER, {"run_id": "{run_id}", "events": [{"id": "x", "data": {"loss": 9}}]}, ids=True),
    "GET /api/events": Call(READ, query={"run_id": "{run_id}"}, ids=True),
    "GET /api/events/latest": Call(READ, query={"job_id": "{job_id}"}, ids=True),
    "GET /api/events/stream": Call(READ, query={"run_id": "{run_id}"}, ids=True),
    "POST /api/logs/{run_id}": Call(WORKER, query={"start": 0}, ids=True, options={"content": b"stolen"}),
    "GET /api/logs/{run_id}": Call(READ, ids=True),
    "POST /api/workers": Call(WORKER, WORKER_BODY),
    "GET /api/workers": Call(READ),
    "GET /api/demand": Call(READ),
    "PATCH /api/workers/{worker_id}": Call(WORKER, {"cached_models": ["stolen"]}, ids=True),
    "POST /api/workers/{worker_id}/stop": Call(WORKER, {"reason": "stolen"}, ids=True),
    "POST /api/claims": Call(WORKER, {"worker_id": "{worker_id}", "run_id": "{new_run}"}, ids=True),
    "GET /api/tokens": Call(ADMIN),
    "POST /api/tokens": Call(ADMIN, {"name": "t", "scopes": ["read"]}),
    "DELETE /api/tokens/{token_id}": Call(ADMIN, ids=True),
    "GET /api/secrets": Call(ADMIN),
    "PUT /api/secrets/{name}": Call(ADMIN, {"value": "a value"}),
    "DELETE /api/secrets/{name}": Call(ADMIN, ids=True),
    "GET /api/costs": Call(READ),
    "POST /v1/files": Call(SUBMIT | WORKER, options=FORM),
    "GET /v1/files": Call(READ),
    "GET /v1/files/{file_id}": Call(READ, ids=True),
    "GET /v1/files/{file_id}/content": Call(READ, ids=True),
    "DELETE /v1/files/{file_id}": Call(SUBMIT, ids=True),
    "POST /v1/fine_tuning/jobs": Call(SUBMIT, FINE_TUNING, ids=True),
    "GET /v1/fine_tuning/jobs": Call(READ),
    "GET /v1/fine_tuning/jobs/{job_id}": Call(READ, ids=True),
    "POST /v1/fine_tuning/jobs/{job_id}/cancel": Call(SUBMIT, ids=True),
    "GET /v1/fine_tuning/jobs/{job_id}/events": Call(READ, ids=True),
    "GET /v1/fine_tuning/jobs/{job_id}/checkpoints": Call(READ, ids=True),
    "GET /v1/models": Call(READ),
    "GET /v1/models/{model}": Call(READ, ids=True),
    "POST /v1/chat/completions": Call(READ, CHAT, ids=True),
}
EVERY = pytest.mark.parametrize("operation", CALLS)


def operations() -> set[str]:
    """Of the document, as a client sees it."""
    services = cast("Services", SimpleNamespace(settings=ServerSettings(home=Path("nowhere"))))
    paths = create_app(services).openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


@dataclass
class Victim:
    """An organisation with one of everything. ids: what calls may name. all_ids: also what they may not tell."""

    api: Api
    run: Running
    ids: dict[str, str]
    before: list[Any] = field(default_factory=list[Any])

    def state(self) -> list[Any]:
        """All that anybody could have changed."""
        lists = ["/api/jobs", "/api/runs", "/api/workers", "/api/secrets", "/v1/files", "/v1/models"]
        found: list[Any] = [self.api.ok("GET", path) for path in lists]
        found += [self.api.ok("GET", "/api/events", params={"run_id": self.run.run_id})]
        found += [self.api("GET", f"/api/logs/{self.run.run_id}").content]
        tokens = self.api.ok("GET", "/api/tokens")["data"]
        found += [[token for token in tokens if token["name"] == "victims-token"]]
        return found


@pytest.fixture(scope="module")
def victim(closed_server: Served) -> Victim:
    api = closed_server.of_another_organization()
    training = api.upload(jsonl([conversation()]), "fine-tune")["id"]
    job = api.ok("POST", "/v1/fine_tuning/jobs", {"model": "smollm2", "training_file": training})
    run = api.running(job)
    api.report(run.run_id, {"tag": "train", "step": 1, "loss": 2.5})
    api.print(run.run_id, 0, b"hello")
    api.ok("PUT", f"/api/runs/{run.run_id}/serving", {"port": 9, "models": {"victims/model": "m"}})
    api.ok("PUT", "/api/secrets/VICTIMS_KEY", {"value": "victims-value"})
    token = api.ok("POST", "/api/tokens", {"name": "victims-token", "scopes": ["read"]})["token"]
    ids = {
        "job_id": job["id"],
        "run_id": run.run_id,
        "worker_id": run.worker_id,
        "token_id": token["id"],
        "file_id": api.upload(b"private", "result")["id"],
        "training_file": training,
        "model": "victims/model",
        "name": "VICTIMS_KEY",
    }
    made = Victim(api, run, ids)
    made.before = made.state()
    return made


def call(api: Api, operation: str, ids: dict[str, str]) -> Any:
    """The answer; ids are filled in."""
    method, path = operation.split(" ")
    what = CALLS[operation]
    ids = ids | {"new_run": new_run_id()}
    options = dict(what.options)
    if what.json is not None:
        options["json"] = _filled(what.json, ids)
    return api(method, path.format(**ids), params=_filled(what.query, ids), **options)


def _filled(value: Any, ids: dict[str, str]) -> Any:
    if isinstance(value, str):
        return ids[value[1:-1]] if value.startswith("{") else value
    if isinstance(value, dict):
        return {name: _filled(item, ids) for name, item in value.items()}
    return [_filled(item, ids) for item in value] if isinstance(value, list) else value


def test_every_operation_of_the_document_is_in_the_table_of_these_tests() -> None:
    """A new endpoint has to say here which scope it needs, and is then tried like the others."""
    assert operations() == CALLS.keys()


@pytest.fixture(scope="module")
def dead_tokens(closed_server: Served) -> list[str | None]:
    """None, and all that was a token or looks like one."""
    access = closed_server.services.access
    revoked = closed_server.token()
    principal = access.principal(revoked)
    assert principal is not None
    assert principal.token_id is not None
    access.revoke_token(principal.organization, principal.token_id)
    soon = time.time() + 0.02
    expired = closed_server.token(expires_at=soon)
    alive = closed_server.token()
    until(lambda: time.time() > soon, "the expiry")
    return [None, "wrong", "tut-" + "x" * 43, revoked, expired, alive[:-1], alive.upper(), f"{alive}x"]


@pytest.fixture(scope="module")
def tokens_without(closed_server: Served, victim: Victim) -> dict[frozenset[Scope], str]:
    """For each set of scopes that is needed, the victim's token with all others but admin."""
    organization = victim.api.ok("GET", "/api/me")["organization"]["id"]
    needed = {what.scopes for what in CALLS.values()} - {ANY}
    others = {one: [scope for scope in ALL_SCOPES if scope not in one | ADMIN] for one in needed}
    return {one: closed_server.token(*scopes, organization=organization) for one, scopes in others.items()}


@pytest.fixture(scope="module")
def intruder(closed_server: Served) -> Api:
    """An administrator of another organisation."""
    return closed_server.of_another_organization()


@EVERY
def test_without_a_valid_token_nothing_is_answered(
    closed_server: Served, victim: Victim, dead_tokens: list[str | None], operation: str
) -> None:
    """401 with a sentence and the header that RFC 9110 wants, whatever is wrong with the token."""
    nobody = closed_server.api()
    for token in dead_tokens:
        nobody.http.headers = {"Authorization": f"Bearer {token}"} if token else {}
        answer = call(nobody, operation, victim.ids)
        assert answer.status_code == 401, (token, answer.text)
        assert problem_of(answer)["type"] == "authentication_error"
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"


@EVERY
def test_a_token_with_all_other_scopes_is_not_enough(
    closed_server: Served, victim: Victim, tokens_without: dict[frozenset[Scope], str], operation: str
) -> None:
    """Section 7: scopes. None includes another but admin."""
    needed = CALLS[operation].scopes
    if needed == ANY:
        return
    answer = call(closed_server.api(tokens_without[needed]), operation, victim.ids)
    assert answer.status_code == 403, answer.text
    assert problem_of(answer)["type"] == "permission_error"


@EVERY
def test_what_another_organization_has_is_not_there(intruder: Api, victim: Victim, operation: str) -> None:
    """404 for ids, and lists do not hold them: an administrator of one organisation is nobody in another."""
    answer = call(intruder, operation, victim.ids)
    if CALLS[operation].ids:
        assert answer.status_code == 404, answer.text
        assert problem_of(answer)["type"] == "not_found_error"
        return
    assert answer.status_code == 200, answer.text
    if operation.startswith("PUT /api/secrets/"):
        # A secret's name is a word that both may use; each has its own.
        intruder.ok("DELETE", f"/api/secrets/{victim.ids['name']}")
        return
    for name, identity in victim.ids.items():
        assert identity not in answer.text, name


def test_after_all_that_the_victim_has_what_it_had(victim: Victim) -> None:
    """Nothing that was answered with 401, 403 or 404 did something all the same."""
    assert victim.state() == victim.before


def test_other_schemes_and_empty_tokens_are_none(closed_server: Served, victim: Victim) -> None:
    for value in (f"Basic {victim.api.token}", f"Token {victim.api.token}", victim.api.token, "Bearer", "Bearer ", ""):
        request = f"GET /api/me HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: {value}\r\n\r\n"
        answer = everything(closed_server.raw(request.encode()))
        assert answer.startswith(b"HTTP/1.1 401 "), (value, answer)


def test_files_and_events_of_another_organization_cannot_be_named(intruder: Api, victim: Victim) -> None:
    """As a page's start, in mounts, params and events: no way to learn whether an id is there."""
    intruder.refused(404, "GET", "/v1/files", params={"after": victim.ids["file_id"]})
    intruder.refused(404, "GET", "/api/jobs", params={"after": victim.ids["job_id"]})
    intruder.refused(404, "GET", "/v1/fine_tuning/jobs", params={"after": victim.ids["job_id"]})
    intruder.refused(404, "GET", "/api/events", params={"job_id": victim.ids["job_id"]})
    intruder.refused(404, "POST", "/api/jobs", CUSTOM | {"mounted_files": {"x": victim.ids["file_id"]}})
    body = {"kind": "inference", "params": {"model": "m", "input_file_id": victim.ids["training_file"]}}
    intruder.refused(404, "POST", "/api/jobs", body)
    assert intruder.ok("GET", "/api/runs", params={"job_id": victim.ids["job_id"]})["data"] == []
    assert intruder.ok("GET", "/api/runs", params={"worker_id": victim.ids["worker_id"]})["data"] == []


def test_a_run_that_another_organization_has_cannot_be_claimed_again(intruder: Api, victim: Victim) -> None:
    """The answer to a claim holds the secrets and a token, so repeating one needs its organisation and its worker."""
    answer = intruder.claim(intruder.worker(), victim.run.run_id)
    assert answer.status_code in (404, 409)
    assert victim.ids["job_id"] not in answer.text
    other_worker = victim.api.worker("another")
    assert victim.api.claim(other_worker, victim.run.run_id).status_code == 409


def test_the_token_of_a_run_writes_for_this_run_only_and_dies_with_it(closed_server: Served) -> None:
    """Section 5: a token that lives as long as the lease. It reads, submits, and reports for its own run."""
    team = closed_server.of_another_organization()
    mine, other = team.running(), team.running()
    job = closed_server.api(mine.token)
    me = job.ok("GET", "/api/me")
    assert (me["run_id"], me["scopes"]) == (mine.run_id, ["read", "submit"])
    assert job.report(mine.run_id, {"loss": 1}) == 1
    # What a process prints goes through its worker, which takes the secrets out of it.
    job.refused(403, "POST", f"/api/logs/{mine.run_id}", params={"start": 0}, content=b"a secret value")
    assert team("GET", f"/api/logs/{mine.run_id}").content == b""
    job.ok("PUT", f"/api/runs/{mine.run_id}/serving", {"port": 1, "models": {"a": "b"}})
    assert job.submit()["status"] == "pending"
    # A script outside any worker is writable by who may submit, but not by a job.
    script = team.ok("POST", "/api/runs", {"script": "x"})["id"]
    for run_id in (other.run_id, script, "run-" + "0" * 32):
        job.refused(403, "POST", "/api/events", {"run_id": run_id, "events": [{"id": "x", "data": {}}]})
        job.refused(403, "POST", f"/api/logs/{run_id}", params={"start": 0}, content=b"x")
        job.refused(403, "PUT", f"/api/runs/{run_id}/serving", {"port": 1, "models": {"a": "b"}})
    for method, path, body in [
        ("POST", f"/api/runs/{mine.run_id}/heartbeat", None),
        ("POST", f"/api/runs/{mine.run_id}/finish", {"status": "completed"}),
        ("POST", "/api/workers", WORKER_BODY),
        ("POST", "/api/claims", {"worker_id": mine.worker_id, "run_id": new_run_id()}),
        ("GET", "/api/tokens", None),
        ("GET", "/api/secrets", None),
    ]:
        job.refused(403, method, path, body)
    team.finish(mine.run_id)
    job.refused(401, "GET", "/api/me")
    job.refused(401, "POST", "/api/events", {"run_id": mine.run_id, "events": []})
    # Given up for being silent, it is over as well.
    lost = closed_server.api(other.token)
    lost.ok("GET", "/api/me")
    team.finish(other.run_id, "pending")
    lost.refused(401, "GET", "/api/me")


def test_tokens_of_runs_are_not_among_those_of_people(team: Api) -> None:
    running = team.running()
    assert all(token["name"] == "test" for token in team.ok("GET", "/api/tokens")["data"])
    assert running.token not in team("GET", "/api/tokens").text


def test_a_token_is_shown_once_hashed_at_rest_and_gone_when_revoked(closed_server: Served, team: Api) -> None:
    """Section 7: random, shown once, hashed at rest, scopes, expiry, revocation."""
    made = team.ok("POST", "/api/tokens", {"name": "laptop", "scopes": ["read", "submit"], "expires_at": None})
    secret, identity = made["secret"], made["token"]["id"]
    again = team.ok("POST", "/api/tokens", {"name": "laptop", "scopes": ["read"]})
    assert len(secret) >= 40
    assert secret != again["secret"]
    assert secret not in team("GET", "/api/tokens").text
    home = closed_server.services.settings.home
    for path in home.glob("tutelage.db*"):
        assert secret.encode() not in path.read_bytes()
    laptop = closed_server.api(secret)
    assert laptop.ok("GET", "/api/me")["scopes"] == ["read", "submit"]
    first = team.ok("DELETE", f"/api/tokens/{identity}")
    assert first["revoked_at"] is not None
    laptop.refused(401, "GET", "/api/me")
    assert team.ok("DELETE", f"/api/tokens/{identity}") == first  # a repeat is harmless
    for body in [
        {"name": "x", "scopes": []},
        {"name": "x", "scopes": ["root"]},
        {"name": "", "scopes": ["read"]},
        {"name": "x", "scopes": ["read"], "expires_at": "2001-01-01T00:00:00Z"},
    ]:
        team.refused(400, "POST", "/api/tokens", body)
