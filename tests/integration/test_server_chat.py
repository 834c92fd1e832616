"""Chat completions by the unmodified `openai` package, through a run that serves, to a small server of a model."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import httpx
import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.judge_server import completion, refused_url
from tests.served import PATIENCE, Api, Running, Served, problem_of, until

Messages = list[Any]
HELLO: Messages = [{"role": "user", "content": "Hello?"}]


@dataclass
class Seen:
    """What reached the model's server. ended: streams whose reader had gone when the next part was to be sent."""

    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])
    ended: int = 0
    sent: int = 0
    go_on: threading.Event = field(default_factory=threading.Event)


class Model(ThreadingHTTPServer):
    """Answers by the name of the model that is asked for."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen = Seen()
        self.connections: list[socket.socket] = []

    def cut(self) -> None:
        """Close what is open, kept connections too."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """That a reader goes away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Model  # pyright: ignore[reportIncompatibleVariableOverride] - as Python's own servers do it

    def setup(self) -> None:
        super().setup()
        self.server.connections.append(self.connection)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        seen = self.server.seen
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        seen.requests.append(body | {"path": self.path})
        seen.headers.append(dict(self.headers))
        match body["model"]:
            case "slow":
                seen.go_on.wait(PATIENCE)
                if self._reader_has_gone():
                    seen.ended += 1
                    return
                self._json(200, completion("at last"))
            case "refuses":
                error = {
                    "message": "too long",
                    "type": "invalid_request_error",
                    "code": "too_long",
                    "param": "messages",
                }
                self._json(400, {"error": error})
            case "breaks":
                self._json(500, {"error": {"message": "out of memory", "type": "t", "code": None, "param": None}})
            case "page":
                self._bytes(502, b"<html><script>alert(1)</script></html>", "text/html")
            case "half":
                self._head(200, "application/json", 1000)
                self.wfile.write(b'{"id": ')
                self.close_connection = True
            case "hangs up":
                self.close_connection = True
            case "redirects":
                self.send_response(307)
                self.send_header("Location", "http://127.0.0.1:1/v1/chat/completions")
                self.send_header("Content-Length", "0")
                self.end_headers()
            case name if body.get("stream"):
                self._stream(name)
            case _:
                self._json(200, completion(f"said {body['messages'][-1]['content']}"))

    def _reader_has_gone(self) -> bool:
        self.connection.settimeout(1)
        try:
            return self.connection.recv(1) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def _stream(self, name: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen = self.server.seen
        words = ["one ", "zwei ", "三 ", "🙂"] if name != "endless" else ["word "] * 1_000_000
        try:
            for word in words:
                if seen.sent:
                    # Each word waits for the one before to be read, so that a test sees them come one by one.
                    seen.go_on.wait(PATIENCE if name != "endless" else 0.01)
                    seen.go_on.clear()
                delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                chunk = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": name, "choices": [delta]}
                seen.sent += 1  # before it is sent: its reader may look at once
                self._chunk(f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n")
                if name == "breaks off" and seen.sent == 2:
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
            self._chunk("data: [DONE]\n\n")
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            seen.ended += 1
            self.close_connection = True

    def _chunk(self, text: str) -> None:
        content = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))

    def _head(self, status: int, kind: str, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.send_header("Set-Cookie", "upstream=1")
        self.send_header("Access-Control-Allow-Origin", "*")
        self.end_headers()

    def _bytes(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self._head(status, kind, len(content))
        self.wfile.write(content)

    def _json(self, status: int, content: Any) -> None:
        self._bytes(status, json.dumps(content).encode())


NAMES = ["slow", "refuses", "breaks", "page", "half", "hangs up", "redirects", "breaks off", "endless"]


@pytest.fixture
def model() -> Iterator[Model]:
    server = Model()
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    yield server
    server.seen.go_on.set()
    server.shutdown()
    server.cut()
    thread.join()
    server.server_close()


def deploy(team: Api, port: int, names: dict[str, str]) -> Running:
    running = team.running(team.ok("POST", "/api/jobs", {"kind": "api", "params": {"model": "m", "meta": {"p": port}}}))
    # As the job itself does it, with its own token.
    api = Api(team.url, running.token)
    api.ok("PUT", f"/api/runs/{running.run_id}/serving", {"port": port, "models": names})
    api.close()
    return running


@pytest.fixture
def deployed(team: Api, model: Model) -> Running:
    return deploy(team, model.server_port, {"ftjob-1/my model": "upstream-name"} | {name: name for name in NAMES})


@pytest.fixture
def client(closed_server: Served, team: Api, deployed: Running) -> OpenAI:
    assert team.token is not None
    return closed_server.openai(team.token)


def test_an_answer(client: OpenAI, model: Model) -> None:
    """The model is asked under the name its server knows, with all that was said; the token is not handed on."""
    answer = client.chat.completions.create(
        model="ftjob-1/my model",
        messages=[{"role": "user", "content": "Grüße, 🙂"}],
        temperature=0.5,
        max_tokens=7,
        extra_body={"top_k": 3},
    )
    assert answer.choices[0].message.content == "said Grüße, 🙂"
    assert answer.object == "chat.completion"
    expected = {"model": "upstream-name", "temperature": 0.5, "max_tokens": 7, "top_k": 3}
    assert model.seen.requests[0].items() >= expected.items()
    assert model.seen.requests[0]["path"] == "/v1/chat/completions"
    assert not {name.lower() for name in model.seen.headers[0]} & {"authorization", "cookie"}


def test_a_stream_comes_word_by_word(client: OpenAI, model: Model) -> None:
    """Each word is there before the next one is made."""
    words: list[str] = []
    with client.chat.completions.create(model="ftjob-1/my model", messages=HELLO, stream=True) as stream:
        for chunk in stream:
            words.append(chunk.choices[0].delta.content or "")
            assert model.seen.sent == len(words)
            model.seen.go_on.set()
    assert words == ["one ", "zwei ", "三 ", "🙂"]


def test_the_client_that_does_not_wait(closed_server: Served, team: Api, deployed: Running, model: Model) -> None:
    async def go() -> list[str]:
        assert team.token is not None
        async with AsyncOpenAI(base_url=f"{closed_server.url}/v1", api_key=team.token, max_retries=0) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model="ftjob-1/my model", messages=[{"role": "user", "content": str(number)}]
                    )
                    for number in range(20)
                )
            )
            assert [one.choices[0].message.content for one in answers] == [f"said {number}" for number in range(20)]
            words: list[str] = []
            stream = await client.chat.completions.create(model="ftjob-1/my model", messages=HELLO, stream=True)
            async for chunk in stream:
                words.append(chunk.choices[0].delta.content or "")
                model.seen.go_on.set()
            return words

    assert asyncio.run(go()) == ["one ", "zwei ", "三 ", "🙂"]


