"""Calls to a server: where it is, who asks, what is tried again and what never is. Against a real server."""

import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest

from tests.fake_job_server import SILENCE, JobServer, job_server
from tests.judge_server import judge_server, refused_url
from tests.served import PATIENCE
from tutelage.client import http
from tutelage.client.errors import AccessError, ConnectionFailed, ServerError
from tutelage.client.http import Transport, path_of
from tutelage.client.openweights import OpenWeights
from tutelage.errors import ConfigError, FencedError, JobError, NotFoundError

ME = "GET /api/me"


@pytest.fixture
def server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[JobServer]:
    with job_server(tmp_path / "home", migrated_sqlite) as running:
        yield running


@pytest.fixture(autouse=True)
def _no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TUTELAGE_URL", "TUTELAGE_API_KEY", "OPENWEIGHTS_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def hurried(server: JobServer) -> tuple[Transport, list[float]]:
    """A transport that only notes its pauses."""
    pauses: list[float] = []
    return Transport(server.url, patience=1000, sleep=pauses.append), pauses


def test_errors_of_the_server_are_tried_again_until_it_answers(server: JobServer) -> None:
    server.faults.answers[ME] = [500, 503, 502]
    transport, pauses = hurried(server)
    assert transport.request("GET", "/api/me")["organization"]["name"] == "default"
    assert server.faults.seen[ME] == 4
    assert len(pauses) == 3


def test_pauses_double_up_to_ten_seconds(server: JobServer) -> None:
    """0.1, 0.2, … 6.4, 10, 10, each shortened by up to a half by chance."""
    server.faults.answers[ME] = [500] * 9
    transport, pauses = hurried(server)
    transport.request("GET", "/api/me")
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len(set(pauses)) == 9


def test_a_server_may_say_when_to_come_back(server: JobServer) -> None:
    server.faults.answers[ME] = [502, 503]
    server.faults.headers["retry-after"] = "7"
    transport, pauses = hurried(server)
    transport.request("GET", "/api/me")
    assert pauses == [7.0, 7.0]


def test_the_last_error_is_said_when_patience_is_over(server: JobServer) -> None:
    server.faults.answers[ME] = [500] * 100
    transport = Transport(server.url, patience=0.25)
    began = time.monotonic()
    with pytest.raises(ServerError, match=rf"^{server.url}: out of order$") as caught:
        transport.request("GET", "/api/me")
    assert time.monotonic() - began < 5
    assert 2 <= server.faults.seen[ME] < 6
    assert caught.value.exit_code == 3


def test_what_the_server_refuses_is_not_asked_again(server: JobServer) -> None:
    transport, pauses = hurried(server)
    with pytest.raises(NotFoundError, match=r"^ftjob-0: there is no such job"):
        transport.request("GET", "/api/jobs/ftjob-0")
    with pytest.raises(JobError, match="kind: 'magic' is none"):
        transport.request("POST", "/api/jobs", json={"kind": "magic"})
    assert pauses == []
    assert server.faults.seen["GET /api/jobs/ftjob-0"] == 1


def test_a_server_that_has_too_much_to_do_is_not_asked_again(server: JobServer) -> None:
    server.faults.answers[ME] = [429]
    transport, pauses = hurried(server)
    with pytest.raises(ServerError, match=rf"^{server.url}: out of order$"):
        transport.request("GET", "/api/me")
    assert (server.faults.seen[ME], pauses) == (1, [])


def test_what_has_not_arrived_is_sent_again(server: JobServer) -> None:
    """408: the server waited in vain for the rest of it."""
    server.faults.answers[ME] = [408]
    transport, pauses = hurried(server)
    assert transport.request("GET", "/api/me", once=True)["organization"]["name"] == "default"
    assert (server.faults.seen[ME], len(pauses)) == (2, 1)
    server.faults.answers[ME] = [408] * 100
    with pytest.raises(ServerError, match="out of order"):
        Transport(server.url, patience=0.1).request("GET", "/api/me")


def test_patience_begins_with_the_first_failure(server: JobServer) -> None:
    """A large file may be on its way for longer than that before its connection is cut."""
    transport = Transport(server.url, patience=0.3)
    transport.request("GET", "/api/me")
    tries: list[bytes] = []

    def take(parts: Iterator[bytes]) -> bytes:
        tries.append(b"".join(parts))
        if len(tries) == 1:
            time.sleep(0.5)
            raise httpx.ReadError("cut")
        return tries[-1]

    assert b"default" in transport.bytes_of("/api/me", take)
    assert len(tries) == 2


