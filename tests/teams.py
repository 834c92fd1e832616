"""A server as a team has it: records in PostgreSQL, files in an S3, several API processes. Not here: what is tested."""

import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.databases import KEY, PostgreSQL
from tests.object_stores import ObjectStore
from tests.served import ALL_SCOPES, Api, Process, until
from tutelage.jobs.access import Access
from tutelage.jobs.database import Database

PROCESSES = 2


@dataclass
class Team:
    """Its stores, and the server that works on them now. token: of an administrator."""

    home: Path
    database: Database
    bucket: str
    token: str
    options: dict[str, Any] = field(default_factory=dict)
    process: Process | None = None

    @property
    def url(self) -> str:
        assert self.process is not None
        return self.process.url

    def begin(self) -> "Team":
        """The server, on the address it had before."""
        self.process = Process(self.home, self.options).begun()
        self.options["port"] = int(self.url.rpartition(":")[2])
        until(lambda: len(self.listening()) == self.options["processes"], "all processes")
        return self

    def api(self, token: str | None = None) -> Api:
        assert self.process is not None
        return self.process.api(token or self.token)

    def listening(self) -> list[int]:
        """Ids of the API processes that answer."""
        assert self.process is not None
        return [one.pid for one in psutil.Process(self.process.process.pid).children() if _answers(one)]

    def kill_one(self) -> int:
        """As the machine would end an API process; the id of the one that is gone."""
        gone = secrets.choice(self.listening())
        os.kill(gone, signal.SIGKILL)
        return gone

    def close(self) -> None:
        if self.process is not None:
            self.process.close()


def _answers(process: psutil.Process) -> bool:
    """It accepts connections: an event loop waits for them."""
    try:
        listens = any(one.status == psutil.CONN_LISTEN for one in process.net_connections("tcp"))
        return listens and any("eventpoll" in os.readlink(one) for one in Path(f"/proc/{process.pid}/fd").iterdir())
    except (psutil.Error, OSError):
        return False


@pytest.fixture(scope="module")
def new_team(
    tmp_path_factory: pytest.TempPathFactory, postgresql: PostgreSQL, running_object_store: ObjectStore
) -> Iterator[Callable[..., Team]]:
    """Begin servers of teams that share nothing; all are gone after the module."""
    begun: list[Team] = []

    def new(**options: Any) -> Team:
        url, bucket = postgresql.new(), running_object_store.bucket()
        home = tmp_path_factory.mktemp("team")
        (home / "secret.key").write_bytes(KEY)
        database = Database(url)
        access = Access(database, KEY)
        token = access.create_token(access.organization(), "test", ALL_SCOPES).secret
        files = {"database": url, "files": f"s3://{bucket}/files", "processes": PROCESSES, "port": 0}
        begun.append(Team(home, database, bucket, token, {**files, **options}))
        return begun[-1].begin()

    yield new
    for team in begun:
        team.close()
        url = str(team.options["database"])
        team.database.close()
        postgresql.drop(url)
