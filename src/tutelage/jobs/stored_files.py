"""Files by what is in them: who has which, and those that are coming in. A file's name never becomes a path.

Not here: where their bytes are (`contents.py`), whether the rows of a file are good (`tutelage.data`), HTTP.
"""

import contextlib
import fcntl
import re
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import String, delete, exists, insert, or_, select
from sqlalchemy import cast as sql_cast

from tutelage.errors import ContentGoneError, JobError, StorageError, TooLargeError
from tutelage.jobs.contents import INCOMING, Contents, incoming_file
from tutelage.jobs.database import Database
from tutelage.jobs.identity import FileHash
from tutelage.jobs.plain_json import cleaned_text
from tutelage.jobs.records import StoredFile
from tutelage.jobs.rows import file_of, require_file
from tutelage.jobs.status import JobStatus
from tutelage.jobs.tables import files, jobs

PURPOSE = re.compile(r"^[a-z][a-z0-9_-]{0,63}$")
MAX_NAME = 255


class Upload:
    """A file that is coming in: on this machine's disk until it is complete. max_bytes: of the whole file."""

    def __init__(self, folder: Path, organization: str, max_bytes: int, suffix: str = "") -> None:
        self._file = incoming_file(folder, suffix)
        self.hash = FileHash(organization)
        self.bytes = 0
        self.max_bytes = max_bytes

    @property
    def path(self) -> Path:
        return Path(self._file.name)

    def write(self, part: bytes) -> None:
        """The next bytes. Raises TooLargeError beyond the limit, StorageError where the disk is full."""
        self.bytes += len(part)
        if self.bytes > self.max_bytes:
            raise TooLargeError(
                f"the file is larger than {self.max_bytes} bytes, the limit of this server; upload it in parts, or "
                "start the server with a larger --max-file-gb"
            )
        try:
            self._file.write(part)
        except OSError as error:
            raise StorageError(f"{self.path.parent}: cannot be written ({error.strerror}); free space there") from error
        self.hash.update(part)

    def finish(self) -> None:
        """All bytes are there. Raises StorageError."""
        try:
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self.path.parent}: cannot be written ({error.strerror}); free space there") from error

    def close(self) -> None:
        """Remove what is left of it here."""
        with contextlib.suppress(FileNotFoundError):
            self._file.close()


