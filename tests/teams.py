"""A server as a team has it: records in PostgreSQL, files in an S3, several API processes. Not here: what is tested."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.databases import KEY, PostgreSQL
from tests.object_stores import ObjectStore
from tests.served import ALL_SCOPES, Api, Process, until
from tutelage.jobs.access import Access
from tutelage.jobs.database import Database
from tutelage.jobs.queue import LEASE_SECONDS, Queue

PROCESSES = 2
SEVERAL_BEGIN = 90.0
"""Seconds for the start of all of them: each loads what a server needs, which is slow where many tests run."""


class TeamProcess(Process):
    """The parent of the API processes. Who asks without a token is an administrator."""

    patience = SEVERAL_BEGIN

    def __init__(self, home: Path, options: Mapping[str, Any], token: str) -> None:
        super().__init__(home, options)
        self.token = token

    def api(self, token: str | None = None) -> Api:
        return super().api(token or self.token)


@dataclass
class Team:
    """Its stores, and the server that works on them now. token: of an administrator."""

    home: Path
    database: Database
    bucket: str
    token: str
    options: dict[str, Any] = field(default_factory=dict)
    process: TeamProcess | None = None

    @property
    def url(self) -> str:
        assert self.process is not None
        return self.process.url

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def services(self) -> SimpleNamespace:
        """What tests of faults change behind the server's back."""
        lease = self.options.get("lease_seconds", LEASE_SECONDS)
        return SimpleNamespace(database=self.database, queue=Queue(self.database, lease_seconds=lease))

    @property
    def is_running(self) -> bool:
        """Whether its first process is there."""
        return self.process is not None and self.process.process.poll() is None

    def begin(self) -> "Team":
        """The server, on the address it had before."""
        if self.process is not None:
            self.process.close()
        self.process = TeamProcess(self.home, self.options, self.token)
        self.process.begun()
        self.options["port"] = self.port
        until(lambda: len(self.listening()) == self.options["processes"], "all processes", SEVERAL_BEGIN)
        return self

    def api(self, token: str | None = None) -> Api:
        assert self.process is not None
        return self.process.api(token)

    def listening(self) -> list[int]:
        """Ids of the API processes that answer."""
        assert self.process is not None
        return [one.pid for one in psutil.Process(self.process.process.pid).children() if _answers(one)]

    def kill_one(self) -> int:
        """As the machine would end an API process; the id of the one that is gone."""
        gone = secrets.choice(self.listening())
        os.kill(gone, signal.SIGKILL)
        return gone

    def replaced(self, gone: int) -> None:
        """Wait until another one is in the place of that."""
        processes = self.options["processes"]
        until(lambda: len(set(self.listening()) - {gone}) == processes, "another API process", SEVERAL_BEGIN)

    def close(self) -> None:
        if self.process is not None:
            self.process.close()


def _answers(process: psutil.Process) -> bool:
    """It accepts connections: an event loop waits for them."""
    try:
        listens = any(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp"))
        return listens and any("eventpoll" in str(one.readlink()) for one in Path(f"/proc/{process.pid}/fd").iterdir())
    except (psutil.Error, OSError):
        return False


def stores_of_a_team(home: Path, postgresql: PostgreSQL, store: ObjectStore) -> Team:
    """Its records, its bucket and its first token; no server yet."""
    url, bucket = postgresql.new(), store.bucket()
    home.mkdir(parents=True, exist_ok=True)
    (home / "secret.key").write_bytes(KEY)
    database = Database(url)
    access = Access(database, KEY)
    token = access.create_token(access.organization(), "test", ALL_SCOPES).secret
    options = {"database": url, "files": f"s3://{bucket}/files", "processes": PROCESSES, "port": 0}
    return Team(home, database, bucket, token, options)


def drop(team: Team, postgresql: PostgreSQL) -> None:
    """Nothing is left of it."""
    team.close()
    team.database.close()
    postgresql.drop(str(team.options["database"]))


@pytest.fixture(scope="module")
def new_team(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, running_object_store: ObjectStore
) -> Iterator[Callable[..., Team]]:
    """Begin servers of teams that share nothing; all are gone after the module."""
    begun: list[Team] = []

    def new(**options: Any) -> Team:
        begun.append(stores_of_a_team(tmp_path_factory.mktemp("team"), postgresql, running_object_store))
        begun[-1].options.update(options)
        return begun[-1].begin()

    yield new
    for team in begun:
        drop(team, postgresql)