def test_models_nobody_serves(closed_server: Served, team: Api, client: OpenAI, deployed: Running) -> None:
    for name in ("no/such", "../../etc/passwd", "", "ftjob-1", "ftjob-1/my model\0"):
        with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
            client.chat.completions.create(model=name, messages=HELLO)
    stranger = closed_server.of_another_organization()
    assert stranger.token is not None
    with pytest.raises(openai.NotFoundError, match="no running job serves it"):
        closed_server.openai(stranger.token).chat.completions.create(model="ftjob-1/my model", messages=HELLO)
    # With its run the deployment is over.
    team.finish(deployed.run_id)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="ftjob-1/my model", messages=HELLO)


def test_of_two_deployments_the_newest_answers(team: Api, client: OpenAI) -> None:
    gone = deploy(team, int(refused_url().split(":")[2].split("/")[0]), {"ftjob-1/my model": "x"})
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="ftjob-1/my model", messages=HELLO)
    team.finish(gone.run_id)
    assert client.chat.completions.create(model="ftjob-1/my model", messages=HELLO)


def test_a_model_that_is_gone_is_502_and_named(closed_server: Served, team: Api, client: OpenAI) -> None:
    port = int(refused_url().split(":")[2].split("/")[0])
    gone = deploy(team, port, {"gone": "x"})
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as failed:
            client.chat.completions.create(model="gone", messages=HELLO, stream=cast("Any", stream))
        assert failed.value.status_code == 502
        problem = problem_of(httpx.Response(502, json={"error": failed.value.body}))
        assert gone.job_id in problem["message"]
        assert str(port) not in problem["message"]
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="hangs up", messages=HELLO)
    assert closed_server.logged().count("Traceback") == 0


def test_a_kept_connection_that_the_model_has_closed_is_no_failure(client: OpenAI, model: Model) -> None:
    """Servers close connections that were idle for some seconds; the next question goes over a new one."""
    for number in range(5):
        messages: Messages = [{"role": "user", "content": str(number)}]
        assert client.chat.completions.create(model="ftjob-1/my model", messages=messages)
        model.cut()


