"""Files on the server: up, down, checked by their hash. Only `content` holds a whole file in memory.

Not here: which options of a job name files (`local_files.py`).
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tutelage.client.errors import AccessError, ServerError
from tutelage.client.http import Transport, path_of
from tutelage.client.logs import log_parts
from tutelage.client.results import File, decoded
from tutelage.errors import DataError, JobError, OutputError
from tutelage.jobs.identity import FILE_ID, FileHash

ASK_FIRST_BYTES = 1024 * 1024
"""Of larger files it is asked first whether the server has them."""
PART_BYTES = 1024 * 1024
LOG = "log:"
"""Before the id of a run: its log, where OpenWeights has the id of a file."""
FINE_TUNE = "fine-tune"


class Files:
    """Calls about files. organization: gives the id of the organisation that the token is of."""

    def __init__(self, transport: Transport, organization: Callable[[], str]) -> None:
        self._transport = transport
        self._organization = organization

    def upload(self, path: str | os.PathLike[str], purpose: str, *, patience: float | None = None) -> File:
        """The file as the server has it; the same bytes uploaded twice are one file.

        purpose: `conversations` and `preference` have their rows checked, `fine-tune` becomes one of them, any other
        word is kept. Raises DataError for a path that cannot be read or a file that is too large, JobError for bad
        rows, with their lines.
        """
        with _opened(Path(path)) as file:
            return self.create(file, purpose, patience=patience)

    def create(self, file: BinaryIO | str | os.PathLike[str], purpose: str, *, patience: float | None = None) -> File:
        """See `upload`; `file` may be open already, in binary mode: all of it is taken, wherever it stands."""
        if isinstance(file, str | os.PathLike):
            return self.upload(file, purpose, patience=patience)
        with _seekable(file) as content:
            name = _name_of(file)
            if content.seek(0, io.SEEK_END) > ASK_FIRST_BYTES and purpose != FINE_TUNE:
                known = self._known(content, purpose)
                if known is not None:
                    return known
            return _file_of(self._transport.upload("/v1/files", content, name, {"purpose": purpose}, patience=patience))

    def get_by_id(self, file_id: str) -> File:
        """Raises NotFoundError."""
        return _file_of(self._transport.request("GET", path_of("v1", "files", file_id)))

    def list(self, purpose: str | None = None, limit: int = 100, after: str | None = None) -> list[File]:
        """Files, newest first, those behind the file `after`."""
        asked = {"purpose": purpose, "limit": limit, "after": after}
        return [_file_of(item) for item in self._transport.request("GET", "/v1/files", params=asked)["data"]]

    def delete(self, file_id: str) -> None:
        """Raises NotFoundError, and JobError where a job that is not done needs it."""
        self._transport.request("DELETE", path_of("v1", "files", file_id))

    def content(self, file_id: str) -> bytes:
        """All bytes of a file, or of the log of a run: `run.log_file`. Raises NotFoundError.

        They are in memory at once: for what is large there is `download`.
        """
        if file_id.startswith(LOG):
            return b"".join(log_parts(self._transport, file_id.removeprefix(LOG)))
        return self._transport.bytes_of(_content_path(file_id), lambda parts: b"".join(parts))

    def download(self, file_id: str, path: str | os.PathLike[str], *, patience: float | None = None) -> Path:
        """Write a file to `path`, which is there whole or not at all; folders above it are made.

        Raises NotFoundError, OutputError where it cannot be written, ServerError where other bytes came than the id
        stands for.
        """
        target = Path(path)
        unfinished = target.with_name(f".{target.name[:100]}.{os.getpid()}-{os.urandom(4).hex()}")
        organization = self._organization() if FILE_ID.match(file_id) else None

        def take(parts: Iterator[bytes]) -> FileHash | None:
            seen = FileHash(organization) if organization is not None else None
            with unfinished.open("wb") as file:
                for part in parts:
                    file.write(part)
                    if seen is not None:
                        seen.update(part)
            return seen

        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if file_id.startswith(LOG):
                seen = take(log_parts(self._transport, file_id.removeprefix(LOG)))
            else:
                seen = self._transport.bytes_of(_content_path(file_id), take, patience=patience)
            if seen is not None and seen.id(file_id.partition(":")[0]) != file_id:
                raise ServerError(f"{file_id}: other bytes came than the id stands for; upload the file again")
            unfinished.replace(target)
        except OSError as error:
            raise OutputError(
                f"{target}: cannot be written ({error.strerror}); free space there or choose another folder"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                unfinished.unlink()
        return target

    def validate(self, file: BinaryIO | str | os.PathLike[str], purpose: str) -> bool:
        """Whether the rows are what the purpose says, found out here; `check` says what is wrong."""
        try:
            self.check(file, purpose)
        except DataError:
            return False
        return True

    def check(self, file: BinaryIO | str | os.PathLike[str], purpose: str) -> None:
        """Raises DataError that lists the bad rows with their lines. Nothing is uploaded."""
        if isinstance(file, str | os.PathLike):
            _check(Path(file), purpose)
            return
        name = _name_of(file)
        with tempfile.TemporaryDirectory() as folder, _seekable(file) as content:
            copy = Path(folder, "rows.jsonl.gz" if name.endswith(".gz") else "rows.jsonl")
            content.seek(0)
            with copy.open("wb") as target:
                shutil.copyfileobj(content, target, PART_BYTES)
            try:
                _check(copy, purpose)
            except DataError as error:
                raise DataError(str(error).replace(str(copy), name).replace(copy.name, name)) from None

    def _known(self, content: BinaryIO, purpose: str) -> File | None:
        """The file on the server that has these bytes, if there is one. That it is on record is not enough: its bytes
        may be gone from the store, which is why somebody uploads them again."""
        seen = FileHash(self._organization())
        content.seek(0)
        for part in iter(lambda: content.read(PART_BYTES), b""):
            seen.update(part)
        file_id = seen.id(purpose)
        try:
            known = self.get_by_id(file_id)
            self._transport.bytes_of(_content_path(file_id), lambda parts: next(parts, b""))
        except (JobError, AccessError):
            return None
        return known


def _check(path: Path, purpose: str) -> None:
    # Not before it is needed: a client that only asks for jobs starts sooner without.
    from tutelage.data.purposes import checked_purpose

    checked_purpose(path, purpose)


def _file_of(content: object) -> File:
    values = dict(content) if isinstance(content, dict) else {}
    values["purpose"] = str(values.get("id", "")).partition(":")[0] or values.get("purpose")
    return decoded(File, values)


def _content_path(file_id: str) -> str:
    return path_of("v1", "files", file_id, "content")


def _name_of(file: object) -> str:
    name = getattr(file, "name", None)
    return Path(name).name or "file" if isinstance(name, str) else "file"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name a file that is there") from error
    with file:
        yield file


@contextlib.contextmanager
def _seekable(file: BinaryIO) -> Iterator[BinaryIO]:
    """The file itself, or, of a pipe, a copy on disk. Raises DataError for one that gives text."""
    if isinstance(file, io.TextIOBase):
        raise DataError(f"{_name_of(file)}: the file is open as text; open it in binary mode: open(path, 'rb')")
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy, PART_BYTES)
        yield copy
