"""Who gets in without a token: this machine, and nobody who only looks like it; and when a server listens to others."""

import secrets
import time
from pathlib import Path

import pytest

from tests.served import (
    CUSTOM,
    Api,
    Served,
    everything,
    served,
    until,
)
from tutelage.errors import ConfigError
from tutelage.jobs.records import Scope
from tutelage.server.services import open_services
from tutelage.server.settings import ServerSettings

OPEN_CALL = ("GET", "/api/me")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "0.0.0.0",
        "",
        "10.0.0.1",
    ],
)
def test_a_name_that_leads_here_gives_no_open_access(open_server: Served, host: str) -> None:
    """DNS rebinding: a page of evil.example whose name now leads to 127.0.0.1 sends its own name as Host."""
    api = open_server.api()
    api.refused(401, *OPEN_CALL, headers={"Host": host})
    api.refused(401, "POST", "/api/jobs", CUSTOM, headers={"Host": host})
    # With a token the name does not matter: a proxy may have any.
    assert open_server.api(open_server.token()).ok("GET", "/api/me", headers={"Host": "tutelage.example"})


@pytest.mark.parametrize("host", ["localhost:{port}", "127.0.0.1:{port}", "LOCALHOST", "[::1]:{port}", "127.0.0.2"])
def test_names_of_this_machine_are_open(open_server: Served, host: str) -> None:
    headers = {"Host": host.format(port=open_server.port)}
    assert "admin" in open_server.api().ok("GET", "/api/me", headers=headers)["scopes"]


@pytest.mark.parametrize("name", ["X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "Via"])
def test_behind_a_proxy_nobody_comes_from_this_machine(open_server: Served, name: str) -> None:
    """The proxy does, for everybody; and what it says of them is not trusted either."""
    for value in ("127.0.0.1", "for=127.0.0.1", "8.8.8.8", ""):
        problem = open_server.api().refused(401, *OPEN_CALL, headers={name: value})
        assert problem["type"] == "authentication_error"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1.evil.example", "file://", ""]
)
def test_pages_of_other_sites_change_nothing(open_server: Served, origin: str) -> None:
    """A page of another site can make a browser on this machine send a POST; the browser says whose page it is."""
    api = open_server.api()
    before = api.ok("GET", "/api/jobs")
    for method, path, body in [
        ("POST", "/api/jobs", CUSTOM | {"params": {"origin": origin}}),
        ("POST", "/v1/fine_tuning/jobs", {"model": "m", "training_file": "x"}),
        ("DELETE", "/api/tokens/x", None),
        ("PUT", "/api/secrets/X", {"value": "123456"}),
    ]:
        api.refused(403, method, path, body, headers={"Origin": origin})
    api.refused(403, "POST", "/api/jobs", CUSTOM, headers={"Origin": origin, "Cookie": "tutelage_token=x"})
    # As a form or a "simple" request would do it, without asking first.
    simple = {"Origin": origin, "Content-Type": "text/plain"}
    api.refused(403, "POST", "/api/jobs", content=b'{"kind": "custom", "entrypoint": "true"}', headers=simple)
    # Naming a scheme without a token is naming none.
    body = b'{"kind": "custom", "entrypoint": "true"}'
    head = f"POST /api/jobs HTTP/1.1\r\nHost: {open_server.url[7:]}\r\nOrigin: {origin}\r\nAuthorization: Bearer \r\n"
    head += f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    assert everything(open_server.raw(head.encode() + body)).startswith(b"HTTP/1.1 403 ")
    assert api.ok("GET", "/api/jobs") == before
    assert "access-control-allow-origin" not in api("GET", "/api/me", headers={"Origin": origin}).headers
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in api("OPTIONS", "/api/jobs", headers=preflight).headers


def test_pages_of_this_server_may(open_server: Served) -> None:
    own = {"Origin": open_server.url}
    assert open_server.api().ok("POST", "/api/jobs", CUSTOM | {"params": {"own": True}}, headers=own)


@pytest.mark.parametrize("headers", [{"Host": "[::1"}, {"Host": "["}, {"Origin": "http://["}, {"Host": "a b"}])
def test_headers_that_are_no_addresses_are_refused(open_server: Served, headers: dict[str, str]) -> None:
    answer = open_server.api()("POST", "/api/jobs", CUSTOM | {"params": {"x": 1}}, headers=headers)
    assert answer.status_code in (400, 401, 403), answer.text


def test_a_cookie_is_as_good_as_a_token_for_pages_of_this_server_alone(closed_server: Served, team: Api) -> None:
    cookie = {"Cookie": f"tutelage_token={team.token}"}
    api = closed_server.api()
    assert api.ok("GET", "/api/me", headers=cookie)["scopes"]
    assert api.ok("POST", "/api/jobs", CUSTOM, headers=cookie | {"Origin": closed_server.url})
    api.refused(403, "POST", "/api/jobs", CUSTOM, headers=cookie | {"Origin": "https://evil.example"})
    api.refused(401, "GET", "/api/me", headers=cookie | {"Authorization": "Basic eDp5"})


def test_on_loopback_a_placeholder_does_but_a_dead_token_does_not(open_server: Served) -> None:
    """OpenAI's client always sends a token, so any word does where none is needed. One of ours that was revoked, has
    expired or belongs to a run that has ended is a mistake or worse, and must not become everything."""
    assert open_server.api("unused").ok("GET", "/api/me")["scopes"] == ["read", "submit", "worker", "admin"]
    api = open_server.api()
    made = api.ok("POST", "/api/tokens", {"name": "x", "scopes": ["read"]})
    reader = open_server.api(made["secret"])
    reader.refused(403, "POST", "/api/jobs", CUSTOM)
    api.ok("DELETE", f"/api/tokens/{made['token']['id']}")
    reader.refused(401, "GET", "/api/me")
    reader.refused(401, "POST", "/api/jobs", CUSTOM)
    for job in api.ok("GET", "/api/jobs", params={"status": "pending"})["data"]:
        api.ok("POST", f"/api/jobs/{job['id']}/cancel")
    running = api.running()
    api.finish(running.run_id)
    open_server.api(running.token).refused(401, "POST", "/api/jobs", CUSTOM)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "tutelage.example", "", "127.0.0.1.evil.example"])
