"""A real HTTP server that speaks as much of OpenAI's interface as a judge uses, and every way of failing at it.

What a request gets is decided by the name of the model it asks for; `JudgeServer.requests` counts them. `counts` judges
by the letters of the answer; `moody` too, but has an error of its own where there is an `a`, and no number for a `b`.
"""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "right-key"
LISTED = ["right", "together", "refused", "eighty", "tires"]
PATIENCE = 30.0
"""Seconds after which a wait that should have ended fails its test in place of hanging it."""


def answer_in(asked: str) -> str:
    """What a judge prompt that ends in `Answer: {answer}` holds."""
    return asked.rpartition("Answer: ")[2]


def count(asked: str) -> str:
    """The judgement of `counts`: 10 points for each `a` of the answer, or whether it has one."""
    letters = answer_in(asked).count("a")
    return ("spanish" if letters else "english") if "one word" in asked else f"Score: {10 * letters}"


def completion(text: str | None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}


class JudgeServer(ThreadingHTTPServer):
    """`together`: how many requests to the model of that name are answered at the same time, and not before."""

    daemon_threads = False  # so that closing waits for the handlers, and no test leaks one

    def __init__(self, together: int = 1, key: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.key = key
        self.stamina = 0
        """How many requests the model `tires` answers before it fails."""
        self.requests: list[dict[str, Any]] = []
        self.active = 0
        self.most_active = 0
        self.lock = threading.Lock()
        self.barrier = threading.Barrier(together)
        self.closing = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def shutdown_request(self, request: Any) -> None:
        """Close without the orderly end first, which would hide a reset."""
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what some tests are about."""


@contextmanager
def judge_server(together: int = 1, key: str | None = None) -> Iterator[JudgeServer]:
    server = JudgeServer(together, key)
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


def refused_url() -> str:
    """Where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return f"http://127.0.0.1:{port}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JudgeServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in LISTED]})
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body | {"authorization": self.headers["Authorization"]})
            self.server.active += 1
            self.server.most_active = max(self.server.most_active, self.server.active)
        try:
            if self.path != "/v1/chat/completions":
                answer = partial(self._send, 404, {"detail": "Not Found"})
            elif self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
                answer = self._error(401, f"Incorrect key: {self.headers['Authorization']}", "invalid_api_key")
            else:
                answer = self._behaviour(body)
        finally:
            with self.server.lock:
                self.server.active -= 1
        answer()  # only now does the client know, and can ask again

    def _behaviour(self, body: dict[str, Any]) -> Callable[[], None]:
        model, asked = body["model"], body["messages"][-1]["content"]
        match model:
            case "right":
                return lambda: self._send(200, completion(f"said {asked}"))
            case "together":
                self.server.barrier.wait(PATIENCE)
                return lambda: self._send(200, completion(f"said {asked}"))
            case "slow":
                self.server.closing.wait(0.3)
                return lambda: self._send(200, completion(f"said {asked}"))
            case "eighty":
                return lambda: self._send(200, completion("Score: 80"))
            case "tires":
                tired = len(self.server.requests) > self.server.stamina
                return self._error(500, "tired", None) if tired else lambda: self._send(200, completion("Score: 60"))
            case "counts":
                return lambda: self._send(200, completion(count(asked)))
            case "moody" if "a" in answer_in(asked):
                return self._error(500, "no", None)
            case "moody":
                return lambda: self._send(200, completion("No." if "b" in answer_in(asked) else count(asked)))
            case "chats":
                return lambda: self._send(200, completion("What a fine answer!"))
            case "hangs":
                self.server.closing.wait(PATIENCE)
                return self._drop
            case "drips":
                return self._drip
            case "resets":
                return self._reset
            case "busy":
                return self._error(429, "Rate limit reached", "rate_limit_exceeded")
            case "broken":
                return self._error(500, "boom", None)
            case "picky":
                return self._error(400, "Unsupported parameter: 'max_tokens'", "unsupported_parameter")
            case "refused":
                return self._error(403, "No access for you", None)
            case "not json":
                return lambda: self._send_bytes(200, b'{"choices": [')
            case "page":
                return lambda: self._send_bytes(200, b"<html>Welcome</html>", "text/html")
            case "other shape":
                return lambda: self._send(200, {"result": "85"})
            case "no choices":
                return lambda: self._send(200, completion("") | {"choices": []})
            case "list":
                return lambda: self._send(200, [1, 2])
            case "no text":
                return lambda: self._send(200, completion(None))
            case _:
                return self._error(404, f"The model `{model}` does not exist", "model_not_found")

    def _error(self, status: int, message: str, code: str | None) -> Callable[[], None]:
        return lambda: self._send(status, {"error": {"message": message, "type": "t", "param": None, "code": code}})

    def _send(self, status: int, content: Any) -> None:
        self._send_bytes(status, json.dumps(content).encode())

    def _send_bytes(self, status: int, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _begin(self) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "100000")
        self.end_headers()

    def _drop(self) -> None:
        self.close_connection = True

    def _drip(self) -> None:
        """A byte every now and then, for as long as somebody listens."""
        self._begin()
        while not self.server.closing.wait(0.02):
            self.wfile.write(b" ")

    def _reset(self) -> None:
        self._begin()
        self.wfile.write(b"{")
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
