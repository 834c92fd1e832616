"""The worker beside `serve` in the process of the test: when another one begins, its log, its tokens.

Its place is taken by programs of a line.
"""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from tests.served import until
from tutelage.errors import StorageError
from tutelage.jobs.access import OF_SERVER
from tutelage.jobs.records import Scope
from tutelage.server import local_worker
from tutelage.server.local_worker import LocalWorker, environment_of_worker, shorten
from tutelage.server.services import Services, open_services
from tutelage.server.settings import ServerSettings

EVERYTHING = {
    "PATH": "/bin",
    "HF_TOKEN": "of people",
    "TUTELAGE_DATABASE": "postgresql://user:password@db/x",
    "TUTELAGE_FILES": "s3://bucket",
    "TUTELAGE_SECRET_KEY": "key",
    "AWS_ACCESS_KEY_ID": "of the store",
    "AZURE_STORAGE_KEY": "of the store",
    "GOOGLE_APPLICATION_CREDENTIALS": "/key.json",
    "FSSPEC_S3_KEY": "of the store",
}


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    opened = open_services(ServerSettings(home=tmp_path))
    yield opened
    opened.close()


class Local:
    """A worker whose processes are these programs, one after the other, and what it said."""

    def __init__(self, services: Services, monkeypatch: pytest.MonkeyPatch, programs: list[Any]) -> None:
        self.said: list[str] = []
        self.begun: list[Any] = []
        self.environments: list[dict[str, str]] = []
        real = subprocess.Popen

        def begin(command: list[str], *, env: dict[str, str], stdin: int, **options: Any) -> Any:
            program = programs.pop(0)
            if isinstance(program, Exception):
                raise program
            self.environments.append(env)
            self.begun.append(real([sys.executable, "-c", str(program)], env=env, stdin=subprocess.PIPE, **options))
            return self.begun[-1]

        monkeypatch.setattr(local_worker.subprocess, "Popen", begin)
        monkeypatch.setattr(local_worker, "BEGIN_AGAIN_SECONDS", 0.05)
        monkeypatch.setattr(local_worker, "LOOK_EVERY_SECONDS", 0.01)
        self.worker = LocalWorker(services, "http://127.0.0.1:1", self.said.append)

    def begin(self) -> None:
        self.worker.begin_when(lambda: True)

    def ended(self) -> bool:
        return not any(thread.name == "worker" for thread in threading.enumerate())


LASTS = "import sys; sys.stdin.read()"


@pytest.fixture
def local(services: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Local]]:
    made: list[Local] = []

    def make(*programs: Any) -> Local:
        made.append(Local(services, monkeypatch, list(programs)))
        return made[-1]

    yield make
    for one in made:
        one.worker.close()
        for process in one.begun:
            process.stdin.close()
            process.wait(10)


def test_one_that_was_stopped_on_the_server_is_not_started_again(local: Callable[..., Local], tmp_path: Path) -> None:
    """Exit code 0 while the server goes on: somebody wanted it to end. Any other: another one begins."""
    found = local("import sys; sys.exit(3)", "pass", LASTS)
    found.begin()
    until(found.ended)
    assert found.said == [
        "the worker ended with exit code 3; another one begins",
        f"the worker was stopped, no other begins until this server is started again; see {tmp_path / 'worker.log'}",
    ]
    assert len(found.begun) == 2