def test_others_can_connect_only_where_there_are_tokens(tmp_path: Path, host: str) -> None:
    """Section 7: binding to any other address without tokens is refused."""
    settings = ServerSettings(home=tmp_path, host=host)
    with pytest.raises(ConfigError, match="tutelage token create"):
        open_services(settings)
    # A token that cannot be used any more is none.
    services = open_services(ServerSettings(home=tmp_path))
    organization = services.organization
    gone = services.access.create_token(organization, "gone", [Scope.ADMIN])
    services.access.revoke_token(organization, gone.token.id)
    soon = time.time() + 0.02
    services.access.create_token(organization, "over", [Scope.ADMIN], expires_at=soon)
    services.close()
    until(lambda: time.time() > soon, "the expiry")
    with pytest.raises(ConfigError, match="tutelage token create"):
        open_services(settings)
    services = open_services(ServerSettings(home=tmp_path))
    services.access.create_token(services.organization, "admin", [Scope.ADMIN])
    services.close()
    services = open_services(settings)
    assert not services.settings.open_on_loopback
    services.close()


def test_with_a_shared_database_loopback_is_not_open(tmp_path: Path) -> None:
    """No token is needed only on loopback *with the embedded store*: others share this one."""
    with pytest.raises(ConfigError, match="need tokens"):
        open_services(ServerSettings(home=tmp_path, database=f"sqlite:///{tmp_path / 'shared.db'}"))


def test_bound_to_all_addresses_this_machine_needs_a_token_too(tmp_path: Path, migrated_sqlite: Path) -> None:
    home = tmp_path / "home"
    services = open_services(ServerSettings(home=home))
    token = services.access.create_token(services.organization, "admin", [Scope.ADMIN]).secret
    services.close()
    with served(home, host="0.0.0.0") as server:
        server.api().refused(401, *OPEN_CALL)
        server.api("placeholder").refused(401, *OPEN_CALL)
        assert server.api(token).ok(*OPEN_CALL)["scopes"] == ["read", "submit", "worker", "admin"]


def test_the_key_of_the_secrets_is_nobody_elses(own_server: Served) -> None:
    """Secrets are encrypted at rest, and the key beside them is readable by its owner alone."""
    api = own_server.api()
    value = "hf_" + secrets.token_hex(8)
    api.ok("PUT", "/api/secrets/HF_TOKEN", {"value": value})
    home = own_server.services.settings.home
    assert (home / "secret.key").stat().st_mode & 0o077 == 0
    for path in [path for path in home.rglob("*") if path.is_file()]:
        assert value.encode() not in path.read_bytes(), path
    assert api.running().answer["environment"] == {"HF_TOKEN": value}
