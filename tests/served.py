"""The real application behind a real socket: in a thread of the test, or as the process that `tutelage serve` runs.

Also the first steps that most tests of the server begin with. Not here: what is tested.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest

from tutelage.jobs.records import Scope

# This is a plugin, imported for every session: what takes long is imported where it is used.
if TYPE_CHECKING:
    from openai import OpenAI

    from tutelage.server.services import Services

PATIENCE = 30.0
"""Seconds after which a wait that should have ended fails its test in place of hanging it."""
LONG = 600.0
"""Seconds of a lease where many tests share a server: nobody sends heartbeats for what they began."""
ALL_SCOPES = tuple(Scope)
CUSTOM: dict[str, Any] = {"kind": "custom", "entrypoint": "true"}

Found = TypeVar("Found")


def until(condition: Callable[[], Found], what: str = "the condition", patience: float = PATIENCE) -> Found:
    """Ask again and again until the answer is true; it is returned."""
    end = time.monotonic() + patience
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, f"{what} did not come true within {patience:g} s"
        time.sleep(0.005)


@dataclass
class Running:
    """A job in progress, as its worker sees it. token: of the job itself."""

    job_id: str
    run_id: str
    worker_id: str
    token: str
    answer: Mapping[str, Any]


@dataclass
class Api:
    """A client of a server, as one token (or none) sees it."""

    url: str
    token: str | None = None
    http: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        # verify: nothing here is TLS, and reading the certificates of the machine takes longer than most tests.
        self.http = httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, trust_env=False, verify=False)

    def __call__(self, method: str, path: str, json: Any = None, **options: Any) -> httpx.Response:
        if json is not None:
            options["json"] = json
        return self.http.request(method, path, **options)

    def ok(self, method: str, path: str, json: Any = None, **options: Any) -> Any:
        """The JSON of an answer that has to be 200."""
        answer = self(method, path, json, **options)
        assert answer.status_code == 200, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json()

    def refused(self, status: int, method: str, path: str, json: Any = None, **options: Any) -> dict[str, Any]:
        """The error of an answer that has to have this status."""
        answer = self(method, path, json, **options)
        assert answer.status_code == status, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return problem_of(answer)

    def upload(self, content: bytes, purpose: str = "custom_job_file", name: str = "rows.jsonl") -> dict[str, Any]:
        return self.ok("POST", "/v1/files", data={"purpose": purpose}, files={"file": (name, content)})

    def submit(self, number: Any = None, **changes: Any) -> dict[str, Any]:
        """A custom job like no other, unless it has the number of one."""
        number = secrets.token_hex(6) if number is None else number
        return self.ok("POST", "/api/jobs", CUSTOM | {"params": {"number": number}} | changes)

    def worker(self, name: str = "worker", **changes: Any) -> str:
        """The id of a worker that was just registered and takes any job."""
        body = {"name": name, "version": "1", "ignore_vram": True}
        return self.ok("POST", "/api/workers", body | changes)["id"]

    def claim(self, worker_id: str, run_id: str | None = None, wait: float = 0.0) -> httpx.Response:
        body = {"worker_id": worker_id, "run_id": run_id or new_run_id(), "wait": wait}
        return self("POST", "/api/claims", body)

    def running(self, job: Mapping[str, Any] | None = None, worker_id: str | None = None) -> Running:
        """The job, or a new one, in progress. No other may be pending."""
        job = job or self.submit()
        worker_id = worker_id or self.worker()
        answer = self.claim(worker_id)
        assert answer.status_code == 200, answer.text
        claimed = answer.json()
        assert claimed["job"]["id"] == job["id"]
        return Running(job["id"], claimed["run_id"], worker_id, claimed["token"], claimed)

    def finish(self, run_id: str, status: str = "completed", **values: Any) -> dict[str, Any]:
        return self.ok("POST", f"/api/runs/{run_id}/finish", {"status": status, **values})

    def report(self, run_id: str, *data: Mapping[str, Any], file: str | None = None) -> int:
        """Events of these data with new ids; how many were added."""
        events = [{"id": secrets.token_hex(8), "data": dict(one), "file": file} for one in data]
        return self.ok("POST", "/api/events", {"run_id": run_id, "events": events})["added"]

    def print(self, run_id: str, start: int, content: bytes) -> int:
        """A part of a log; where the next one begins."""
        return self.ok("POST", f"/api/logs/{run_id}", params={"start": start}, content=content)["end"]

    def close(self) -> None:
        self.http.close()


def problem_of(answer: httpx.Response) -> dict[str, Any]:
    """The error in an answer, which has the shape of OpenAI's and says nothing about the machine."""
    error: dict[str, Any] = answer.json()["error"]
    assert answer.json().keys() == {"error"}
    assert error.keys() == {"message", "type", "code", "param"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert answer.headers["content-type"] == "application/json"
    for secret in ("Traceback", 'File "', "/tmp/", "sqlite:", "site-packages", "SELECT ", "INSERT "):
        assert secret not in answer.text, answer.text
    return error


def new_run_id() -> str:
    """As a worker chooses one."""
    return f"run-{secrets.token_hex(16)}"


class Served:
    """An application that listens in a thread. `log` is all that was logged meanwhile, at every level."""

    def __init__(self, services: "Services", url: str, log: list[logging.LogRecord]) -> None:
        self.services = services
        self.url = url
        self.log = log
        self._stack = contextlib.ExitStack()

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def token(
        self, *scopes: Scope, organization: str | None = None, expires_at: float | None = None, name: str = "test"
    ) -> str:
        """A new token; of all scopes where none is named."""
        organization = organization or self.services.organization
        return self.services.access.create_token(organization, name, scopes or ALL_SCOPES, expires_at=expires_at).secret

    def api(self, token: str | None = None) -> Api:
        """Closed with the server."""
        api = Api(self.url, token)
        self._stack.callback(api.close)
        return api

    def of_another_organization(self) -> Api:
        """As an administrator of an organisation that has nothing yet."""
        organization = self.services.access.organization(f"org {secrets.token_hex(8)}")
        return self.api(self.token(organization=organization))

    def openai(self, token: str = "placeholder") -> "OpenAI":
        """The unmodified client. Closed with the server."""
        from openai import OpenAI

        return self._stack.enter_context(
            OpenAI(base_url=f"{self.url}/v1", api_key=token, max_retries=0, timeout=PATIENCE)
        )

    def raw(self, content: bytes = b"") -> socket.socket:
        """A connection on which this was sent. Closed with the server, if not before."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        self._stack.callback(connection.close)
        connection.sendall(content)
        return connection

    def logged(self) -> str:
        """All of the log as text."""
        formatter = logging.Formatter()
        return "\n".join(formatter.format(record) for record in list(self.log))

    def close(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def served(
    home: Path, *, migrated: Path | None = None, change: Callable[[Any], None] | None = None, **settings: Any
) -> Iterator[Served]:
    """Serve in a thread on a free port. migrated: a database to begin with, which is copied.

    change: is given the application before it starts.
    """
    from tutelage.server.one_process import Server, config_of
    from tutelage.server.serve import _listening
    from tutelage.server.services import open_services
    from tutelage.server.settings import ServerSettings

    home.mkdir(parents=True, exist_ok=True)
    if migrated is not None:
        shutil.copy(migrated, home / "tutelage.db")
    wanted = ServerSettings(home=home, port=0, **settings)
    if not wanted.open_on_loopback:
        # It refuses to start without one.
        first = open_services(ServerSettings(home=home))
        first.access.create_token(first.organization, "first", [Scope.ADMIN])
        first.close()
    services = open_services(wanted)
    log: list[logging.LogRecord] = []
    try:
        config = config_of(services)
        if change is not None:
            change(config.app)
        server = Server(config)
        with (
            _recorded(log),
            _listening(wanted) as listening,
            contextlib.closing(Served(services, f"http://127.0.0.1:{listening.getsockname()[1]}", log)) as running,
        ):
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
            thread.start()
            try:
                until(lambda: server.started, "the server's start")
                yield running
            finally:
                services.notices.close()
                running.close()
                server.should_exit = True
                thread.join(PATIENCE)
                assert not thread.is_alive()
    finally:
        services.close()


@contextlib.contextmanager
def _recorded(log: list[logging.LogRecord]) -> Generator[None, None, None]:
    handler = logging.Handler()
    handler.emit = log.append  # type: ignore[method-assign] - the log is a list here
    root, loud = logging.getLogger(), logging.getLogger("tutelage")
    before = root.level, loud.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    loud.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before[0])
        loud.setLevel(before[1])


_PROGRAM = """
import json, pathlib, sys
from tutelage.server.serve import serve
from tutelage.server.settings import ServerSettings
options = json.loads(sys.argv[2])
say = lambda text: print(text, flush=True)
serve(ServerSettings(home=pathlib.Path(sys.argv[1]), **options), with_worker=False, say=say)
"""


class Process:
    """`serve` in a process of its own that can be killed. `output` is what it has said.

    arguments: of the command `tutelage serve`, which has a worker beside it; without them there is none.
    """

    patience = 2 * PATIENCE
    """Seconds for its start."""

    def __init__(
        self,
        home: Path,
        options: Mapping[str, Any],
        arguments: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.path = home.with_name(f"{home.name}-{secrets.token_hex(4)}.txt")
        command = ["-W", "error", "-c", _PROGRAM, str(home), json.dumps(dict(options))]
        if arguments is not None:
            command = ["-m", "tutelage", "serve", "--home", str(home), "--port", "0", *arguments]
        with self.path.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            )
        self._apis: list[Api] = []

    @property
    def output(self) -> str:
        return self.path.read_text(encoding="utf-8", errors="replace")

    @property
    def url(self) -> str:
        return self.output.split("tutelage serves ", 1)[1].split(" ", 1)[0].replace("0.0.0.0", "127.0.0.1")

    def begun(self) -> "Process":
        """When it answers."""

        def answers() -> bool:
            assert self.process.poll() is None, self.output
            if "tutelage serves " not in self.output or "\n" not in self.output.split("tutelage serves ", 1)[1]:
                return False
            try:
                httpx.get(f"{self.url}/openapi.json", trust_env=False)
            except httpx.TransportError:
                return False
            return True

        until(answers, "the process' start", self.patience)
        return self

    def api(self, token: str | None = None) -> Api:
        api = Api(self.url, token)
        self._apis.append(api)
        return api

    def kill(self) -> None:
        """As the machine would end it: at once."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def terminate(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Its exit code, and the seconds that it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE), time.monotonic() - began

    def close(self) -> None:
        for api in self._apis:
            api.close()
        if self.process.poll() is None:
            self.kill()


@pytest.fixture
def processes() -> Iterator[Callable[..., Process]]:
    """Start `serve` on a folder; all are gone after the test."""
    started: list[Process] = []

    def start(
        home: Path,
        arguments: Sequence[str] | None = None,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        started.append(Process(home, {"port": 0, **options}, arguments, environment))
        return started[-1].begun()

    yield start
    for process in started:
        process.close()


@pytest.fixture(scope="module")
def open_server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    """On loopback, without tokens; shared by the tests of a module."""
    with served(tmp_path_factory.mktemp("open"), migrated=migrated_sqlite, lease_seconds=LONG) as running:
        yield running


@pytest.fixture(scope="module")
def closed_server(tmp_path_factory: pytest.TempPathFactory, migrated_sqlite: Path) -> Iterator[Served]:
    """Tokens are required; shared by the tests of a module."""
    home = tmp_path_factory.mktemp("closed")
    with served(home, migrated=migrated_sqlite, require_tokens=True, lease_seconds=LONG) as running:
        yield running


@pytest.fixture
def own_server(tmp_path: Path, migrated_sqlite: Path) -> Iterator[Served]:
    """On loopback, without tokens; of this test alone."""
    with served(tmp_path / "own", migrated=migrated_sqlite) as running:
        yield running


@pytest.fixture
def team(closed_server: Served) -> Api:
    """An administrator of an organisation of this test alone."""
    return closed_server.of_another_organization()


@pytest.fixture
def no_error_of_its_own(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever was sent, no endpoint met an exception that it did not know."""
    servers = [request.getfixturevalue(name) for name in request.fixturenames if name.endswith("_server")]
    before = [len(server.log) for server in servers]
    yield
    for server, seen in zip(servers, before, strict=True):
        broken = [
            record for record in server.log[seen:] if record.exc_info or "Exception in ASGI" in record.getMessage()
        ]
        assert not broken, [logging.Formatter().format(record)[-2000:] for record in broken]


def form_body(content: bytes, purpose: str = "batch", name: str = "x.bin") -> tuple[bytes, str]:
    """A form with a file, and its content type."""
    request = httpx.Request("POST", "http://x", data={"purpose": purpose}, files={"file": (name, content)})
    return request.read(), request.headers["content-type"]


def everything(connection: socket.socket) -> bytes:
    """All that comes on a connection until the other side closes it, or cuts it."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return bytes(received)


def sent_events(answer: httpx.Response) -> Iterator[tuple[str, str, str]]:
    """The server-sent events of an open answer, as they come: name, id, data."""
    found: dict[str, str] = {}
    for line in _lines(answer):
        if not line and found.get("event"):
            yield found["event"], found.get("id", ""), found.get("data", "")
        name, _, value = line.partition(":")
        found = found | {name: value.removeprefix(" ")} if line else {}


def _lines(answer: httpx.Response) -> Iterator[str]:
    # Not `iter_lines`, for which a line ends at characters that an event may hold.
    waiting = b""
    for part in answer.iter_bytes():
        *whole, waiting = (waiting + part).split(b"\n")
        yield from (line.decode() for line in whole)


def conversation(number: int = 0) -> dict[str, Any]:
    """A row to train on."""
    return {
        "messages": [
            {"role": "user", "content": f"What is {number}?"},
            {"role": "assistant", "content": f"A number, {number}."},
        ]
    }


def preference(number: int = 0) -> dict[str, Any]:
    """A row to prefer by."""
    return {"prompt": f"What is {number}?", "chosen": "A number.", "rejected": "A colour."}


def jsonl(rows: Sequence[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
