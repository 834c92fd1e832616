"""An S3 for tests: moto's, in a thread, which fails when it is told to. Not here: what is tested."""

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "of-the-store", "AWS_SECRET_ACCESS_KEY": "of-the-store-too"}
DENIED = ("403 Forbidden", "InvalidAccessKeyId", "The key is not known here.")
BUSY = ("503 Service Unavailable", "ServiceUnavailable", "Too much to do.")
_PATIENCE = 60.0
"""Seconds; the first request has moto load all that S3 needs."""
BROKEN = ("500 Internal Server Error", "InternalError", "Something is broken.")


@dataclass
class ObjectStore:
    """A store that listens. refusals: of a method, what the next requests get in place of an answer; ALWAYS of them, if
    it says so. seen: methods and paths of all requests. held: while it is clear, requests to send a file wait."""

    url: str = ""
    refusals: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    always: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    seen: list[tuple[str, str]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    waiting: threading.Event = field(default_factory=threading.Event)
    environment: dict[str, str] = field(default_factory=dict)

    def bucket(self) -> str:
        """A new one; its name."""
        name = f"bucket-{secrets.token_hex(6)}"
        assert httpx.put(f"{self.url}/{name}", trust_env=False, timeout=_PATIENCE).status_code == 200
        return name

    def keys(self, bucket: str) -> list[str]:
        """What is in a bucket."""
        import re

        answer = httpx.get(f"{self.url}/{bucket}?list-type=2", trust_env=False, timeout=_PATIENCE)
        return re.findall("<Key>([^<]*)</Key>", answer.text)

    def well(self) -> None:
        """It fails no more."""
        self.refusals.clear()
        self.always.clear()
        self.held.set()

    def requests(self, method: str, bucket: str) -> int:
        """How many of a bucket there were."""
        return len([1 for one, path in self.seen if one == method and path.startswith(f"/{bucket}")])

    def in_front_of(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            method, path = environment["REQUEST_METHOD"], environment["PATH_INFO"]
            of_test = "HTTP_AUTHORIZATION" not in environment
            if not of_test:
                self.seen.append((method, path))
                if method == "PUT" and not self.held.is_set():
                    self.waiting.set()
                    self.held.wait(30)
                following = self.refusals.get(method)
                refusal = following.pop(0) if following else self.always.get(method)
                if refusal is not None:
                    environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
                    status, code, message = refusal
                    body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
                    body = b"" if method == "HEAD" else body
                    start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
                    return [body]
            return app(environment, start)

        return answer


@pytest.fixture(scope="session")
def running_object_store() -> Iterator[ObjectStore]:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_: Any) -> None: ...

    store = ObjectStore()
    store.held.set()
    app = store.in_front_of(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    store.environment = {**CREDENTIALS, "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": store.url}
    before = dict(os.environ)
    os.environ.update(store.environment)
    yield store
    for name in store.environment:
        os.environ.pop(name)
        if name in before:
            os.environ[name] = before[name]
    store.held.set()
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def object_store(running_object_store: ObjectStore) -> Iterator[ObjectStore]:
    """Well at the beginning of each test, and after it."""
    running_object_store.well()
    running_object_store.waiting.clear()
    running_object_store.seen.clear()
    yield running_object_store
    running_object_store.well()
