"""All records and files in one archive, made while the server runs, and back from it into a new home.

Records are rows as JSON, of one moment, so an archive made on SQLite can be restored into PostgreSQL and the other way
round. Not here: the command line.
"""

import base64
import contextlib
import datetime
import hashlib
import io
import json
import os
import re
import tarfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sqlalchemy import LargeBinary, MetaData, Table, insert, select, text

import tutelage
from tutelage.errors import ConfigError, ContentGoneError, DataError, OutputError, StorageError
from tutelage.files import only_process_in
from tutelage.jobs.contents import Contents, incoming_file
from tutelage.jobs.database import Database
from tutelage.jobs.tables import files, metadata
from tutelage.server.settings import KEY_VARIABLE, ServerSettings, secret_key

FORMAT = 1
MANIFEST = "manifest.json"
KEY = "secret.key"
END = "end.json"
"""The last member: without it an archive is not whole."""
ROWS_AT_ONCE = 1000
PART_BYTES = 1024 * 1024
MAX_ROW_BYTES = 64 * 1024 * 1024
_RECORDS = re.compile(r"^records/([a-z_]+)\.jsonl$")
_CONTENT = re.compile(r"^files/([0-9a-f]{64})$")


@dataclass(frozen=True)
class Copied:
    """What went into an archive, or came out of it. missing: contents that the store does not have (any more)."""

    rows: int
    contents: int
    bytes: int
    missing: int = 0