class FileStore:
    """Files of all organisations. url: a folder, or what fsspec knows, such as `s3://bucket/path`.

    folder: for uploads that are not complete. try_out: whether a store that is away, or refuses, is an error now.
    Raises ConfigError for a store that cannot be opened.
    """

    def __init__(self, database: Database, url: str, folder: Path, *, max_bytes: int, try_out: bool = True) -> None:
        self.database = database
        self.folder = folder
        self.max_bytes = max_bytes
        self.contents = Contents(url)
        self.contents.begin(folder, try_out=try_out)

    @contextlib.contextmanager
    def upload(self, organization: str, suffix: str = "") -> Generator[Upload, None, None]:
        """A place for a file that is coming in; whatever happens, nothing is left of it here.

        suffix: of its name on this machine, for readers that go by it.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            upload = Upload(self.folder, organization, self.max_bytes, suffix)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be written ({error.strerror}); free space there") from error
        try:
            yield upload
        finally:
            upload.close()

    def remove_left_behind(self) -> None:
        """Take away what a killed server never finished, here and in a store that is a folder; what others who live
        are at stays."""
        self.contents.remove_left_behind()
        for path in self.folder.glob(f"{INCOMING}*"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while somebody writes it
                path.unlink()

    def keep(self, organization: str, upload: Upload, *, purpose: str, filename: str) -> StoredFile:
        """Make a complete upload a file, or find that it is one already. Raises JobError, StorageError."""
        if not PURPOSE.fullmatch(purpose):
            raise JobError(f"purpose: '{purpose[:80]}' is none; use lower-case letters, digits, - and _")
        upload.finish()
        identity, content = upload.hash.id(purpose), upload.hash.content_hash
        # Copying may take minutes, in which others have to write.
        self.contents.put(upload.path, content, upload.bytes)
        with self._alone_with(content):
            self.contents.put(upload.path, content, upload.bytes)  # again only where it was deleted meanwhile
            return self._recorded(organization, upload, identity, purpose, filename)

    def _recorded(self, organization: str, upload: Upload, identity: str, purpose: str, filename: str) -> StoredFile:
        with self.database.writing() as connection:
            row = connection.execute(select(files).where(files.c.id == identity)).one_or_none()
            if row is None:
                connection.execute(
                    insert(files).values(
                        id=identity,
                        organization_id=organization,
                        purpose=purpose,
                        filename=cleaned_text(filename)[:MAX_NAME],
                        bytes=upload.bytes,
                        content_hash=upload.hash.content_hash,
                        created_at=time.time(),
                    )
                )
                row = connection.execute(select(files).where(files.c.id == identity)).one()
            return file_of(row)

    def get(self, organization: str, file_id: str) -> StoredFile:
        """Raises NotFoundError."""
        with self.database.reading() as connection:
            return file_of(require_file(connection, organization, file_id))

    def list(
        self,
        organization: str,
        *,
        purposes: Sequence[str] | None = None,
        limit: int = 100,
        after: str | None = None,
        ascending: bool = False,
    ) -> list[StoredFile]:
        """Files, newest first unless `ascending`, those behind the file `after`. Raises NotFoundError."""
        query = select(files).where(files.c.organization_id == organization)
        if purposes is not None:
            query = query.where(files.c.purpose.in_(purposes))
        with self.database.reading() as connection:
            if after is not None:
                last = require_file(connection, organization, after)
                place = (files.c.created_at > last.created_at) if ascending else (files.c.created_at < last.created_at)
                same = (files.c.id > last.id) if ascending else (files.c.id < last.id)
                query = query.where(or_(place, (files.c.created_at == last.created_at) & same))
            order = (files.c.created_at, files.c.id)
            query = query.order_by(*(order if ascending else (column.desc() for column in order)))
            return [file_of(row) for row in connection.execute(query.limit(limit))]

    @contextlib.contextmanager
    def open(self, organization: str, file_id: str) -> Generator[tuple[StoredFile, Iterator[bytes]], None, None]:
        """A file and its bytes, part by part. Raises NotFoundError, StorageError where its content is gone."""
        with self.database.reading() as connection:
            row = require_file(connection, organization, file_id)
        try:
            with self.contents.open(row.content_hash) as parts:
                yield file_of(row), parts
        except ContentGoneError as error:
            raise ContentGoneError(f"{file_id}: its content is gone from the store; upload the file again") from error

    def delete(self, organization: str, file_id: str) -> None:
        """Remove a file, and its content if no other file has it.

        Raises NotFoundError, JobError where a job that is not done needs it, and StorageError.
        """
        content = self._content_of(organization, file_id)
        with self._alone_with(content):
            is_there = self.contents.has(content)  # a store that is away is told while the file can be deleted again
            row = self._delete_record(organization, file_id)
            # After the record: killed between the two, bytes are left that nobody needs, where the other way round a
            # record would be left without its bytes.
            if is_there and self._is_unused(content):
                try:
                    self.contents.remove(content)
                except StorageError:
                    with self.database.writing() as connection:  # so that it can be deleted again
                        connection.execute(insert(files).values(row))
                    raise

    def _delete_record(self, organization: str, file_id: str) -> dict[str, Any]:
        """What it was."""
        with self.database.writing() as connection:
            # Locked before jobs are looked at: who submits one that reads it either came before, or finds it gone.
            row = require_file(connection, organization, file_id, to_change=True)
            needed = connection.execute(
                select(jobs.c.id)
                .where(
                    jobs.c.organization_id == organization,
                    jobs.c.status.in_([JobStatus.PENDING.value, JobStatus.IN_PROGRESS.value]),
                    or_(_mentions(jobs.c.params, file_id), _mentions(jobs.c.mounted_files, file_id)),
                )
                .limit(1)
            ).scalar()
            if needed is not None:
                raise JobError(f"{file_id}: job {needed} needs it; cancel that job, or delete the file when it is done")
            connection.execute(delete(files).where(files.c.id == file_id))
            return dict(row._mapping)  # pyright: ignore[reportPrivateUsage] - a public name of SQLAlchemy's

    def _content_of(self, organization: str, file_id: str) -> str:
        with self.database.reading() as connection:
            return str(require_file(connection, organization, file_id).content_hash)

    def _is_unused(self, content: str) -> bool:
        with self.database.reading() as connection:
            return not connection.execute(select(exists().where(files.c.content_hash == content))).scalar()

    def _alone_with(self, content: str) -> contextlib.AbstractContextManager[None]:
        """Nobody else keeps or deletes this content meanwhile; a store that is slow keeps nobody else waiting."""
        return self.database.alone_with(int(content[:15], 16))


def _mentions(column: Any, file_id: str) -> Any:
    return sql_cast(column, String).contains(file_id, autoescape=True)