def test_one_that_cannot_be_started_is_tried_again(
    local: Callable[..., Local], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process, no database, no disk: none of them for ever."""
    create, failures = services.access.create_token, [StorageError("the database does not answer")]

    def create_token(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return create(*arguments, **options)

    monkeypatch.setattr(services.access, "create_token", create_token)
    found = local(OSError(11, "Resource temporarily unavailable"), LASTS)
    found.begin()
    until(lambda: found.begun)
    assert found.said == [
        "the worker cannot be started (the database does not answer); it is tried again in 0.05 s",
        "the worker cannot be started ([Errno 11] Resource temporarily unavailable); it is tried again in 0.05 s",
    ]


def test_one_that_is_begun_while_the_server_stops_is_none(
    local: Callable[..., Local], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ctrl-C while it is being started: there is no process afterwards, and no token."""
    create, asked, goes_on = services.access.create_token, threading.Event(), threading.Event()

    def create_token(*arguments: Any, **options: Any) -> Any:
        asked.set()
        assert goes_on.wait(10)
        return create(*arguments, **options)

    monkeypatch.setattr(services.access, "create_token", create_token)
    monkeypatch.setattr(local_worker, "JOIN_SECONDS", 10.0)
    found = local(LASTS)
    found.begin()
    assert asked.wait(10)
    found.worker.stop(lambda: False)
    goes_on.set()
    found.worker.close()
    assert found.ended()
    assert found.begun == []
    assert [token.revoked_at is None for token in services.access.tokens(services.organization)] == [False]


def test_tokens_of_servers_that_were_killed_are_revoked_when_nobody_uses_them(
    local: Callable[..., Local], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker of a server that was killed finishes its job: a token that is used stays until it is not."""
    organization = services.organization
    made = {
        name: services.access.create_token(organization, name, [Scope.WORKER], of_server=name != "of people")
        for name in (f"{OF_SERVER} used", f"{OF_SERVER} unused", "of people")
    }
    read = services.access.tokens
    now = datetime.now(timezone.utc)
    ages = {f"{OF_SERVER} used": timedelta(minutes=4), f"{OF_SERVER} unused": timedelta(minutes=6)}

    def tokens(organization: str) -> Any:
        found = read(organization)
        for token in found:
            object.__setattr__(token, "last_used_at", now - ages.get(token.name, timedelta(0)))
        return found

    monkeypatch.setattr(services.access, "tokens", tokens)
    monkeypatch.setattr(local_worker, "LOOK_FOR_TOKENS_SECONDS", 0.05)
    found = local(LASTS)
    found.begin()

    def alive(name: str) -> bool:
        return services.access.principal(made[name].secret) is not None

    until(lambda: not alive(f"{OF_SERVER} unused"))
    assert alive(f"{OF_SERVER} used")
    assert alive("of people")
    assert services.access.principal(found.environments[0]["TUTELAGE_API_KEY"]) is not None
    ages[f"{OF_SERVER} used"] = timedelta(minutes=6)
    until(lambda: not alive(f"{OF_SERVER} used"))


def test_its_log_does_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest part of what was is in worker.log.1; who has the log open goes on at its begin."""
    monkeypatch.setattr(local_worker, "MAX_LOG_BYTES", 10)
    log = tmp_path / "worker.log"
    shorten(log)  # there is none yet
    with log.open("ab", buffering=0) as open_to_append:
        open_to_append.write(b"0123456789")
        shorten(log)
        assert log.read_bytes() == b"0123456789"
        open_to_append.write(b"ab")
        shorten(log)
        assert (tmp_path / "worker.log.1").read_bytes() == b"23456789ab"
        open_to_append.write(b"next")
    assert log.read_bytes() == b"next"


def test_its_log_is_shortened_while_it_runs(
    local: Callable[..., Local], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_worker, "MAX_LOG_BYTES", 10)
    local(f"print('x' * 100, flush=True); {LASTS}").begin()
    until(lambda: (tmp_path / "worker.log.1").exists() and (tmp_path / "worker.log").read_bytes() == b"")
    assert (tmp_path / "worker.log.1").read_bytes() == b"x" * 9 + b"\n"


def test_what_of_the_environment_is_the_servers(tmp_path: Path) -> None:
    """Section 1: no worker holds credentials of database or store. In a folder there is no store."""
    people = {"PATH": "/bin", "HF_TOKEN": "of people"}
    team = ServerSettings(tmp_path, database="postgresql://user:password@db/x", files="s3://bucket")
    assert environment_of_worker(EVERYTHING, team) == people
    laptop = environment_of_worker(EVERYTHING, ServerSettings(tmp_path))
    cloud = {name: value for name, value in EVERYTHING.items() if not name.startswith("TUTELAGE_")}
    assert laptop == cloud | {"TUTELAGE_SERVER_HERE": "1"}
    assert environment_of_worker(EVERYTHING, ServerSettings(tmp_path, files="/mnt/files")) == laptop


def test_a_close_without_a_begin(local: Callable[..., Local]) -> None:
    """A server that could not start: nothing is waited for."""
    began = time.monotonic()
    local().worker.close()
    assert time.monotonic() - began < 1
