"""A form with one file, taken in part by part: the file goes to disk and through the hash, never into memory."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from tutelage.errors import DataError
from tutelage.jobs.stored_files import FileStore, Upload

MAX_FIELDS = 32
MAX_FIELD_BYTES = 64 * 1024
HANDED_OVER_BYTES = 256 * 1024


@dataclass
class FileForm:
    """What arrived. filename: as the client calls it, not a path of this machine."""

    upload: Upload | None = None
    filename: str = ""
    fields: dict[str, str] = field(default_factory=dict[str, str])


class _Reader:
    """Callbacks of the parser. Bytes of the file gather in `waiting` until they are handed over."""

    def __init__(self) -> None:
        self.form = FileForm()
        self.waiting = bytearray()
        self.begun_file = False
        self._header = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._is_file = False
        self._parts = 0
        self._text = bytearray()

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_FIELDS:
            raise DataError(f"the form has more than {MAX_FIELDS} fields; send 'file' and 'purpose'")
        self._headers = {}
        self._text = bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[bytes(self._header).lower()] = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", errors="replace")
        self._is_file = b"filename" in options
        if not self._is_file:
            return
        if self.begun_file:
            raise DataError("the form has two files; upload one at a time")
        if self._name != "file":
            raise DataError(f"the file is in the field '{self._name[:80]}'; put it into 'file'")
        self.begun_file = True
        self.form.filename = options[b"filename"].decode("utf-8", errors="replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.waiting += data[start:end]
            return
        self._text += data[start:end]
        if len(self._text) > MAX_FIELD_BYTES:
            raise DataError(f"the field '{self._name[:80]}' is longer than {MAX_FIELD_BYTES} bytes; shorten it")

    def on_part_end(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._text.decode("utf-8", errors="replace")


async def read_file_form(request: Request, store: FileStore, organization: str, stack: AsyncExitStack) -> FileForm:
    """The form of a request; its upload is removed from this machine when the stack closes.

    Raises DataError for what is no such form, or cut off, and what `Upload.write` raises.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise DataError("send the file as multipart/form-data, with the fields 'file' and 'purpose'")
    reader = _Reader()
    names = [name for name in vars(_Reader) if name.startswith("on_")]
    parser = MultipartParser(boundary, {name: getattr(reader, name) for name in names})  # pyright: ignore[reportArgumentType] - built from names
    try:
        async for part in _stream(request):
            parser.write(part)
            if reader.begun_file and reader.form.upload is None:
                suffix = ".jsonl.gz" if reader.form.filename.lower().endswith(".gz") else ".jsonl"
                reader.form.upload = stack.enter_context(store.upload(organization, suffix))
            if len(reader.waiting) >= HANDED_OVER_BYTES:
                await _hand_over(reader)
        parser.finalize()
    except MultipartParseError as error:
        raise DataError("the form is not valid multipart/form-data, or was cut off; send it again") from error
    if not reader.begun_file or reader.form.upload is None:
        raise DataError("the form has no file; put it into the field 'file'")
    await _hand_over(reader)
    return reader.form


async def _stream(request: Request) -> AsyncIterator[bytes]:
    try:
        async for part in request.stream():
            yield part
    except ClientDisconnect as error:
        raise DataError("the connection ended before the file was complete; send it again") from error


async def _hand_over(reader: _Reader) -> None:
    upload, part = reader.form.upload, bytes(reader.waiting)
    reader.waiting.clear()
    if upload is not None and part:
        await run_in_threadpool(upload.write, part)
