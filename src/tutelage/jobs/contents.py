"""The bytes of files, each content once under its SHA-256: in a folder, or in any store that fsspec knows.

Not here: whose files they are and what they are called (`stored_files.py`).
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import IO, Any

from tutelage.errors import ConfigError, ContentGoneError, StorageError
from tutelage.jobs.addresses import shown
from tutelage.jobs.file_systems import LocalFileSystem, cannot_open, has_objects, open_store, put_options, reason_of

PART_BYTES = 1024 * 1024
INCOMING = "upload-"
"""How files that are coming in are called on this machine."""
UNFINISHED = "unfinished"
"""The folder of a store that is a folder, where contents are until all of their bytes are there."""
UNFINISHED_SECONDS = 3600.0
"""Nobody is at what was not written to for so long."""


def incoming_file(folder: Path, suffix: str = "") -> IO[bytes]:
    """A new one that `FileStore.remove_left_behind` lets be for as long as this process has it open."""
    while True:
        file: IO[bytes] = tempfile.NamedTemporaryFile(dir=folder, prefix=INCOMING, suffix=suffix)  # noqa: SIM115 - closed by the caller
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink > 0:  # nobody took it away before it was locked
            return file
        with contextlib.suppress(FileNotFoundError):
            file.close()


class Contents:
    """url: a folder, or an address such as `s3://bucket/path`. Raises ConfigError for one that cannot be opened."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._store, self._root = open_store(url)
        self._has_objects = has_objects(url)

    def __str__(self) -> str:
        return shown(self.url)

    def begin(self, folder: Path, *, try_out: bool = True) -> None:
        """Make the folder it is in; of a store of objects, see that it keeps, gives and removes what it is to.

        folder: for the file that is tried. try_out: whether one is. Raises ConfigError.
        """
        try:
            if not self._has_objects:  # where a bucket would be made, of whatever name was mistyped
                self._store.makedirs(self._root, exist_ok=True)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_open(self.url, error) from error
        if self._has_objects and try_out:
            try:
                self._try_out(folder)
            except StorageError as error:
                raise ConfigError(f"files: {error}") from error

    def put(self, source: Path, content_hash: str, size: int) -> None:
        """Store the content of a file of this machine, unless it is there. Raises StorageError."""
        path = self._path(content_hash)
        with self._translated("written"):
            if self._size(path) == size:
                return
            if self._has_objects:
                self._store.put_file(str(source), path, **put_options(self.url))
            else:
                self._put_whole(source, path)

    def has(self, content_hash: str) -> bool:
        """Whether it is there. Raises StorageError."""
        with self._translated("read"):
            return self._size(self._path(content_hash)) is not None

    @contextlib.contextmanager
    def open(self, content_hash: str) -> Generator[Iterator[bytes], None, None]:
        """A content part by part. Raises StorageError; ContentGoneError where the store is there and it is not."""
        path = self._path(content_hash)
        try:
            with self._translated("read", FileNotFoundError):
                content = self._store.open(path, "rb", block_size=PART_BYTES)
        except FileNotFoundError as error:
            if self._has_objects and not self._store.exists(self._root.partition("/")[0]):
                raise self._error("read", "its bucket is not there, or does not answer") from error
            raise ContentGoneError(f"{self}: the content {content_hash} is gone from it") from error
        with content:
            yield self._parts(content)

    def remove(self, content_hash: str) -> None:
        """Of one that is not there, nothing. Raises StorageError."""
        with contextlib.suppress(FileNotFoundError), self._translated("written", FileNotFoundError):
            self._store.rm_file(self._path(content_hash))

    def remove_left_behind(self) -> None:
        """Take away what processes that were killed while they wrote left in a folder."""
        if isinstance(self._store, LocalFileSystem):
            for path in Path(self._root, UNFINISHED).glob("*"):
                with contextlib.suppress(OSError):
                    if time.time() - path.stat().st_mtime > UNFINISHED_SECONDS:
                        path.unlink()

    def place_of(self, content_hash: str) -> str:
        """Where it is, for people."""
        return self._path(content_hash)

    def _parts(self, content: Any) -> Iterator[bytes]:
        while True:
            with self._translated("read"):
                part = content.read(PART_BYTES)
            if not part:
                return
            yield part

    def _path(self, content_hash: str) -> str:
        return f"{self._root}/{content_hash[:2]}/{content_hash}"

    def _put_whole(self, source: Path, path: str) -> None:
        """Under another name first: whoever looks sees the whole file or none."""
        folder, unfinished = path.rpartition("/")[0], f"{self._root}/{UNFINISHED}/{secrets.token_hex(16)}"
        try:
            self._store.makedirs(folder, exist_ok=True)
            self._store.makedirs(unfinished.rpartition("/")[0], exist_ok=True)
            self._store.put_file(str(source), unfinished)
            self._on_the_disk(unfinished)
            self._store.mv(unfinished, path)
            self._on_the_disk(folder)
            self._on_the_disk(self._root)
        except Exception:
            with contextlib.suppress(Exception):  # what happened before is what is told
                self._store.rm_file(unfinished)
            raise

    def _size(self, path: str) -> int | None:
        """None where nothing is there. One look: between two, others may delete it."""
        try:
            return int(self._store.info(path)["size"])
        except FileNotFoundError:
            return None

    def _on_the_disk(self, path: str) -> None:
        """A record of a file outlives a power cut; so must its bytes, and its name, which is in its folder. Other
        stores acknowledge when they have them."""
        if isinstance(self._store, LocalFileSystem):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _try_out(self, folder: Path) -> None:
        tried = secrets.token_bytes(32)
        content_hash = hashlib.sha256(tried).hexdigest()
        with incoming_file(folder) as file:
            file.write(tried)
            file.flush()
            self.put(Path(file.name), content_hash, len(tried))
        with self.open(content_hash) as parts:
            if b"".join(parts) != tried:
                raise self._error("read", "it gives back other bytes than it was given")
        self.remove(content_hash)

    @contextlib.contextmanager
    def _translated(self, done: str, *but: type[Exception]) -> Generator[None, None, None]:
        try:
            yield
        except but:
            raise
        except Exception as error:  # stores raise whatever the libraries below them do
            raise self._error(done, reason_of(error)) from error

    def _error(self, done: str, reason: str) -> StorageError:
        here = "free space there" if done == "written" else "look at its disk"
        remedy = "look whether the store is up and lets this server in" if self._has_objects else here
        return StorageError(f"{self}: cannot be {done} ({reason}); {remedy}")