def test_what_the_model_refuses_is_handed_on(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="too long") as refused:
        client.chat.completions.create(model="refuses", messages=HELLO)
    assert refused.value.code == "too_long"
    with pytest.raises(openai.InternalServerError, match="out of memory"):
        client.chat.completions.create(model="breaks", messages=HELLO)


def test_what_is_no_answer_of_a_model_is_never_a_page(team: Api, client: OpenAI) -> None:
    """A model's server is a job's own program: its pages, cookies and redirects are none of this server."""
    for name in ("page", "redirects", "refuses"):
        answer = team("POST", "/v1/chat/completions", {"model": name, "messages": HELLO})
        assert answer.headers["content-type"].partition(";")[0] != "text/html"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
        assert "location" not in answer.headers
        assert answer.status_code >= 400
        problem_of(answer)


def test_half_an_answer_is_no_answer(closed_server: Served, client: OpenAI, model: Model) -> None:
    """Where the model breaks off, the client does too: nothing looks as if it were whole."""
    before = len(closed_server.log)
    with pytest.raises((openai.APIError, httpx2.HTTPError, json.JSONDecodeError)):
        client.chat.completions.create(model="half", messages=HELLO)
    words: list[str] = []

    def read() -> None:
        with client.chat.completions.create(model="breaks off", messages=HELLO, stream=True) as stream:
            for chunk in stream:
                words.append(chunk.choices[0].delta.content or "")
                model.seen.go_on.set()

    with pytest.raises((openai.APIError, httpx2.HTTPError)):
        read()
    assert words == ["one ", "zwei "]
    # It is no fault of this server: a line in the log, no traceback.
    until(lambda: len(closed_server.log) > before, "a line in the log")
    assert "Traceback" not in closed_server.logged()


def test_a_reader_that_goes_away_ends_the_stream_of_the_model(client: OpenAI, model: Model) -> None:
    """No GPU works on for somebody who has left."""
    with client.chat.completions.create(model="endless", messages=HELLO, stream=True) as stream:
        for number, _ in enumerate(stream):
            if number == 3:
                break
    until(lambda: model.seen.ended == 1, "the stream's end", patience=5)
    assert model.seen.sent < 100_000


def test_a_reader_that_goes_away_before_the_first_word_ends_the_request(
    closed_server: Served, team: Api, deployed: Running, model: Model
) -> None:
    body = json.dumps({"model": "slow", "messages": HELLO}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {team.token}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = closed_server.raw(head.encode() + body)
    until(lambda: model.seen.requests, "the request")
    connection.close()
    answered = closed_server.api(team.token)
    assert answered.ok("GET", "/api/me")
    model.seen.go_on.set()
    until(lambda: model.seen.ended == 1, "the request's end", patience=5)


def test_a_slow_model_is_waited_for_and_stops_nobody(team: Api, client: OpenAI, model: Model) -> None:
    """Fifty questions wait; other things are answered meanwhile; then all of them are."""
    answers: list[Any] = []

    def ask() -> None:
        answers.append(client.chat.completions.create(model="slow", messages=HELLO))

    threads = [threading.Thread(target=ask) for _ in range(50)]
    for thread in threads:
        thread.start()
    until(lambda: len(model.seen.requests) == 50, "fifty questions")
    began = time.monotonic()
    for _ in range(10):
        assert team.ok("GET", "/api/me")
    assert client.chat.completions.create(model="ftjob-1/my model", messages=HELLO)
    assert time.monotonic() - began < 3
    model.seen.go_on.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert [answer.choices[0].message.content for answer in answers] == ["at last"] * 50


def test_bodies_that_a_model_should_not_get(team: Api, deployed: Running) -> None:
    """What cannot be JSON for another server is refused here, with 400."""
    for body in [
        b'{"model": "refuses", "messages": [], "temperature": NaN}',
        b'{"model": "refuses", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "refuses", "messages": [], "user": "\\ud800"}',
        b'{"model": "refuses", "messages": [], "\\ud800": 1}',
        b'{"model": "refuses", "messages": [], "x": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"model": "refuses", "messages": [], "x": ' + b"9" * 4000 + b"}",
        b'{"model": "refuses", "messages": "none"}',
        b'{"model": "refuses"}',
        b'{"messages": []}',
        b'{"model": ["refuses"], "messages": []}',
    ]:
        answer = team("POST", "/v1/chat/completions", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 400, (body[:80], answer.text[:200])
        with contextlib.suppress(ValueError):
            problem_of(answer)