def test_the_time_is_that_of_the_server(server: JobServer) -> None:
    """Its answers say it, in whole seconds; one without a date, or with none that can be read, changes nothing."""
    transport = Transport(server.url)
    noon = datetime(2000, 1, 1, 12, tzinfo=timezone.utc)
    for date in ("Sat, 01 Jan 2000 12:00:00 GMT", "yesterday", ""):
        transport._arrived(httpx.Response(200, headers={"date": date} if date else None))
        assert 0 <= (transport.now() - noon).total_seconds() < PATIENCE
    transport.request("GET", "/api/me")
    assert abs((transport.now() - datetime.now(timezone.utc)).total_seconds()) < PATIENCE


def test_a_run_that_was_given_up_is_told_so(server: JobServer) -> None:
    worker = server.worker()
    server.client.exec("true")
    claimed = worker.claim()
    worker.complete(claimed.run_id)
    with pytest.raises(FencedError, match=claimed.run_id):
        worker.api.heartbeat(claimed.run_id)
    assert server.faults.seen[f"POST /api/runs/{claimed.run_id}/heartbeat"] == 1


def test_a_lost_answer_makes_no_second_job(server: JobServer) -> None:
    _ = server.client.organization_id
    server.cable.lose_answers = 2
    job = server.client.exec("true")
    assert server.faults.seen["POST /api/jobs"] == 3
    assert [one.id for one in server.client.jobs.list()] == [job.id]


def test_what_must_not_happen_twice_is_sent_once(server: JobServer) -> None:
    """A token whose answer was lost is of no use to anybody, and a second one is not asked for."""
    _ = server.client.organization_id
    server.cable.lose_answers = 1
    with pytest.raises(ConnectionFailed):
        server.client.tokens.create("mine")
    assert server.faults.seen["POST /api/tokens"] == 1
    server.faults.answers["POST /api/tokens"] = [503]  # not taken in: may be sent again
    assert server.client.tokens.create("mine").token.name == "mine"


def test_a_connection_that_was_cut_is_made_again(server: JobServer) -> None:
    transport = Transport(server.url, sleep=lambda _: server.cable.plug_in())
    first = transport.request("GET", "/api/me")
    server.cable.pull_out()
    assert transport.request("GET", "/api/me") == first


def test_a_server_that_says_nothing_is_asked_again(server: JobServer) -> None:
    server.faults.answers[ME] = [SILENCE]
    transport, _ = hurried(server)
    transport._client.timeout = 0.2
    assert transport.request("GET", "/api/me")["organization"]["name"] == "default"
    assert server.faults.seen[ME] >= 2  # more where this machine is too slow for the timeout


def test_no_server_is_said_with_its_address_and_what_starts_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before a minute is over, since nothing ever answered there."""
    monkeypatch.setattr(http, "FIRST_CONTACT_SECONDS", 0.2)
    url = refused_url().removesuffix("/v1")
    with pytest.raises(ConnectionFailed, match=rf"^{url}: no server answers there .*tutelage serve") as caught:
        _ = OpenWeights(base_url=url).organization_id
    assert caught.value.exit_code == 3


def test_a_server_that_went_away_is_waited_for(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as RETRY_SECONDS: it answered before, so it may be restarted."""
    monkeypatch.setattr(http, "FIRST_CONTACT_SECONDS", 0.0)
    monkeypatch.setattr(http, "RETRY_SECONDS", 1000.0)
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:
            server.cable.plug_in()

    transport = Transport(server.url, sleep=pause)
    transport.request("GET", "/api/me")
    server.cable.pull_out()
    transport.request("GET", "/api/me")
    assert len(pauses) == 5


def test_what_answers_may_be_no_tutelage_server() -> None:
    with judge_server() as other:
        transport = Transport(other.url.removesuffix("/v1"))
        with pytest.raises(ServerError, match=r"answers 404 Not Found to GET /api/me.*TUTELAGE_URL"):
            transport.request("GET", "/api/me")
        transport.close()


