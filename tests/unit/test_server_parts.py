"""Small parts of the server on their own: who is woken, what a body may cost, what is masked, what an error becomes."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.served import until
from tutelage.errors import (
    ConfigError,
    DataError,
    FencedError,
    JobError,
    NotFoundError,
    OutputError,
    StorageError,
    TutelageError,
)
from tutelage.jobs.access import Access
from tutelage.jobs.database import Database
from tutelage.server.limits import Limits
from tutelage.server.masking import Masking
from tutelage.server.notices import Notices
from tutelage.server.problems import problem, status_of


def test_only_those_who_listen_to_a_topic_are_woken() -> None:
    async def go() -> list[str]:
        notices, woken = Notices(), list[str]()
        notices.open()

        async def listen(topic: str) -> None:
            with notices.listening(topic) as told:
                told.forget()
                await told.wait(20)
                woken.append(topic)

        tasks = [asyncio.create_task(listen(topic)) for topic in ("a", "a", "b")]
        await asyncio.sleep(0)
        notices.tell("a")
        await asyncio.wait(tasks[:2])
        assert not tasks[2].done()
        notices.close()
        await tasks[2]
        return woken

    assert asyncio.run(go()) == ["a", "a", "b"]


def test_what_is_told_before_waiting_is_heard_and_from_any_thread() -> None:
    async def go() -> None:
        notices = Notices()
        notices.open()
        with notices.listening("a") as told:
            told.forget()
            thread = threading.Thread(target=notices.tell, args=("a",))
            thread.start()
            thread.join()
            began = time.monotonic()
            await told.wait(20)
            assert time.monotonic() - began < 5

    asyncio.run(go())


def test_telling_when_nobody_can_listen_any_more_is_nothing() -> None:
    """The last requests of a server that has gone down."""
    notices = Notices()
    notices.tell("a")

    async def go() -> None:
        notices.open()

    asyncio.run(go())
    notices.tell("a")
    notices.close()
    assert notices.closing


def exchange(
    app: Callable[..., Any],
    *messages: dict[str, Any],
    path: str = "/x",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> list[dict[str, Any]]:
    """What an application behind the limits of 100 bytes a file and 50 ms of silence sends."""
    sent: list[dict[str, Any]] = []
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        return waiting.pop(0)

    async def send(message: Any) -> None:
        sent.append(dict(message))

    async def go() -> None:
        scope = {"type": "http", "path": path, "method": "POST", "headers": headers or [], "query_string": b""}
        await Limits(app, max_file_bytes=100, silence_seconds=0.05)(scope, receive, send)

    asyncio.run(go())
    return sent


async def reads_all(scope: Any, receive: Any, send: Any) -> None:
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": str(size).encode()})


def body(content: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_body_within_the_limits_passes_and_gets_headers() -> None:
    start, content = exchange(reads_all, body(b"a" * 10, True), body(b"b" * 20))
    assert (start["status"], content["body"]) == (200, b"30")
    headers = dict(start["headers"])
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"x-frame-options"] == b"DENY"
    assert b"default-src 'none'" in headers[b"content-security-policy"]


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_beyond_the_limit_is_refused_before_it_is_read(declared: bool) -> None:
    """An upload may have 100 bytes and 1 MiB around them here."""
    length = [(b"content-length", str(3 * 1024**2).encode())] if declared else []
    part = body(b"x" * 700_000, more=True)
    sent = exchange(reads_all, part, part, part, body(b""), path="/v1/files", headers=length)
    assert sent[0]["status"] == 413
    assert json.loads(sent[1]["body"])["error"]["type"] == "invalid_request_error"


def test_a_body_of_which_nothing_comes_is_given_up() -> None:
    sent = exchange(reads_all, body(b"half", True))
    assert sent[0]["status"] == 408
    assert dict(sent[0]["headers"])[b"connection"] == b"close"


def test_an_answer_may_take_longer_than_a_body() -> None:
    """Silence is counted while the body comes, not while the application thinks or waits for a disconnect."""

    async def thinks(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(receive(), 0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert exchange(thinks, body(b"all"))[0]["status"] == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotFoundError("x"), 404),
        (FencedError("x"), 409),
        (StorageError("x"), 503),
        (OutputError("x"), 503),
        (JobError("x"), 400),
        (ConfigError("x"), 400),
        (DataError("x"), 400),
    ],
)
def test_the_status_of_an_error(error: TutelageError, status: int) -> None:
    """Contract: 404 not found, 409 fenced, 503 storage trouble, 400 bad input."""
    assert status_of(error) == status


def test_an_error_of_any_characters_and_length_can_be_sent() -> None:
    answer = problem(400, "half a pair \ud800 and \0" + "x" * 100_000, param="\udfff")
    text = bytes(answer.body).decode()
    assert len(text) < 20_000
    error = json.loads(text)["error"]
    assert error["message"].startswith("half a pair ")
    assert error.keys() == {"message", "type", "code", "param"}


@pytest.fixture
def access(sqlite_url: str) -> Any:
    database = Database(sqlite_url)
    yield Access(database, b"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
    database.close()


def test_secrets_are_masked_wherever_they_stand(access: Access) -> None:
    """Keys, texts, lists; the longest first, so that one that holds another goes as a whole; short ones not at all."""
    organization, other = access.organization("a"), access.organization("b")
    access.set_secret(organization, "LONG", "abcdef-123456")
    access.set_secret(organization, "INNER", "123456")
    access.set_secret(organization, "SHORT", "abc")
    masking = Masking(access)
    value = {"abcdef-123456": ["x123456y", {"k": "abcdef-123456"}], "n": 123456, "abc": None}
    assert masking.masked(organization, value) == {"***": ["x***y", {"k": "***"}], "n": 123456, "abc": None}
    assert masking.masked(other, value) == value
    assert masking.masked(organization, None) is None


def test_a_secret_is_masked_from_the_moment_on_that_it_was_set(access: Access) -> None:
    organization = access.organization("a")
    masking = Masking(access)
    assert masking.masked(organization, "a new secret") == "a new secret"
    access.set_secret(organization, "NEW", "a new secret")
    assert masking.masked(organization, "a new secret") == "***"
    # Jobs that began before still have it.
    access.delete_secret(organization, "NEW")
    access.set_secret(organization, "NEW", "a newer secret")
    assert masking.masked(organization, "a new secret, a newer secret") == "***, ***"


def test_waiting_for_a_condition_that_does_not_come_true_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the file did not come true"):
        until(lambda: (tmp_path / "x").exists(), "the file", patience=0.02)