def back_up(settings: ServerSettings, archive: Path) -> Copied:
    """Write everything into a new archive.

    Raises OutputError where it cannot be written, StorageError, ConfigError for a home or a store of no server.
    """
    if settings.is_embedded and not (settings.home / "tutelage.db").is_file():
        raise ConfigError(f"{settings.home}: there is no tutelage.db in it; give the --home of a server")
    # Not made here: a new key would open none of the secrets in the records.
    if not os.environ.get(KEY_VARIABLE) and not (settings.home / KEY).is_file():
        raise ConfigError(f"{settings.home}: there is no {KEY} in it; give the --home of the server, or {KEY_VARIABLE}")
    _require_new(archive)
    database = Database(settings.database_url)
    unfinished = archive.with_name(f".{archive.name}.{os.getpid()}")
    try:
        # The key of the secrets is in it: for nobody but the owner.
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
            copied = _write(settings, database, tar)
        _require_new(archive)  # hours may have passed
        unfinished.replace(archive)
    except OSError as error:
        raise OutputError(
            f"{archive}: cannot be written ({error.strerror}); free space or choose another place"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
        database.close()
    return copied


def _require_new(archive: Path) -> None:
    if archive.exists():
        raise OutputError(f"{archive}: is there already; choose another name")


def restore(settings: ServerSettings, archive: Path) -> Copied:
    """Fill a home that has no records yet from an archive.

    Raises DataError for what is no whole archive, ConfigError where there are records already or a server runs there.
    """
    with only_process_in(settings.home, "--home"):
        database = Database(settings.database_url)
        try:
            if database.revision() is not None:
                raise ConfigError(f"{database}: there are records in it already; restore into another --home")
            with _undone_on_failure(database), archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                return _Restoring(settings, database, archive).read(tar)
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{archive}: is no whole backup ({error}); use another one") from error
        except OSError as error:
            raise DataError(f"{archive}: cannot be read or unpacked ({error.strerror})") from error
        finally:
            database.close()


@contextlib.contextmanager
def _undone_on_failure(database: Database) -> Generator[None, None, None]:
    """A backup that turns out to be broken leaves no half of its records."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(StorageError):
            database.migrate("base")
        raise


def _write(settings: ServerSettings, database: Database, tar: tarfile.TarFile) -> Copied:
    revision = database.revision()
    rows, wanted = 0, dict[str, int]()
    with database.reading() as connection:
        manifest = {
            "format": FORMAT,
            "revision": revision,
            "tutelage": tutelage.__version__,
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        }
        _add(tar, MANIFEST, json.dumps(manifest).encode())
        for table in metadata.sorted_tables:
            with _spooled(settings) as spool:
                found = connection.execute(select(table).execution_options(yield_per=ROWS_AT_ONCE))
                for row in found:
                    spool.write(_as_json(dict(row._mapping)) + b"\n")
                    rows += 1
                length = spool.tell()
                spool.seek(0)
                _add_file(tar, f"records/{table.name}.jsonl", spool, length)
        for row in connection.execute(select(files.c.content_hash, files.c.bytes)):
            wanted[row.content_hash] = row.bytes
    _add(tar, KEY, secret_key(settings.home))
    store = Contents(settings.files_url)
    contents, size, missing = 0, 0, 0
    for content_hash, length in wanted.items():
        try:
            with store.open(content_hash) as parts:
                _add_file(tar, f"files/{content_hash}", _Whole(parts, store.place_of(content_hash)), length)
        except ContentGoneError:
            missing += 1
            continue
        contents, size = contents + 1, size + length
    if missing and not contents:
        raise ConfigError(f"{settings.files_url}: holds none of the {missing} files; give the --files of the server")
    _add(tar, END, json.dumps({"rows": rows, "contents": contents}).encode())
    return Copied(rows, contents, size, missing)


class _Restoring:
    """Reads an archive member by member; nothing in it is taken for a path."""

    def __init__(self, settings: ServerSettings, database: Database, archive: Path) -> None:
        self.settings = settings
        self.database = database
        self.archive = archive
        self.store = Contents(settings.files_url)
        self.rows = self.contents = self.bytes = 0

    def read(self, tar: tarfile.TarFile) -> Copied:
        """Everything, then the schema of this version."""
        members = iter(tar)
        self._migrate(self._manifest(tar, next(members, None)))
        schema = MetaData()
        with self.database.reading() as connection:
            schema.reflect(connection)
        ended = False
        for member in members:
            content = tar.extractfile(member) if member.isreg() else None
            records, stored = _RECORDS.match(member.name), _CONTENT.match(member.name)
            if content is None:
                raise DataError(f"{self.archive}: '{member.name[:80]}' in it is no plain file; this is no backup")
            if records is not None and records[1] in schema.tables:
                self._records(schema.tables[records[1]], content)
            elif stored is not None:
                self._content(stored[1], content, member.size)
            elif member.name == KEY:
                self._key(content.read(1024))
            elif member.name == END:
                ended = _parsed(content) == {"rows": self.rows, "contents": self.contents}
            else:
                raise DataError(f"{self.archive}: '{member.name[:80]}' in it is not known; this is no backup")
        if not ended:
            raise DataError(f"{self.archive}: is no whole backup: its end is missing; use another one")
        self._count_on()
        self.database.migrate()
        return Copied(self.rows, self.contents, self.bytes)

    def _manifest(self, tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> dict[str, Any]:
        content = tar.extractfile(member) if member is not None and member.isreg() and member.name == MANIFEST else None
        manifest = _parsed(content) if content is not None else None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise DataError(f"{self.archive}: is no backup of this version of tutelage; make one with: tutelage backup")
        return manifest

    def _migrate(self, manifest: dict[str, Any]) -> None:
        revision = manifest.get("revision")
        if revision is None:
            return
        if revision not in self.database.known_revisions():
            raise DataError(f"{self.archive}: was made by a newer tutelage ({manifest.get('tutelage')}); install that")
        self.database.migrate(revision)

    def _records(self, table: Table, content: IO[bytes]) -> None:
        binary = [column.name for column in table.columns if isinstance(column.type, LargeBinary)]
        with self.database.writing() as connection:
            waiting: list[dict[str, Any]] = []
            for row in self._lines(table, content, binary):
                waiting.append(row)
                if len(waiting) == ROWS_AT_ONCE:
                    connection.execute(insert(metadata.tables.get(table.name, table)), waiting)
                    waiting = []
            if waiting:
                connection.execute(insert(metadata.tables.get(table.name, table)), waiting)

    def _lines(self, table: Table, content: IO[bytes], binary: list[str]) -> Iterator[dict[str, Any]]:
        known = set(table.columns.keys())
        while line := content.readline(MAX_ROW_BYTES):
            try:
                row = json.loads(line)
                for name in binary:
                    row[name] = base64.b64decode(row[name])
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(f"{self.archive}: a row of {table.name} is not readable; use another backup") from error
            if set(row) != known:
                raise DataError(f"{self.archive}: a row of {table.name} has other columns; use another backup")
            self.rows += 1
            yield row

    def _content(self, content_hash: str, content: IO[bytes], size: int) -> None:
        sha256 = hashlib.sha256()
        with _spooled(self.settings) as file:
            while part := content.read(PART_BYTES):
                sha256.update(part)
                file.write(part)
            file.flush()
            if sha256.hexdigest() != content_hash:
                raise DataError(f"{self.archive}: the file {content_hash} in it was damaged; use another backup")
            self.store.put(Path(file.name), content_hash, size)
        self.contents += 1
        self.bytes += size

    def _key(self, key: bytes) -> None:
        path = self.settings.home / KEY
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key)

    def _count_on(self) -> None:
        """Ids that the database counts go on behind those that are there. SQLite sees to that itself."""
        if not self.database.is_sqlite:
            with self.database.writing() as connection:
                sequence = "pg_get_serial_sequence('events', 'id')"
                connection.execute(
                    text(f"SELECT setval({sequence}, (SELECT coalesce(max(id), 0) + 1 FROM events), false)")
                )


class _Whole:
    """A content as it is read into an archive. Raises StorageError where it ends too soon, as after a crash."""

    def __init__(self, parts: Iterator[bytes], place: str) -> None:
        self._parts = parts
        self._place = place
        self._waiting = b""

    def read(self, size: int) -> bytes:
        """As much as is asked for: no more than was recorded is."""
        while len(self._waiting) < size:
            more = next(self._parts, b"")
            if not more:
                raise StorageError(f"{self._place}: is shorter than was recorded; bring it back, or delete it there")
            self._waiting += more
        part, self._waiting = self._waiting[:size], self._waiting[size:]
        return part


def _parsed(content: IO[bytes]) -> Any:
    """The JSON of a small member; None for what is none."""
    try:
        return json.loads(content.read(PART_BYTES))
    except ValueError:
        return None


def _as_json(row: dict[str, Any]) -> bytes:
    return json.dumps(
        {name: base64.b64encode(value).decode() if isinstance(value, bytes) else value for name, value in row.items()}
    ).encode()


def _spooled(settings: ServerSettings) -> IO[bytes]:
    settings.uploads.mkdir(parents=True, exist_ok=True)
    return incoming_file(settings.uploads)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    _add_file(tar, name, io.BytesIO(content), len(content))


def _add_file(tar: tarfile.TarFile, name: str, content: "IO[bytes] | _Whole", size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o600, int(time.time())
    tar.addfile(member, content)  # pyright: ignore[reportArgumentType] - it only reads
