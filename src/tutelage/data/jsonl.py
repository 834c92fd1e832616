"""Reads JSON-lines files, gzip or plain, and hashes them. Torch-free.

What a row means is not known here (see conversations.py). All bad rows of a file are reported together.
"""

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from tutelage.errors import DataError, nearest

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


def read_json_lines(path: Path) -> Iterator[JsonLine | BadLine]:
    """The lines of a `.jsonl` or `.jsonl.gz` file in order; blank ones are left out.

    Only `\\n` ends a line, as JSON strings may hold every other line separator.
    Raises DataError for a missing file, a folder, missing rights and broken gzip data.
    """
    with _open(path) as file:
        opened = gzip.GzipFile(fileobj=file) if path.name.endswith(".gz") else file
        try:
            for number, raw in enumerate(iter(lambda: opened.readline(MAX_LINE_BYTES + 1), b""), start=1):
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
            raise DataError(f"{path}: reading failed ({error}); copy the file again") from error


def read_rows(path: Path, parse: Callable[[Mapping[str, Any], str], Row], what: str = "rows") -> list[Row]:
    """`parse(row, place)` of every row, in order; place is such as `rows.jsonl:17`.

    Raises one DataError that lists the rows for which `parse` raised DataError (with its place in the message), or
    says that the file is missing, empty or unreadable. what: how messages call the rows.
    """
    path = Path(path)
    rows: list[Row] = []
    problems: list[str] = []
    for line in read_json_lines(path):
        place = f"{path}:{line.number}"
        if isinstance(line, BadLine):
            problems.append(f"{place}: {line.reason}")
            continue
        try:
            rows.append(parse(line.row, place))
        except DataError as problem:
            if isinstance(problem, WrongFileError) and not rows and not problems:
                raise
            problems.append(str(problem))
    if problems:
        total = len(rows) + len(problems)
        raise DataError(report_rows(f"{path}: {len(problems)} of {total} {what} cannot be used", problems))
    if not rows:
        raise DataError(f"{path}: the file has no {what}; write one JSON object a line")
    return rows


def report_rows(headline: str, problems: Sequence[str], always_headline: bool = False) -> str:
    """One message for many rows: the headline, the first 20 problems, a count of the rest.

    A single problem speaks for itself, unless `always_headline`.
    """
    if len(problems) == 1 and not always_headline:
        return problems[0]
    lines = [headline + ":", *problems[:MAX_REPORTED_ROWS]]
    if len(problems) > MAX_REPORTED_ROWS:
        lines.append(f"and {len(problems) - MAX_REPORTED_ROWS} more rows")
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
