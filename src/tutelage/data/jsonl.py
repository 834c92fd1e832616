"""Reads JSON-lines files, gzip or plain, and hashes them. Torch-free.

What a row means is not known here (see conversations.py). All bad rows of a file are reported together.
"""

import gzip
import hashlib
import io
import json
import math
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from tutelage.errors import DataError, TooLargeError, nearest

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MAX_LINE_BYTES = 256 * 1024 * 1024  # a few kilobytes of gzip can be one line of gigabytes
MAX_REPORTED_ROWS = 20  # how many bad rows an error lists before it only counts

Row = TypeVar("Row")


class WrongFileError(DataError):
    """A row shows that the whole file is of another kind; as the first row, it is the only thing to say."""


@dataclass(frozen=True)
class JsonLine:
    """A line that holds a JSON object. `number` counts from 1, blank lines included."""

    number: int
    row: dict[str, Any]


@dataclass(frozen=True)
class BadLine:
    """A line that holds no JSON object, and why."""

    number: int
    reason: str


@dataclass(frozen=True)
class FilePart:
    """Whole lines of a file that is not packed: where their bytes begin, how many they are, the first line's number."""

    start: int
    num_bytes: int
    first_line: int


def cut_file(path: Path, num_bytes: int) -> Generator[FilePart, None, None]:
    """The file in parts of num_bytes, and what is left of the last line of each. Raises DataError like the reader."""
    start, first_line = 0, 1
    with _open(path) as file:
        try:
            while part := file.read(num_bytes):
                # A line that is too long is left to the reader, who refuses it when it has seen as much.
                rest = b"" if part.endswith(b"\n") else file.readline(MAX_LINE_BYTES + 1)
                yield FilePart(start, len(part) + len(rest), first_line)
                start += len(part) + len(rest)
                first_line += part.count(b"\n") + rest.count(b"\n")
        except OSError as error:
            raise _unreadable(path, error) from error


def read_json_lines(
    path: Path, max_bytes: int | None = None, part: FilePart | None = None
) -> Iterator[JsonLine | BadLine]:
    """The lines of a `.jsonl` or `.jsonl.gz` file, or of a part of it, in order; blank ones are left out.

    Only `\\n` ends a line, as JSON strings may hold every other line separator.
    Raises DataError for a missing file, a folder, missing rights and broken gzip data, and TooLargeError for more than
    `max_bytes`, unpacked.
    """
    left = math.inf if max_bytes is None else max_bytes
    with _open(path) as file:
        try:
            opened = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
            number = 0
            if part is not None:
                file.seek(part.start)
                opened, number = io.BytesIO(file.read(part.num_bytes)), part.first_line - 1
            while raw := opened.readline(int(min(MAX_LINE_BYTES, left)) + 1):
                number += 1
                left -= len(raw)
                if left < 0:
                    raise TooLargeError(f"{path}: is more than {max_bytes} bytes, unpacked; upload it in parts")
                if len(raw) > MAX_LINE_BYTES:
                    raise DataError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES} bytes; split it")
                line = raw.removeprefix(_BYTE_ORDER_MARK) if number == 1 else raw
                if line.strip():
                    yield _parse(number, line)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(
                f"{path}: not a readable gzip file ({error}); compress it again, "
                "or take .gz off the name if it is plain text"
            ) from error
        except OSError as error:
            raise _unreadable(path, error) from error


def read_rows(path: Path, parse: Callable[[Mapping[str, Any], str], Row], what: str = "rows") -> list[Row]:
    """`parse(row, place)` of every row, in order; place is such as `rows.jsonl:17`.

    Raises one DataError that lists the rows for which `parse` raised DataError (with its place in the message), or
    says that the file is missing, empty or unreadable. what: how messages call the rows.
    """
    return list(iterate_rows(path, parse, what))


def iterate_rows(
    path: Path,
    parse: Callable[[Mapping[str, Any], str], Row],
    what: str = "rows",
    max_bytes: int | None = None,
    part: FilePart | None = None,
) -> Iterator[Row]:
    """Like `read_rows`, one row at a time: memory for one, however long the file. Raises at the end; from the first
    bad row on nothing is yielded any more, so that whoever works on the rows has soon done with a bad file.

    max_bytes: of the file as it is read, unpacked if it was packed; TooLargeError beyond.
    part: of the file, which may be without rows.
    """
    path = Path(path)
    good = bad = 0
    problems: list[str] = []
    for line in read_json_lines(path, max_bytes, part):
        place = f"{path}:{line.number}"
        try:
            if isinstance(line, BadLine):
                raise DataError(f"{place}: {line.reason}")
            row = parse(line.row, place)
        except DataError as problem:
            if isinstance(problem, WrongFileError) and not good and not bad:
                raise
            bad += 1
            if bad <= MAX_REPORTED_ROWS:
                problems.append(str(problem))
            continue
        good += 1
        if not bad:
            yield row
    if bad:
        raise DataError(report_rows(f"{path}: {bad} of {good + bad} {what} cannot be used", problems, count=bad))
    if not good and part is None:
        raise DataError(f"{path}: the file has no {what}; write one JSON object a line")


def report_rows(headline: str, problems: Sequence[str], always_headline: bool = False, count: int | None = None) -> str:
    """One message for many rows: the headline, the first 20 problems, a count of the rest.

    A single problem speaks for itself, unless `always_headline`. count: of all problems, if not all are given.
    """
    count = len(problems) if count is None else count
    if count == 1 and not always_headline:
        return problems[0]
    lines = [headline + ":", *problems[:MAX_REPORTED_ROWS]]
    if count > MAX_REPORTED_ROWS:
        lines.append(f"and {count - MAX_REPORTED_ROWS} more rows")
    return "\n  ".join(lines)


def data_hash(path: Path) -> str:
    """SHA-256 of the file's bytes as they lie on disk, in hexadecimal. Raises DataError like the reader."""
    digest = hashlib.sha256()
    with _open(Path(path)) as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _open(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; name one .jsonl or .jsonl.gz file in it") from error
    except FileNotFoundError as error:
        siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = nearest(path.name, siblings) or "; check the path (relative paths start at the current folder)"
        raise DataError(f"{path}: no such file{hint}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be opened ({reason}); check its rights and its path") from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: reading failed ({error}); copy the file again")


def _parse(number: int, line: bytes) -> JsonLine | BadLine:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        byte = line[error.start]
        return BadLine(
            number, f"byte {error.start + 1} of the line (0x{byte:02x}) is not UTF-8; save the file as UTF-8"
        )
    except json.JSONDecodeError as error:
        return BadLine(number, f"not valid JSON at column {error.colno} ({error.msg}); {_remedy(line)}")
    except RecursionError:
        return BadLine(number, "JSON nested too deeply to read; flatten the row")
    except ValueError as error:  # an integer of thousands of digits
        return BadLine(number, f"not readable JSON ({str(error).partition(';')[0]}); shorten the number")
    if not isinstance(value, dict):
        return BadLine(number, f"a JSON {_json_type(value)}, not an object; {_remedy(line)}")
    return JsonLine(number, value)


def _remedy(line: bytes) -> str:
    if line.lstrip().startswith(b"["):
        return "write one object a line (`jq -c '.[]' list.json > rows.jsonl` turns a JSON list into that)"
    return "write one JSON object a line"


def _json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "true or false", str: "string", int: "number", float: "number", list: "list"}
    return names[type(value)]