def test_tokens_are_asked_for_and_never_shown(tmp_path: Path, migrated_sqlite: Path) -> None:
    with job_server(tmp_path / "home", migrated_sqlite, require_tokens=True) as server:
        with pytest.raises(AccessError, match=r"a token is needed; make one with: tutelage token create"):
            Transport(server.url).request("GET", "/api/me")
        wrong = OpenWeights(base_url=server.url, auth_token="tut-my-secret")
        with pytest.raises(AccessError, match="unknown, expired or revoked") as caught:
            _ = wrong.organization_id
        assert "secret" not in f"{caught.value} {wrong!r} {wrong.http!r}"
        made = server.client.tokens.create("reader", ["read"])
        assert made.secret not in repr(made)
        assert made["secret"] == made.secret
        reader = OpenWeights(base_url=server.url, auth_token=made.secret)
        assert reader.me.scopes == ["read"]
        with pytest.raises(AccessError, match="has not the scope 'submit'"):
            reader.exec("true")
        server.client.tokens.revoke(made.token.id)
        assert server.client.tokens.list()[0].revoked_at is not None
        with pytest.raises(AccessError):
            reader.jobs.list()


@pytest.mark.parametrize("token", ["tut-se\ncret", "tut secret", "tut-sécret"])
def test_a_token_with_foreign_characters_is_refused_unshown(token: str) -> None:
    with pytest.raises(ConfigError, match=r"^the token has characters that no token has") as caught:
        Transport("http://127.0.0.1:1", token)
    assert token not in str(caught.value)


def test_addresses_and_tokens_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (Transport().address, Transport().token) == ("http://127.0.0.1:8000", None)
    monkeypatch.setenv("OPENWEIGHTS_API_KEY", "ow_a")
    assert Transport().token == "ow_a"
    monkeypatch.setenv("TUTELAGE_API_KEY", "tut-b")
    monkeypatch.setenv("TUTELAGE_URL", "https://team.example/tutelage/")
    assert (Transport().address, Transport().token) == ("https://team.example/tutelage", "tut-b")
    assert (Transport("http://[::1]:1").address, Transport(token="tut-c").token) == ("http://[::1]:1", "tut-c")


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://host", "http://", "http://host:port", "tutelage"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^base_url: '.*' is no address.*write"):
        Transport(address)


def test_a_password_in_the_address_is_not_shown() -> None:
    transport = Transport("http://me:hidden@127.0.0.1:1/", patience=0)
    with pytest.raises(ConnectionFailed) as caught:
        transport.request("GET", "/api/me")
    assert "hidden" not in f"{caught.value} {transport!r}"


@pytest.mark.parametrize(
    "address", ["http://me:hidden@host:port", "postgresql//me:hidden@host/x", "http://me:hidden@", "me:hid@den@host"]
)
def test_nor_where_it_is_no_address(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^base_url: '…@.* write") as caught:
        Transport(address)
    assert "hid" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_proxy_has_no_business_on_this_machine(server: JobServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, refused_url())
    assert Transport(server.url).request("GET", "/api/me")["run_id"] is None


def test_ids_are_parts_of_a_path_and_nothing_more() -> None:
    assert path_of("v1", "files", "a:file-0") == "/v1/files/a:file-0"
    assert path_of("api", "jobs", "../../x?y#z") == "/api/jobs/..%2F..%2Fx%3Fy%23z"
    for wrong in ("", ".", ".."):
        with pytest.raises(JobError, match="is no id"):
            path_of("api", "jobs", wrong)


def test_numbers_that_json_lacks_go_out_as_null(server: JobServer) -> None:
    job = server.client.jobs.get_or_create_or_reset(
        {
            "type": "custom",
            "script": "true",
            "params": {"validated_params": {"x": float("nan"), "y": [float("inf"), 1]}},
        }
    )
    assert job.params["validated_params"]["x"] is None
    assert job.params["validated_params"]["y"] == [None, 1]
    with pytest.raises(JobError, match=r"POST /api/jobs/find: object has no form in JSON"):
        server.client.jobs.find(x=object())
    assert server.faults.seen["POST /api/jobs/find"] == 0


def test_threads_may_share_a_client(server: JobServer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(lambda number: server.client.exec(f"echo {number}").id, range(24)))
    assert {job.id for job in server.client.jobs.list(limit=100)} == set(jobs)
    assert len(set(jobs)) == 24
