"""One database behind the same code: SQLite in a file, or PostgreSQL. Transactions, clocks, migrations.

Not here: what is in the tables (`tables.py`), what is done with them (`queue.py` and its neighbours).
"""

import contextlib
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import ColumnElement, Connection, Double, Engine, Pool, cast, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DataError, NoSuchModuleError, SQLAlchemyError

from tutelage.errors import ConfigError, JobError, StorageError
from tutelage.jobs.addresses import shown

BUSY_SECONDS = 60
"""How long a write of one process waits for that of another, on SQLite."""
LOCKS = 64
"""Of a process, for keys of any number: two keys may share one."""
CONNECTIONS = 60
_MIGRATION_LOCK = 0x747574656C616765
_WRITES = "tutelage_writes"


class Database:
    """The records. url: as SQLAlchemy writes them, `sqlite:///path` or `postgresql://user:password@host/name`.

    connections: to PostgreSQL, at most.

    Raises ConfigError for a url that cannot be meant, StorageError where the database does not answer.
    """

    def __init__(self, url: str, *, connections: int = CONNECTIONS) -> None:
        self.url = _parsed(url)
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self.engine = _sqlite_engine(self.url) if self.is_sqlite else _postgresql_engine(self.url, connections)
        # SQLite has one writer; threads that wait their turn here need not ask again and again.
        self._writing: contextlib.AbstractContextManager[Any] = (
            threading.Lock() if self.is_sqlite else contextlib.nullcontext()
        )
        self._locks = [threading.Lock() for _ in range(LOCKS)] if self.is_sqlite else []
        # Who holds a lock has a connection for it and needs another one: never may all be taken for locks.
        self._lockers = threading.Semaphore(connections // 4)
        # Who still has a connection of one of them when it is closed puts it back there.
        self._closed: list[Pool] = []
        self._wall_at_start, self._monotonic_at_start = time.time(), time.monotonic()

    @contextlib.contextmanager
    def writing(self) -> Generator[Connection, None, None]:
        """A transaction that changes something: all of it, or on an exception nothing. Raises StorageError."""
        with self._writing, self._connected() as connection:
            connection.execution_options(**{_WRITES: True})
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def reading(self) -> Generator[Connection, None, None]:
        """A transaction that sees one state and waits for no writer. Raises StorageError."""
        with self._connected() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def alone_with(self, key: int) -> Generator[None, None, None]:
        """Nobody else on these records is in here with the same key (63 bits): for what lasts longer than a
        transaction that others wait for may. Of SQLite, nobody else in this process. Raises StorageError."""
        if self.is_sqlite:
            with self._locks[key % LOCKS]:
                yield
            return
        with self._lockers, self.writing() as connection:
            connection.execute(select(func.pg_advisory_xact_lock(key)))
            yield

    def lease_clock(self, connection: Connection) -> float:
        """Seconds by which leases are measured.

        PostgreSQL: its own clock, one for all API processes. SQLite: seconds since this process began, on top of
        when that was; a wall clock that is set, or a laptop that sleeps, takes no lease away.
        """
        now = self.lease_clock_now()
        return float(connection.execute(select(now)).scalar_one()) if isinstance(now, ColumnElement) else now

    def lease_clock_now(self) -> float | ColumnElement[float]:
        """The same for a statement to write."""
        if self.is_sqlite:
            return self._wall_at_start + time.monotonic() - self._monotonic_at_start
        return cast(func.extract("epoch", func.clock_timestamp()), Double)

    def revision(self) -> str | None:
        """Of the schema that is there; None for an empty database."""
        with self.reading() as connection:
            return MigrationContext.configure(connection).get_current_revision()

    def migrate(self, revision: str = "head") -> None:
        """Bring the schema to a revision, up or down. Raises StorageError for one of a newer version of tutelage."""
        config, here, order = _alembic(), self.revision(), self.known_revisions()
        if here is not None and here not in order:
            raise StorageError(
                f"{self}: its schema {here} was made by a newer tutelage; install that, or restore an older backup"
            )
        target = order[0] if revision == "head" else None if revision == "base" else revision
        down = here is not None and (target is None or order.index(target) > order.index(here))
        with self.writing() as connection:
            if not self.is_sqlite:  # which has one writer; here two that begin at once would make the same tables
                connection.execute(select(func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
            config.attributes["connection"] = connection
            (command.downgrade if down else command.upgrade)(config, revision)

    def known_revisions(self) -> list[str]:
        """Schemas that this version of tutelage can make, the newest first."""
        return [script.revision for script in ScriptDirectory.from_config(_alembic()).walk_revisions()]

    def close(self) -> None:
        """Close all connections; one that a thread is still using, as soon as it is given back."""
        self._closed.append(self.engine.pool)
        self.engine.dispose()

    @contextlib.contextmanager
    def _connected(self) -> Generator[Connection, None, None]:
        try:
            with _translated(self.url), self.engine.connect() as connection:
                yield connection
        finally:
            for pool in self._closed:
                pool.dispose()

    def __str__(self) -> str:
        return _shown(self.url)


def _shown(url: URL) -> str:
    return url.set(query={}).render_as_string(hide_password=True)  # a password may stand in the query too


def _alembic() -> Config:
    config = Config()
    # Alembic reads % as the beginning of a variable.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise ConfigError(
            f"database: '{shown(url)}' is not an address; write sqlite:///path or postgresql://…"
        ) from None  # the cause holds the password as it is
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise ConfigError(f"database: {backend} is not supported; use sqlite:///path or postgresql://…")
    return parsed


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(
        url, pool_size=20, max_overflow=60, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False}
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _: Any) -> None:
        # The driver would begin transactions only before the first write: too late to keep others out.
        connection.isolation_level = None
        cursor = connection.cursor()
        # FULL: what was acknowledged is on the disk, also when the power goes.
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-65536"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get(_WRITES) else "BEGIN")

    return engine


def _postgresql_engine(url: URL, connections: int) -> Engine:
    kept = connections // 3
    try:
        return create_engine(url, pool_size=kept, max_overflow=connections - kept, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ConfigError("database: PostgreSQL needs psycopg; pip install 'tutelage[postgresql]'") from error


@contextlib.contextmanager
def _translated(url: URL) -> Generator[None, None, None]:
    try:
        yield
    except (DataError, UnicodeEncodeError, OverflowError) as error:
        raise JobError(
            "a value holds a NUL, half a surrogate pair or a number beyond 64 bits; no record can: take it out"
        ) from error
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()
        raise StorageError(f"{_shown(url)}: {cause[0] if cause else type(error).__name__}") from error
