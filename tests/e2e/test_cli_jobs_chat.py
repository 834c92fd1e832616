"""`tutelage chat`, with a model that a job serves: here a small server in its place."""

import io
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.command_line import Terminal
from tests.judge_server import completion
from tests.served import Served, until


class _Model(BaseHTTPRequestHandler):
    """Says what was asked, its system message before it, in two parts where it is to stream."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        said = " ".join(message["content"] for message in body["messages"])
        if said == "too long":
            error = {"message": "65 tokens are too many", "type": "invalid", "code": None, "param": None}
            self._answer(400, json.dumps({"error": error}), "application/json")
        elif not body.get("stream"):
            self._answer(200, json.dumps(completion(f"{said} {body.get('max_tokens')}")), "application/json")
        else:
            parts = [said, f" {body.get('temperature')}"]
            chunks = [
                {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m",
                 "choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]}
                for part in parts
            ]  # fmt: skip
            events = [json.dumps(chunk) for chunk in chunks] + ["[DONE]"]
            self._answer(200, "".join(f"data: {event}\n\n" for event in events), "text/event-stream")

    def _answer(self, status: int, text: str, kind: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def deployed(own_server: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A model that is served, and asked by commands."""
    model = ThreadingHTTPServer(("127.0.0.1", 0), _Model)
    model.daemon_threads = True
    thread = threading.Thread(target=lambda: model.serve_forever(poll_interval=0.01))
    thread.start()
    api = own_server.api()
    running = api.running(api.ok("POST", "/api/jobs", {"kind": "api", "params": {"model": "org/parrot"}}))
    names = {"org/parrot": "m"}
    api.ok("PUT", f"/api/runs/{running.run_id}/serving", {"port": model.server_port, "models": names})
    monkeypatch.setenv("TUTELAGE_URL", own_server.url)
    until(lambda: any(one["id"] == "org/parrot" for one in api.ok("GET", "/v1/models")["data"]), "the model")
    yield running.job_id
    model.shutdown()
    thread.join()
    model.server_close()


def test_chat(terminal: Terminal, deployed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done = terminal("chat", "org/parrot", "Grüße", "--system", "Be kind.", "--temperature", 0)
    assert (done.code, done.out, done.err) == (0, "Be kind. Grüße 0.0\n", "")
    whole = json.loads(terminal("chat", "org/parrot", "Hello", "--max-tokens", 7, "--json").out)
    assert whole["choices"][0]["message"]["content"] == "Hello 7"
    monkeypatch.setattr(sys, "stdin", io.StringIO("from a pipe"))
    assert terminal("chat", "org/parrot").out == "from a pipe None\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    empty = terminal("chat", "org/parrot")
    assert (empty.code, empty.out) == (2, "")
    refused = terminal("chat", "org/parrot", "too long")
    assert (refused.code, refused.out) == (2, "")
    assert "65 tokens are too many" in refused.err

    assert terminal("jobs", "cancel", deployed).out == f"{deployed}: canceled\n"


def test_chat_with_a_model_that_is_not_served(terminal: Terminal, deployed: str) -> None:
    done = terminal("chat", "org/parott", "Hello")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "error: org/parott: no job serves it now; did you mean 'org/parrot'?; serve it with: "
        "tutelage jobs submit --kind api --set model=org/parott\n"
    )
